//! Events per second of decoding and encoding, of NDJSON and of OTLP with the same events, in one run.

use std::fmt::Write as _;

use aurore_events::clock::Clock;
use aurore_events::ingest::BodyFormat;

use super::corpus::{self, EventKind};
use super::{otlp, stages};

/// Records of a batch of OpenTelemetry's SDKs.
const BATCH_EVENTS: usize = 512;
const BATCHES: usize = 20;
/// The fastest of these counts: the others were disturbed.
const ROUNDS: usize = 30;

/// A table with the ratio to NDJSON.
pub(super) fn run() -> String {
    let lines = corpus::batches_of(BATCH_EVENTS, BATCHES, EventKind::Plain);
    let keyed = corpus::batches_of(BATCH_EVENTS, BATCHES, EventKind::Keyed);
    let records = otlp::batches(BATCHES, BATCH_EVENTS);
    let mut forms: [(&str, &mut dyn FnMut()); 4] = [
        ("NDJSON", &mut || _ = stages::decode(&lines, BodyFormat::Ndjson)),
        ("NDJSON with keys", &mut || _ = stages::decode(&keyed, BodyFormat::Ndjson)),
        ("OTLP, dedup=body", &mut || _ = otlp::decode_with(&records, "")),
        ("OTLP, dedup=none", &mut || _ = otlp::decode_with(&records, "dedup=none")),
    ];
    let clock = Clock::system();
    let mut fastest = [f64::MAX; 4];
    for _ in 0..ROUNDS {
        for ((_, work), fastest) in forms.iter_mut().zip(&mut fastest) {
            let start = clock.now();
            work();
            *fastest = fastest.min(clock.now().since(start).as_secs_f64());
        }
    }
    let mut table = String::new();
    for ((name, _), seconds) in forms.iter().zip(fastest) {
        #[expect(clippy::cast_precision_loss, reason = "some thousand events")]
        let rate = (BATCHES * BATCH_EVENTS) as f64 / seconds;
        let ratio = fastest[0] / seconds;
        writeln!(table, "{name:18} {rate:12.0} events/s  {ratio:5.2}").expect("a string takes all");
    }
    table
}
