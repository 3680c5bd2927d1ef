//! The writer against a repository in memory that fails as it is told to.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::event::row;
use crate::event::{EventId, Timestamp};
use crate::journal::Journal;
use crate::lifecycle::Notice;
use crate::storage::BreakerLimits;
use crate::storage::breaker::State;
use crate::storage::memory::{Call, Fault, MemoryRepository};

/// A writer with all it is linked to. The clock is the system's, since the writer really sleeps.
struct Bench {
    writer: Writer,
    repository: Arc<MemoryRepository>,
    buffer: Arc<Buffer>,
    ledger: Arc<Ledger>,
    breaker: Arc<Breaker>,
    drain: Arc<Drain>,
    clock: Clock,
    notices: crossbeam::channel::Receiver<Notice>,
    lifecycle: Lifecycle,
}

const ROWS_MAX: usize = 100;

impl Bench {
    fn new(linger: Duration) -> Self {
        let clock = Clock::system();
        let ledger = Arc::new(Ledger::new(1));
        let limits = crate::buffer::Limits {
            rows_max: 1000,
            bytes_max: 1 << 20,
            batch_rows_max: ROWS_MAX,
            batch_bytes_max: 1 << 20,
            spill_bytes_max: 0,
        };
        let (buffer, parker) = Buffer::new(limits, 1, ledger.clone());
        let (buffer, repository) = (Arc::new(buffer), Arc::new(MemoryRepository::new()));
        let breaker = Arc::new(Breaker::new(BreakerLimits {
            failure_threshold: 3,
            success_threshold: 1,
            timeout: Duration::from_millis(20),
        }));
        let (lifecycle, notices) = Lifecycle::new();
        let drain = Arc::new(Drain::default());
        let links = Links {
            buffer: buffer.clone(),
            journal: Arc::new(Journal::new(1).0),
            repository: repository.clone(),
            breaker: breaker.clone(),
            ledger: ledger.clone(),
            figures: Arc::new(WriterFigures::default()),
            drain: drain.clone(),
            lifecycle: lifecycle.clone(),
            clock: clock.clone(),
        };
        let batch = BatchLimits { rows_max: ROWS_MAX, bytes_max: 1 << 20, linger };
        let writer = Writer::new(links, parker, batch);
        Self { writer, repository, buffer, ledger, breaker, drain, clock, notices, lifecycle }
    }

    /// Admits events `numbers` as one block.
    fn admit(&self, numbers: impl IntoIterator<Item = u64>) {
        let (mut bytes, mut rows) = (Vec::new(), 0);
        for number in numbers {
            row::begin(&mut bytes, id(number), Timestamp::from_millis(1), Timestamp::from_millis(2));
            row::text(&mut bytes, b"service");
            row::text(&mut bytes, number.to_string().as_bytes());
            row::metadata(&mut bytes, None);
            rows += 1;
        }
        let len = bytes.len();
        let blocks = std::iter::once((&*bytes, rows));
        self.buffer.admit(0, (rows, len), self.clock.now(), blocks, |_| ()).unwrap();
    }

    /// Has the writer drain what there is.
    fn drain(&mut self, patience: Duration) {
        self.drain.by(self.clock.now().plus(patience));
        self.writer.run();
    }

    fn stored(&self) -> Vec<u64> {
        self.repository.events().iter().map(|event| event.message.parse().unwrap()).collect()
    }

    #[track_caller]
    fn settled(&self, stored: u64, duplicate: u64, dead: u64) {
        let balance = self.ledger.balance();
        assert_eq!((balance.stored, balance.duplicate, balance.dead), (stored, duplicate, dead));
        assert_eq!(balance.buffered(), 0);
        assert_eq!(self.buffer.occupied(), crate::buffer::Occupied::default());
    }
}

const SOON: Duration = Duration::from_secs(30);
const NEVER: Duration = Duration::from_mins(10);

fn id(number: u64) -> EventId {
    EventId::keyed(number, [0; 10])
}

fn error(sqlstate: &str) -> StoreError {
    StoreError { sqlstate: Some(sqlstate.into()), ..StoreError::unreachable("on purpose") }
}

