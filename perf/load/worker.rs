//! One thread of the load: its connections, and the loop that sends requests and reads responses.
//!
//! Closed loop: each connection sends its next request when it has a response. Open loop: requests
//! are due at a constant rate; a latency begins when the request was due, also if no connection was
//! free then, so that a slow server does not slow down the measurement (no coordinated omission).

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mio::{Events, Poll, Token, Waker};

use crate::clock::{Clock, wall_micros};
use crate::connection::Connection;
use crate::histogram::Histogram;
use crate::requests::{RequestOptions, RequestPool};

const WAKER: Token = Token(usize::MAX);
/// Maximum wait for responses after the end.
const GRACE: u64 = 10_000_000_000;
/// Failed connections after which a worker gives up.
const ERRORS_MAX: u64 = 10_000;

#[derive(Clone, Debug)]
pub(crate) struct LoadOptions {
    pub(crate) address: SocketAddr,
    pub(crate) connections: usize,
    pub(crate) seconds: f64,
    /// Requests of this time are sent and counted, but their latencies are not recorded.
    pub(crate) warmup: f64,
    /// Requests per second of this worker; `None` is the closed loop.
    pub(crate) rate: Option<f64>,
    /// The pause of a connection of the closed loop after a 429 or 503.
    pub(crate) pause: Duration,
}

#[derive(Debug)]
pub(crate) struct Totals {
    pub(crate) sent: u64,
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Connections that failed or were closed by the server, and requests without a response.
    pub(crate) errors: u64,
    pub(crate) unanswered: u64,
    /// From the first request to the last response.
    pub(crate) nanos: u64,
    pub(crate) latencies: Histogram,
}

impl Totals {
    pub(crate) fn new() -> Self {
        let latencies = Histogram::new();
        Self { sent: 0, statuses: BTreeMap::new(), errors: 0, unanswered: 0, nanos: 0, latencies }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.sent += other.sent;
        self.errors += other.errors;
        self.unanswered += other.unanswered;
        self.nanos = self.nanos.max(other.nanos);
        self.latencies.merge(&other.latencies);
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
    }
}

struct Worker<'a> {
    options: &'a LoadOptions,
    clock: Clock,
    poll: Poll,
    connections: Vec<Option<Connection>>,
    /// When the request of each connection was due.
    due: Vec<Option<u64>>,
    free: Vec<usize>,
    /// Connections that pause, with the end of the pause.
    paused: VecDeque<(u64, usize)>,
    pause: u64,
    in_flight: usize,
    requests: RequestPool,
    schedule: Schedule,
    totals: Totals,
}

/// When requests are due, in nanoseconds since the beginning.
#[derive(Debug)]
struct Schedule {
    /// `None`: whenever a connection is free.
    interval: Option<f64>,
    nth: f64,
    warmup: u64,
    end: u64,
}

impl Schedule {
    fn new(options: &LoadOptions) -> Self {
        let nanos = |seconds: f64| Duration::from_secs_f64(seconds).as_nanos().try_into().unwrap_or(u64::MAX);
        let interval = options.rate.map(|rate| 1e9 / rate);
        Self {
            interval,
            nth: 0.0,
            warmup: nanos(options.warmup),
            end: nanos(options.warmup + options.seconds),
        }
    }

    /// The time of the next request, if it is due at `now`.
    fn next_due(&mut self, now: u64) -> Option<u64> {
        let due = self.peek()?;
        let due = if self.interval.is_some() { due } else { now };
        if due > now || due >= self.end {
            return None;
        }
        self.nth += 1.0;
        Some(due)
    }

    fn peek(&self) -> Option<u64> {
        let Some(interval) = self.interval else { return Some(0) };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "nanoseconds of minutes")]
        let due = (self.nth * interval) as u64;
        (due < self.end).then_some(due)
    }

    /// Returns whether all requests are sent.
    fn is_over(&self, now: u64) -> bool {
        if self.interval.is_some() { self.peek().is_none() } else { now >= self.end }
    }
}

/// Runs worker `nth` until all its requests are answered.
pub(crate) fn run(nth: u64, options: &LoadOptions, requests: &RequestOptions) -> io::Result<Totals> {
    let poll = Poll::new()?;
    let mut connections = Vec::with_capacity(options.connections);
    for index in 0..options.connections {
        connections.push(Some(Connection::open(options.address, poll.registry(), Token(index))?));
    }
    let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
    let clock = Clock::start();
    let mut worker = Worker {
        options,
        clock,
        poll,
        due: vec![None; connections.len()],
        free: (0..connections.len()).rev().collect(),
        paused: VecDeque::new(),
        pause: u64::try_from(options.pause.as_nanos()).unwrap_or(u64::MAX),
        connections,
        in_flight: 0,
        requests: RequestPool::new(requests, nth << 48, wall_micros()),
        schedule: Schedule::new(options),
        totals: Totals::new(),
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        if let Some(rate) = options.rate {
            let (stop, waker) = (&stop, Arc::clone(&waker));
            std::thread::Builder::new().spawn_scoped(scope, move || pace(clock, rate, &waker, stop))?;
        }
        let result = worker.run_loop();
        stop.store(true, Ordering::Relaxed);
        result
    })?;
    Ok(worker.totals)
}

