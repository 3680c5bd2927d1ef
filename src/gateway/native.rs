//! Native histograms: buckets of exponential width, of which only the used ones are kept. Has the rules
//! by which Prometheus accepts one, since an invalid one makes the whole scrape fail.

use super::validate::BUCKETS_MAX;

/// A run of consecutive buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The index of the first bucket, relative to the bucket after the previous span.
    pub offset: i32,
    pub length: u32,
}

/// Spans of the positive or of the negative buckets.
pub type Spans = Vec<Span>;

/// The part of a histogram that has no text representation. Exemplars and the time of creation are not
/// kept.
#[derive(Clone, Debug, PartialEq)]
pub struct NativeHistogram {
    /// A bucket is 2^(2^-schema) times as wide as the one before it.
    pub schema: i32,
    pub zero_threshold: f64,
    pub positive_spans: Spans,
    pub negative_spans: Spans,
    pub counts: NativeCounts,
}

/// The counts of the zero bucket and of the buckets of the spans.
#[derive(Clone, Debug, PartialEq)]
pub enum NativeCounts {
    /// Each bucket as the difference to the one before it.
    Integer { zero: u64, positive: Vec<i64>, negative: Vec<i64> },
    /// Each bucket as it is; `count` is that of all observations.
    Float { count: f64, zero: f64, positive: Vec<f64>, negative: Vec<f64> },
}

/// Buckets and spans of each sign.
pub const NATIVE_BUCKETS_MAX: usize = BUCKETS_MAX;

impl NativeHistogram {
    /// Approximate heap memory.
    pub fn heap_bytes(&self) -> usize {
        let (positive, negative) = self.buckets();
        let spans = self.positive_spans.len() + self.negative_spans.len();
        size_of::<Self>() + size_of::<Span>() * spans + 8 * (positive + negative)
    }

    /// The numbers of positive and of negative buckets.
    fn buckets(&self) -> (usize, usize) {
        match &self.counts {
            NativeCounts::Integer { positive, negative, .. } => (positive.len(), negative.len()),
            NativeCounts::Float { positive, negative, .. } => (positive.len(), negative.len()),
        }
    }

    /// Checks what Prometheus checks. `count` and `sum` are those of the histogram.
    pub fn check(&self, count: u64, sum: f64) -> Result<(), &'static str> {
        if !(-4..=8).contains(&self.schema) {
            return Err("its schema must be -4 to 8");
        }
        if self.zero_threshold.is_nan() || self.zero_threshold < 0.0 {
            return Err("its zero threshold must be 0 or more");
        }
        let (positive, negative) = self.buckets();
        for (spans, buckets) in [(&self.positive_spans, positive), (&self.negative_spans, negative)] {
            if buckets > NATIVE_BUCKETS_MAX || spans.len() > NATIVE_BUCKETS_MAX {
                return Err("it has more than 1000 buckets or spans of a sign");
            }
            check_spans(spans, buckets)?;
        }
        match &self.counts {
            NativeCounts::Integer { zero, positive, negative } => {
                let sums = [positive, negative].map(|deltas| sum_of_deltas(deltas));
                let all = sums.into_iter().try_fold(*zero, |all, sum| all.checked_add(sum?));
                let all = all.ok_or("a bucket has a negative count, or the counts are too large")?;
                // Observations of NaN are in no bucket.
                if all == count || (sum.is_nan() && all < count) {
                    Ok(())
                } else {
                    Err("its count must be the sum of its buckets")
                }
            }
            NativeCounts::Float { count, zero, positive, negative } => {
                let all = [count, zero].into_iter().chain(positive).chain(negative);
                if all.into_iter().all(|count| count.is_finite() && *count >= 0.0) {
                    Ok(())
                } else {
                    Err("its counts must be finite and not negative")
                }
            }
        }
    }
}