fn paths(repository: &MemoryRepository) -> Vec<StorePath> {
    let path = |call| if let Call::Store { path, .. } = call { Some(path) } else { None };
    repository.calls().into_iter().filter_map(path).collect()
}

#[test]
fn a_batch_waits_for_company_until_it_is_full() {
    let mut bench = Bench::new(NEVER);
    assert_eq!(bench.writer.tick(), Next::Sleep(bench.writer.prepare_at));
    bench.admit(0..99);
    let Next::Sleep(_) = bench.writer.tick() else { panic!("99 of 100 rows were written at once") };
    bench.admit(99..101);
    assert_eq!(bench.writer.tick(), Next::Tick);
    assert_eq!(bench.stored().len(), 99, "a block is not torn apart");
    assert_eq!(bench.ledger.balance().buffered(), 2);
    bench.drain(SOON);
    bench.settled(101, 0, 0);
}

#[test]
fn a_batch_goes_when_its_oldest_event_has_waited_long_enough() {
    let mut bench = Bench::new(Duration::ZERO);
    bench.admit([1]);
    assert_eq!(bench.writer.tick(), Next::Tick);
    bench.settled(1, 0, 0);
}

#[test]
fn what_time_heals_is_tried_again_until_it_is_stored_once() {
    let mut bench = Bench::new(Duration::ZERO);
    bench.writer.tick();
    bench.repository.meet([
        Fault::Fail(StoreError::unreachable("no route")),
        Fault::Fail(error("40P01")),
        Fault::Fail(error("53300")),
    ]);
    bench.admit(0..10);
    bench.drain(SOON);
    bench.settled(10, 0, 0);
    assert_eq!(paths(&bench.repository), [StorePath::Copy; 4]);
}

#[test]
fn a_commit_without_an_answer_is_tried_again_through_the_stage() {
    let mut bench = Bench::new(Duration::ZERO);
    bench.writer.tick();
    bench.repository.meet([Fault::FailAfter(StoreError {
        in_doubt: true,
        ..StoreError::unreachable("connection closed")
    })]);
    bench.admit(0..10);
    bench.drain(SOON);
    // They had been stored: now they are found there.
    bench.settled(0, 10, 0);
    assert_eq!(bench.stored().len(), 10);
    assert_eq!(paths(&bench.repository), [StorePath::Copy, StorePath::Stage]);
}

#[test]
fn what_a_copy_fails_with_for_no_told_reason_is_put_to_the_stage_once() {
    let mut bench = Bench::new(Duration::ZERO);
    bench.writer.tick();
    bench.repository.meet([Fault::Fail(error("XX000")), Fault::Fail(error("XX000"))]);
    bench.admit(0..10);
    bench.drain(SOON);
    bench.settled(10, 0, 0);
    // What the stage says no better is tried again in time, the stage included.
    assert_eq!(paths(&bench.repository), [StorePath::Copy, StorePath::Stage, StorePath::Stage]);
}

#[test]
fn an_id_that_is_stored_already_costs_no_other_row() {
    let mut bench = Bench::new(Duration::ZERO);
    bench.admit(0..5);
    bench.writer.tick();
    bench.admit([3, 7, 7, 8]);
    bench.drain(SOON);
    bench.settled(7, 2, 0);
    assert_eq!(bench.stored(), [0, 1, 2, 3, 4, 7, 8]);
}

#[test]
fn a_fault_of_the_configuration_opens_the_breaker_and_buries_nothing() {
    let mut bench = Bench::new(Duration::ZERO);
    bench.writer.tick();
    bench.repository.meet([Fault::Fail(error("42P01"))]);
    bench.admit(0..10);
    assert_eq!(bench.writer.tick(), Next::Tick);
    // Opened by one failure, and closed by the success after its time.
    assert_eq!((bench.breaker.transitions(), bench.breaker.state()), (3, State::Closed));
    bench.settled(10, 0, 0);
}