/// Wakes the worker whenever a request is due. The timeout of epoll has a resolution of a millisecond.
fn pace(clock: Clock, rate: f64, waker: &Waker, stop: &AtomicBool) {
    let interval = (1e9 / rate).max(20_000.0);
    let mut nth = 0.0;
    while !stop.load(Ordering::Relaxed) {
        nth += 1.0;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "nanoseconds of minutes")]
        let due = (nth * interval) as u64;
        let now = clock.nanos();
        if due > now {
            std::thread::sleep(Duration::from_nanos(due - now));
        } else if now - due > 1_000_000 {
            // Too late for these requests: the worker is awake and sends them.
            nth = (Duration::from_nanos(now).as_secs_f64() * 1e9 / interval).floor();
            continue;
        }
        if waker.wake().is_err() {
            return;
        }
    }
}

impl Worker<'_> {
    fn run_loop(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut scratch = vec![0; 64 * 1024];
        loop {
            let now = self.clock.nanos();
            self.end_pauses(now);
            self.send_due();
            if self.schedule.is_over(now) && self.in_flight == 0 {
                break;
            }
            if now > self.schedule.end + GRACE || self.totals.errors > ERRORS_MAX {
                self.give_up(now);
                break;
            }
            let timeout = Duration::from_millis(if self.paused.is_empty() { 100 } else { 2 });
            if let Err(error) = self.poll.poll(&mut events, Some(timeout))
                && error.kind() != io::ErrorKind::Interrupted
            {
                return Err(error);
            }
            for event in &events {
                if event.token() != WAKER {
                    self.on_event(event.token().0, event.is_writable(), &mut scratch);
                }
            }
        }
        self.totals.nanos = self.clock.nanos();
        Ok(())
    }

    fn end_pauses(&mut self, now: u64) {
        while let Some(&(end, index)) = self.paused.front()
            && end <= now
        {
            self.paused.pop_front();
            self.free.push(index);
        }
    }

    /// Sends requests that are due on connections that are free.
    fn send_due(&mut self) {
        while let Some(&index) = self.free.last() {
            let Some(due) = self.schedule.next_due(self.clock.nanos()) else { return };
            self.free.pop();
            self.send(index, due);
        }
    }

    fn send(&mut self, index: usize, due: u64) {
        self.totals.sent += 1;
        self.in_flight += 1;
        self.due[index] = Some(due);
        let request = self.requests.next(wall_micros());
        let sent = match &mut self.connections[index] {
            Some(connection) => connection.send(request),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        if sent.is_err() {
            self.failed(index);
        }
    }

    fn on_event(&mut self, index: usize, writable: bool, scratch: &mut [u8]) {
        let Some(connection) = &mut self.connections[index] else { return };
        let received =
            if writable { connection.flush() } else { Ok(()) }.and_then(|()| connection.receive(scratch));
        match received {
            Ok(None) => {}
            Ok(Some(status)) => {
                let now = self.clock.nanos();
                let Some(due) = self.due[index].take() else { return };
                self.in_flight -= 1;
                *self.totals.statuses.entry(status).or_default() += 1;
                if due >= self.schedule.warmup {
                    self.totals.latencies.record(now.saturating_sub(due));
                }
                if self.pause > 0 && matches!(status, 429 | 503) {
                    self.paused.push_back((now + self.pause, index));
                    return;
                }
                match self.schedule.next_due(now) {
                    Some(due) => self.send(index, due),
                    None => self.free.push(index),
                }
            }
            Err(_closed) => self.failed(index),
        }
    }

    /// The connection is gone: opens another one. A request in flight counts as an error, with its
    /// latency until now.
    fn failed(&mut self, index: usize) {
        self.connections[index] = None;
        if let Some(due) = self.due[index].take() {
            self.in_flight -= 1;
            self.totals.errors += 1;
            self.totals.latencies.record(self.clock.nanos().saturating_sub(due));
            self.free.insert(0, index);
        }
        match Connection::open(self.options.address, self.poll.registry(), Token(index)) {
            Ok(connection) => self.connections[index] = Some(connection),
            Err(_refused) => self.totals.errors += 1,
        }
    }

    /// Counts requests without a response with the time that they have waited until now.
    fn give_up(&mut self, now: u64) {
        let mut waiting: Vec<u64> = self.due.iter().flatten().copied().collect();
        if self.schedule.interval.is_some() {
            waiting.extend(std::iter::from_fn(|| self.schedule.next_due(now)));
        }
        for due in waiting {
            self.totals.unanswered += 1;
            self.totals.latencies.record(now.saturating_sub(due));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(rate: Option<f64>) -> Schedule {
        let address = ([127, 0, 0, 1], 1).into();
        let pause = Duration::ZERO;
        Schedule::new(&LoadOptions { address, connections: 1, seconds: 0.5, warmup: 0.5, rate, pause })
    }

    #[test]
    fn a_late_worker_sends_every_request_with_the_time_at_which_it_was_due() {
        let mut schedule = schedule(Some(10.0));
        assert_eq!(schedule.next_due(0), Some(0));
        assert_eq!(schedule.next_due(50_000_000), None);
        let late: Vec<u64> = std::iter::from_fn(|| schedule.next_due(5_000_000_000)).collect();
        assert_eq!(late, (1..10).map(|nth| nth * 100_000_000).collect::<Vec<_>>());
        assert!(schedule.is_over(5_000_000_000));
    }

    #[test]
    fn the_closed_loop_sends_until_its_end() {
        let mut schedule = schedule(None);
        assert_eq!(schedule.next_due(7), Some(7));
        assert_eq!(schedule.next_due(999_999_999), Some(999_999_999));
        assert_eq!(schedule.next_due(1_000_000_000), None);
        assert!(schedule.is_over(1_000_000_000) && !schedule.is_over(999_999_999));
    }
}
