//! Request counts and durations by method, route and status.
//!
//! Each acceptor writes its own cells without waiting; a scrape sums them. A cell is allocated by
//! its first request.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::http::Method;

/// Upper bounds of the buckets in milliseconds: from the duration of a POST to the timeout of a
/// query.
pub(super) const BUCKETS_MS: [f64; 16] =
    [0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 50.0, 100.0, 500.0, 1000.0, 5000.0];
const BUCKETS_NANOS: [u64; 16] = [
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    50_000_000,
    100_000_000,
    500_000_000,
    1_000_000_000,
    5_000_000_000,
];

const METHODS: [Method; 8] = [
    Method::Get,
    Method::Head,
    Method::Post,
    Method::Put,
    Method::Delete,
    Method::Options,
    Method::Patch,
    Method::Other,
];

/// The statuses with a cell of their own; the last entry counts all others.
const STATUSES: [u16; 25] = [
    200, 202, 204, 304, 400, 401, 403, 404, 405, 406, 408, 409, 411, 413, 414, 415, 417, 421, 429, 431, 500,
    501, 503, 505, 0,
];

/// Counts of one method, route and status.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RequestCounts {
    /// Not cumulative; the last bucket is above the highest bound.
    pub buckets: [u64; BUCKETS_NANOS.len() + 1],
    pub sum_nanos: u64,
}

impl RequestCounts {
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[derive(Debug, Default)]
struct RequestCell {
    buckets: [AtomicU64; BUCKETS_NANOS.len() + 1],
    sum_nanos: AtomicU64,
}

/// One acceptor's cells, by method, route and status.
type Cells = Box<[OnceLock<Box<RequestCell>>]>;

/// The cells of all acceptors.
#[derive(Debug)]
pub struct HttpMetrics {
    routes: &'static [&'static str],
    acceptors: Box<[Cells]>,
}

impl HttpMetrics {
    /// `routes` are the label values; callers pass an index into them.
    pub fn new(acceptors: usize, routes: &'static [&'static str]) -> Self {
        let cells = METHODS.len() * routes.len() * STATUSES.len();
        let acceptors = (0..acceptors).map(|_| (0..cells).map(|_| OnceLock::new()).collect()).collect();
        Self { routes, acceptors }
    }

    #[inline]
    pub fn record(&self, acceptor: usize, method: Method, route: usize, status: u16, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let status = STATUSES.iter().position(|known| *known == status).unwrap_or(STATUSES.len() - 1);
        let at = (method as usize * self.routes.len() + route) * STATUSES.len() + status;
        let cell = self.acceptors[acceptor][at].get_or_init(Box::default);
        let bucket = BUCKETS_NANOS.iter().position(|bound| nanos <= *bound).unwrap_or(BUCKETS_NANOS.len());
        cell.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        cell.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// All nonzero counts, summed over the acceptors, in a fixed order.
    pub fn collect(&self) -> Vec<(Method, &'static str, u16, RequestCounts)> {
        let mut all = Vec::new();
        for (m, method) in METHODS.into_iter().enumerate() {
            for (r, route) in self.routes.iter().enumerate() {
                for (s, status) in STATUSES.into_iter().enumerate() {
                    let at = (m * self.routes.len() + r) * STATUSES.len() + s;
                    let mut sum = RequestCounts::default();
                    for cell in self.acceptors.iter().filter_map(|cells| cells[at].get()) {
                        for (total, bucket) in sum.buckets.iter_mut().zip(&cell.buckets) {
                            *total += bucket.load(Ordering::Relaxed);
                        }
                        sum.sum_nanos += cell.sum_nanos.load(Ordering::Relaxed);
                    }
                    if sum.count() > 0 {
                        all.push((method, *route, status, sum));
                    }
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_summed_over_acceptors_into_buckets_with_inclusive_bounds() {
        let metrics = HttpMetrics::new(2, &["/a", "/b"]);
        metrics.record(0, Method::Post, 1, 202, Duration::from_micros(5));
        metrics.record(1, Method::Post, 1, 202, Duration::from_nanos(5_001));
        metrics.record(1, Method::Get, 0, 599, Duration::from_mins(1));
        let all = metrics.collect();
        assert_eq!(all.len(), 2);
        let (method, route, status, requests) = all[0];
        assert_eq!((method, route, status, requests.count()), (Method::Get, "/a", 0, 1));
        assert_eq!(requests.buckets[16], 1);
        let (method, route, status, requests) = all[1];
        assert_eq!((method, route, status, requests.sum_nanos), (Method::Post, "/b", 202, 10_001));
        assert_eq!(requests.buckets[..3], [1, 1, 0]);
    }

    #[test]
    fn bucket_bounds_in_ms_and_nanos_agree() {
        for (ms, nanos) in BUCKETS_MS.iter().zip(BUCKETS_NANOS) {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let wanted = nanos as f64;
            assert!((ms * 1e6 - wanted).abs() < 0.5, "{ms} {nanos}");
        }
    }
}