fn check_spans(spans: &[Span], buckets: usize) -> Result<(), &'static str> {
    let (mut next, mut covered) = (0_i64, 0_u64);
    for (nth, span) in spans.iter().enumerate() {
        if nth > 0 && span.offset < 0 {
            return Err("its spans overlap");
        }
        covered += u64::from(span.length);
        next += i64::from(span.offset) + i64::from(span.length);
        if i32::try_from(next).is_err() {
            return Err("the index of a bucket is out of range");
        }
    }
    if covered == buckets as u64 {
        Ok(())
    } else {
        Err("its spans must have as many buckets as it has counts")
    }
}

/// The sum of all counts; none if one is negative or the sum is too large.
fn sum_of_deltas(deltas: &[i64]) -> Option<u64> {
    let (mut count, mut sum) = (0_i64, 0_u64);
    for delta in deltas {
        count = count.checked_add(*delta)?;
        sum = sum.checked_add(u64::try_from(count).ok()?)?;
    }
    Some(sum)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Counts 7: 2 in the zero bucket, 1, 2 and 1 in positive ones, 1 in a negative one.
    pub(in crate::gateway) fn integer() -> NativeHistogram {
        NativeHistogram {
            schema: 3,
            zero_threshold: 1e-9,
            positive_spans: vec![Span { offset: -2, length: 2 }, Span { offset: 4, length: 1 }],
            negative_spans: vec![Span { offset: 5, length: 1 }],
            counts: NativeCounts::Integer { zero: 2, positive: vec![1, 1, -1], negative: vec![1] },
        }
    }

    pub(in crate::gateway) fn float() -> NativeHistogram {
        let counts =
            NativeCounts::Float { count: 4.5, zero: 1.0, positive: vec![0.5, 1.0, 1.5], negative: vec![0.5] };
        NativeHistogram { counts, ..integer() }
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut NativeHistogram), part: &str) {
        let mut native = integer();
        change(&mut native);
        let reason = native.check(7, 1.0).unwrap_err();
        assert!(reason.contains(part), "{reason}");
    }

    fn deltas(native: &mut NativeHistogram, new: Vec<i64>) {
        let NativeCounts::Integer { positive, .. } = &mut native.counts else { panic!("a float") };
        *positive = new;
    }

    #[test]
    fn a_histogram_that_prometheus_would_refuse_is_refused() {
        assert_eq!(integer().check(7, 1.0), Ok(()));
        assert_eq!(float().check(4, 1.0), Ok(()));
        assert_eq!(integer().check(8, f64::NAN), Ok(()), "one observation was NaN");
        assert!(integer().check(8, 1.0).is_err() && integer().check(6, f64::NAN).is_err());
        refused(|native| native.schema = 9, "schema");
        refused(|native| native.schema = -5, "schema");
        refused(|native| native.zero_threshold = f64::NAN, "threshold");
        refused(|native| native.zero_threshold = -1.0, "threshold");
        refused(|native| native.positive_spans[1].offset = -1, "overlap");
        refused(|native| native.positive_spans[0].offset = i32::MAX, "out of range");
        refused(|native| native.positive_spans[1].length = 2, "as many buckets");
        refused(|native| native.positive_spans[1].length = u32::MAX, "out of range");
        refused(|native| deltas(native, vec![1, -2, 3]), "negative count");
        refused(|native| deltas(native, vec![i64::MAX, 1, 1]), "too large");
        for bad in [-1.0, f64::NAN, f64::INFINITY] {
            let counts =
                NativeCounts::Float { count: bad, zero: 0.0, positive: vec![1.0; 3], negative: vec![1.0] };
            assert!(NativeHistogram { counts, ..integer() }.check(1, 1.0).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_number_of_buckets_is_bounded() {
        let of = |buckets: u32| {
            let mut native = integer();
            native.positive_spans = vec![Span { offset: 0, length: buckets }];
            deltas(&mut native, vec![0; buckets as usize]);
            native.check(3, 1.0)
        };
        let max = u32::try_from(NATIVE_BUCKETS_MAX).unwrap();
        assert_eq!((of(0), of(max)), (Ok(()), Ok(())));
        assert!(of(max + 1).unwrap_err().contains("more than 1000"));
    }
}