#[test]
fn a_drain_is_given_up_at_its_deadline_and_the_events_are_still_counted() {
    let mut bench = Bench::new(NEVER);
    bench.writer.tick();
    bench.repository.set_outage(Some(StoreError::unreachable("gone")));
    bench.admit(0..10);
    bench.drain(Duration::from_millis(100));
    assert_eq!((bench.ledger.balance().buffered(), bench.buffer.occupied().rows), (10, 10));
}

#[test]
fn a_drain_tries_although_the_breaker_is_open() {
    let mut bench = Bench::new(NEVER);
    bench.writer.tick();
    let breaker = Breaker::new(BreakerLimits { timeout: NEVER, ..BreakerLimits::default() });
    bench.writer.links.breaker = Arc::new(breaker);
    bench.writer.links.breaker.trip(bench.clock.now());
    bench.admit(0..10);
    bench.drain(SOON);
    bench.settled(10, 0, 0);
}

#[test]
fn a_batch_that_takes_too_long_goes_in_pieces() {
    let mut bench = Bench::new(Duration::ZERO);
    bench.writer.tick();
    let timeout = || Fault::Fail(StoreError { timed_out: true, ..StoreError::unreachable("silence") });
    // Too long: 100 rows, then 16 once more, which is as few as it gets.
    bench.repository.meet([timeout(), timeout()]);
    bench.admit(0..100);
    bench.drain(SOON);
    bench.settled(100, 0, 0);
    let sizes: Vec<_> = bench
        .repository
        .calls()
        .into_iter()
        .filter_map(|call| match call {
            Call::Store { rows, .. } => Some(rows),
            Call::Prepare
            | Call::Page
            | Call::Chunk
            | Call::Count
            | Call::Find
            | Call::Totals
            | Call::Ping
            | Call::Days
            | Call::Tidy
            | Call::LastSweep
            | Call::Sweep => None,
        })
        .collect();
    assert_eq!(sizes, [100, 16, 16, 16, 16, 16, 16, 16, 4]);
}

#[test]
fn a_writer_that_panics_poisons_the_process() {
    let bench = Bench::new(Duration::ZERO);
    bench.repository.meet([Fault::Panic]);
    let mut writer = bench.writer;
    let thread = bench.lifecycle.spawn("writer", move || writer.run()).unwrap();
    assert_eq!(bench.notices.recv_timeout(SOON), Ok(Notice::ThreadDied { name: "writer".into() }));
    assert!(thread.join().is_err());
    assert_eq!(bench.lifecycle.phase(), Phase::Poisoned);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever rows are bad, whether COPY names them or not: those are buried, and all others are stored.
    #[test]
    fn bad_rows_are_buried_and_no_other_row_is(
        bad in prop::collection::btree_set(0..ROWS_MAX as u64, 0..ROWS_MAX),
        named in any::<bool>(),
        blocks in 1..8_u64,
        outage in any::<bool>(),
    ) {
        let mut bench = Bench::new(Duration::ZERO);
        bench.writer.tick();
        let refused: std::collections::BTreeSet<_> = bad.iter().map(|number| id(*number)).collect();
        bench.repository.refuse(named, move |row| refused.contains(&row.event_id()).then_some("22P05"));
        if outage {
            bench.repository.meet([Fault::Fail(error("57P01"))]);
        }
        let size = (ROWS_MAX as u64).div_ceil(blocks);
        for start in (0..ROWS_MAX as u64).step_by(usize::try_from(size).unwrap()) {
            bench.admit(start..(start + size).min(ROWS_MAX as u64));
        }
        bench.drain(SOON);
        let good: Vec<_> = (0..ROWS_MAX as u64).filter(|number| !bad.contains(number)).collect();
        prop_assert_eq!(bench.stored(), good);
        let dead: Vec<_> = bench.repository.dead().into_iter().map(|(id, sqlstate, _)| (id, sqlstate)).collect();
        let wanted: Vec<_> = bad.iter().map(|number| (id(*number), "22P05".to_owned())).collect();
        prop_assert_eq!(dead, wanted);
        bench.settled((ROWS_MAX - bad.len()) as u64, 0, bad.len() as u64);
    }
}
