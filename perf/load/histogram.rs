//! A histogram of latencies with a relative error below 1 %, like `HdrHistogram`: 128 buckets for each
//! power of two.

const SUB_BITS: u32 = 7;
const SUB: usize = 1 << SUB_BITS;
/// Values below `2 * SUB` have a bucket each; above, `SUB` buckets per power of two.
const BUCKETS: usize = (64 - SUB_BITS as usize) * SUB + SUB;

/// Counts of latencies in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max: 0 }
    }

    pub(crate) fn record(&mut self, nanos: u64) {
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
        self.max = self.max.max(nanos);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    pub(crate) fn max(&self) -> u64 {
        self.max
    }

    /// The latency that `per_100_000` of 100,000 values do not exceed.
    pub(crate) fn quantile(&self, per_100_000: u64) -> u64 {
        let rank = (u128::from(self.total) * u128::from(per_100_000)).div_ceil(100_000);
        let mut seen = 0_u128;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if *count > 0 && seen >= rank {
                return upper_bound(bucket).min(self.max);
            }
        }
        self.max
    }
}

fn bucket(value: u64) -> usize {
    let shift = (value | 1).ilog2().saturating_sub(SUB_BITS);
    let mantissa = usize::try_from(value >> shift).expect("the mantissa has 8 bits");
    shift as usize * SUB + mantissa
}

fn upper_bound(bucket: usize) -> u64 {
    let shift = (bucket / SUB).saturating_sub(1);
    let mantissa = (bucket - shift * SUB) as u64;
    ((mantissa + 1) << shift).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_within_one_percent_of_the_value() {
        let mut histogram = Histogram::new();
        for value in 1..=1_000_000_u64 {
            histogram.record(value);
        }
        for per_100_000 in [1_000, 50_000, 90_000, 99_000, 99_990, 100_000] {
            let exact = per_100_000 * 10;
            let found = histogram.quantile(per_100_000);
            assert!(found >= exact && found <= exact + exact / 100, "{found} for {exact}");
        }
        assert_eq!((histogram.total(), histogram.max()), (1_000_000, 1_000_000));
    }

    #[test]
    fn each_bucket_ends_where_the_next_begins() {
        for index in 0..BUCKETS - SUB {
            assert_eq!(bucket(upper_bound(index)), index);
            assert_eq!(bucket(upper_bound(index) + 1), index + 1);
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }
}
