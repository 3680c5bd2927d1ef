//! Generated events: 20 services of different weights, texts of a realistic distribution of sizes.
//!
//! Used by the load generator and by the bare COPY, so that both store the same rows.

use rand::RngExt as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

const SERVICES: usize = 20;
/// Bytes of an event's JSON without message and metadata, with a service of two digits.
const FRAME_BYTES: usize = 80;
/// From this size on an event has metadata.
const METADATA_FROM: usize = 190;
const METADATA_BYTES: usize = 93;

/// The sizes of the events' JSON: share in percent of the events, and the largest size. Between two
/// entries the logarithm of the size is distributed evenly. The median is 240 bytes, the mean some
/// 410.
const SIZES: &[(f64, f64)] = &[
    (0.0, 100.0),
    (25.0, 170.0),
    (50.0, 240.0),
    (75.0, 380.0),
    (90.0, 600.0),
    (99.0, 2048.0),
    (100.0, 16384.0),
];

const WORDS: &[&str] = &[
    "payment",
    "accepted",
    "order",
    "timeout",
    "retry",
    "customer",
    "shipped",
    "cart",
    "refund",
    "login",
    "session",
    "cache",
    "miss",
    "query",
    "slow",
    "upstream",
    "gateway",
    "invoice",
    "stock",
    "reserved",
    "released",
    "webhook",
    "delivered",
    "rejected",
    "signature",
    "verified",
    "token",
    "expired",
    "worker",
    "started",
    "stopped",
    "queue",
];

/// The sizes of the events.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Size {
    /// 100 bytes to 16 KiB, as `SIZES` distributes them.
    Life,
    /// Every event has this number of bytes, as far as its other fields allow.
    Fixed(usize),
}

/// The parts of an event that do not change from one sending to the next.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) service: String,
    pub(crate) message: String,
    /// A JSON object that ends with 16 hexadecimal digits, `"` and `}`.
    pub(crate) metadata: Option<String>,
}

#[derive(Debug)]
pub(crate) struct EventGenerator {
    rng: StdRng,
    size: Size,
}

impl EventGenerator {
    pub(crate) fn new(seed: u64, size: Size) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), size }
    }

    pub(crate) fn event(&mut self) -> Event {
        let bytes = match self.size {
            Size::Life => life_size(self.rng.random_range(0.0..100.0)),
            Size::Fixed(bytes) => bytes,
        };
        let metadata = (bytes >= METADATA_FROM).then(|| self.metadata());
        let texts = bytes.saturating_sub(FRAME_BYTES);
        let message = texts.saturating_sub(metadata.as_ref().map_or(0, |_| METADATA_BYTES + 12)).max(8);
        Event { service: format!("service-{}", self.service()), message: self.message(message), metadata }
    }

    /// The n-th service has the weight 1 / n, so the first sends a quarter of all events.
    fn service(&mut self) -> usize {
        let weight = |nth: usize| 1.0 / f64::from(u32::try_from(nth + 1).unwrap_or(1));
        let total: f64 = (0..SERVICES).map(weight).sum();
        let mut left = self.rng.random_range(0.0..total);
        for nth in 0..SERVICES {
            left -= weight(nth);
            if left < 0.0 {
                return nth;
            }
        }
        0
    }

    fn message(&mut self, bytes: usize) -> String {
        let mut text = String::with_capacity(bytes + 16);
        while text.len() < bytes {
            if self.rng.random_range(0..4) == 0 {
                text.push_str(&self.rng.random_range(0..1_000_000).to_string());
            } else {
                text.push_str(WORDS[self.rng.random_range(0..WORDS.len())]);
            }
            text.push(' ');
        }
        text.truncate(bytes);
        text
    }

    fn metadata(&mut self) -> String {
        let region =
            ["eu-west-1", "eu-north-1", "us-east-1", "ap-south-1"][self.rng.random_range(0..4_usize)];
        format!(
            "{{\"region\":\"{region}\",\"attempt\":{},\"customer\":{},\"trace\":\"{:016x}{:016x}\"}}",
            self.rng.random_range(1..4),
            self.rng.random_range(0..1000),
            self.rng.random::<u64>(),
            0
        )
    }
}

fn life_size(percent: f64) -> usize {
    for pair in SIZES.windows(2) {
        let ((from, small), (to, large)) = (pair[0], pair[1]);
        if percent < to {
            let exponent = (percent - from) / (to - from);
            let bytes = small * (large / small).powf(exponent);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "100 to 16,384")]
            return bytes as usize;
        }
    }
    16_384
}
