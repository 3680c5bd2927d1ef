//! The decoder of the targets that read events, at a constant time.

use std::time::Duration;

use aurore_events::clock::Clock;
use aurore_events::event::Timestamp;
use aurore_events::event::id_generator::IdGenerator;
use aurore_events::ingest::{IngestDecoder, IngestLimits};

pub const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

pub fn decoder() -> IngestDecoder {
    let limits = IngestLimits {
        clock_skew: Duration::from_secs(300),
        retention: Duration::from_secs(30 * 86_400),
        rows_per_block_max: 3,
        decompressed_bytes_max: 1 << 20,
    };
    IngestDecoder::new(limits, IdGenerator::new(Clock::manual(NOW, 1).rng()))
}
