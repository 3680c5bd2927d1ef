//! Tests of the writer against an in-memory repository with injected faults.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::event::row;
use crate::event::{ArrivalNumber, EventId, Timestamp};
use crate::journal::Journal;
use crate::lifecycle::LifecycleEvent;
use crate::storage::BreakerLimits;
use crate::storage::breaker::BreakerState;
use crate::storage::memory::{InjectedFault, MemoryRepository, RepositoryCall};

/// A writer with its dependencies. Uses the system clock, since the writer really sleeps.
struct WriterFixture {
    writer: Writer,
    repository: Arc<MemoryRepository>,
    buffer: Arc<Buffer>,
    ledger: Arc<Ledger>,
    breaker: Arc<Breaker>,
    drain: Arc<Drain>,
    queue: StoreQueue,
    clock: Clock,
    notices: crossbeam::channel::Receiver<LifecycleEvent>,
    lifecycle: Lifecycle,
}

const ROWS_MAX: usize = 100;
const CONNECTIONS: usize = 2;

impl WriterFixture {
    fn new(linger: Duration) -> Self {
        let clock = Clock::system();
        let ledger = Arc::new(Ledger::new(1));
        let limits = crate::buffer::BufferLimits {
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
        let deps = WriterDeps {
            buffer: buffer.clone(),
            journal: Arc::new(Journal::new(1).0),
            repository: repository.clone(),
            breaker: breaker.clone(),
            ledger: ledger.clone(),
            metrics: Arc::new(WriterMetrics::default()),
            drain: drain.clone(),
            lifecycle: lifecycle.clone(),
            clock: clock.clone(),
        };
        let batch = BatchLimits { rows_max: ROWS_MAX, bytes_max: 1 << 20, linger, wait_max: NEVER };
        let (link, queue) = store_link(CONNECTIONS);
        let writer = Writer::new(deps, parker, batch, link);
        Self { writer, repository, buffer, ledger, breaker, drain, queue, clock, notices, lifecycle }
    }

    /// A step of the writer. Runs the jobs that it starts, and the retry of a failed one.
    fn tick(&mut self) -> WriterStep {
        let step = self.writer.tick();
        self.run_jobs();
        self.writer.receive_completions();
        if self.writer.failed.is_empty() { step } else { self.writer.tick() }
    }

    /// Does the work of the store threads.
    fn run_jobs(&self) {
        self.queue.jobs.try_iter().for_each(|job| self.run_job(job));
    }

    /// Starts two full batches. Returns their jobs.
    fn start_two(&mut self) -> [StoreJob; 2] {
        self.tick();
        self.admit(0..100);
        self.admit(100..200);
        self.writer.tick();
        self.writer.tick();
        self.queue.jobs.try_iter().collect::<Vec<_>>().try_into().unwrap()
    }

    fn run_job(&self, job: StoreJob) {
        self.queue.completions.send(job.run(&*self.repository, &self.clock)).unwrap();
        self.buffer.wake_writer();
    }

    /// Admits the events `numbers` as one block.
    fn admit(&self, numbers: impl IntoIterator<Item = u64>) {
        admit(&self.buffer, &self.clock, numbers, || ());
    }

    /// Drains the buffer with the given timeout.
    fn drain(&mut self, timeout: Duration) {
        self.drain.set_deadline(self.clock.now().plus(timeout));
        loop {
            match self.tick() {
                WriterStep::Continue => {}
                WriterStep::SleepUntil(until) => {
                    let wait = until.since(self.clock.now());
                    self.clock.park(&self.writer.parker, wait);
                }
                WriterStep::Stop => return,
            }
        }
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

/// Admits the events `numbers` as one block. Calls `before_push` between the reservation and the
/// push.
fn admit(
    buffer: &Buffer,
    clock: &Clock,
    numbers: impl IntoIterator<Item = u64>,
    mut before_push: impl FnMut(),
) {
    let (mut bytes, mut rows) = (Vec::new(), 0);
    for number in numbers {
        row::append_header(
            &mut bytes,
            id(number),
            Timestamp::from_millis(1),
            Timestamp::from_millis(2),
            ArrivalNumber::default(),
        );
        row::append_text(&mut bytes, b"service");
        row::append_text(&mut bytes, number.to_string().as_bytes());
        row::append_metadata(&mut bytes, None);
        rows += 1;
    }
    let len = bytes.len();
    let blocks = std::iter::once((&*bytes, rows));
    buffer.admit(0, (rows, len), clock.now(), blocks, |_| before_push()).unwrap();
}

const SOON: Duration = Duration::from_secs(30);
const NEVER: Duration = Duration::from_mins(10);

fn id(number: u64) -> EventId {
    EventId::keyed(number, [0; 10])
}

fn error(sqlstate: &str) -> StoreError {
    StoreError { sqlstate: Some(sqlstate.into()), ..StoreError::client_side("on purpose") }
}

fn paths(repository: &MemoryRepository) -> Vec<StorePath> {
    let path = |call| if let RepositoryCall::Store { path, .. } = call { Some(path) } else { None };
    repository.calls().into_iter().filter_map(path).collect()
}

#[test]
fn batch_lingers_until_it_is_full() {
    let mut fixture = WriterFixture::new(NEVER);
    assert_eq!(fixture.tick(), WriterStep::SleepUntil(fixture.writer.prepare_at));
    fixture.admit(0..99);
    let WriterStep::SleepUntil(_) = fixture.tick() else { panic!("99 of 100 rows were written at once") };
    fixture.admit(99..101);
    assert_eq!(fixture.tick(), WriterStep::Continue);
    assert_eq!(fixture.stored().len(), 99, "a block is not split");
    assert_eq!(fixture.ledger.balance().buffered(), 2);
    fixture.drain(SOON);
    fixture.settled(101, 0, 0);
}

#[test]
fn writer_that_goes_to_sleep_during_an_admission_is_woken_by_it() {
    let WriterFixture { mut writer, buffer, repository, queue, clock, notices, lifecycle, .. } =
        WriterFixture::new(Duration::ZERO);
    admit(&buffer, &clock, [1], || ());
    // Takes the wake-up of that event.
    writer.parker.park_timeout(Duration::ZERO);
    admit(&buffer, &clock, [2], || {
        assert_eq!(writer.tick(), WriterStep::Continue);
        // The completion is received before the writer sleeps, so its wake-up is left out.
        let job = queue.jobs.try_recv().unwrap();
        queue.completions.send(job.run(&*repository, &clock)).unwrap();
        assert_eq!(writer.tick(), WriterStep::SleepUntil(writer.prepare_at));
    });
    assert_eq!(repository.events().len(), 1, "the second event is in the shard");
    let thread = lifecycle.spawn("writer", move || writer.parker.park()).unwrap();
    let woken = notices.recv_timeout(SOON);
    assert_eq!(woken, Ok(LifecycleEvent::ThreadDied { name: "writer".into() }), "the writer sleeps on");
    thread.join().unwrap();
}

#[test]
fn batch_is_written_when_its_oldest_event_has_lingered() {
    let mut fixture = WriterFixture::new(Duration::ZERO);
    fixture.admit([1]);
    assert_eq!(fixture.tick(), WriterStep::Continue);
    fixture.settled(1, 0, 0);
}

#[test]
fn transient_failures_are_retried_until_the_batch_is_stored_once() {
    let mut fixture = WriterFixture::new(Duration::ZERO);
    fixture.tick();
    fixture.repository.inject_faults([
        InjectedFault::Fail(StoreError::client_side("no route")),
        InjectedFault::Fail(error("40P01")),
        InjectedFault::Fail(error("53300")),
    ]);
    fixture.admit(0..10);
    fixture.drain(SOON);
    fixture.settled(10, 0, 0);
    assert_eq!(paths(&fixture.repository), [StorePath::Copy; 4]);
}

#[test]
fn commit_in_doubt_is_retried_through_the_staging_table() {
    let mut fixture = WriterFixture::new(Duration::ZERO);
    fixture.tick();
    fixture.repository.inject_faults([InjectedFault::FailAfter(StoreError {
        in_doubt: true,
        ..StoreError::client_side("connection closed")
    })]);
    fixture.admit(0..10);
    fixture.drain(SOON);
    // The first attempt stored the rows; the second finds duplicates.
    fixture.settled(0, 10, 0);
    assert_eq!(fixture.stored().len(), 10);
    assert_eq!(paths(&fixture.repository), [StorePath::Copy, StorePath::Staging]);
}

#[test]
fn internal_error_of_copy_is_retried_through_the_staging_table() {
    let mut fixture = WriterFixture::new(Duration::ZERO);
    fixture.tick();
    fixture
        .repository
        .inject_faults([InjectedFault::Fail(error("XX000")), InjectedFault::Fail(error("XX000"))]);
    fixture.admit(0..10);
    fixture.drain(SOON);
    fixture.settled(10, 0, 0);
    // An internal error of the staged path is transient and retried on the same path.
    assert_eq!(paths(&fixture.repository), [StorePath::Copy, StorePath::Staging, StorePath::Staging]);
}

#[test]
fn duplicate_ids_do_not_affect_other_rows() {
    let mut fixture = WriterFixture::new(Duration::ZERO);
    fixture.admit(0..5);
    fixture.tick();
    fixture.admit([3, 7, 7, 8]);
    fixture.drain(SOON);
    fixture.settled(7, 2, 0);
    assert_eq!(fixture.stored(), [0, 1, 2, 3, 4, 7, 8]);
}

#[test]
fn misconfiguration_opens_the_breaker_and_creates_no_dead_letters() {
    let mut fixture = WriterFixture::new(Duration::ZERO);
    fixture.tick();
    fixture.repository.inject_faults([InjectedFault::Fail(error("42P01"))]);
    fixture.admit(0..10);
    assert_eq!(fixture.tick(), WriterStep::Continue);
    // One failure opens the breaker; the first success after its timeout closes it.
    assert_eq!((fixture.breaker.transitions(), fixture.breaker.state()), (3, BreakerState::Closed));
    fixture.settled(10, 0, 0);
}

#[test]
fn error_of_one_row_dead_letters_that_row_alone_and_leaves_the_breaker_closed() {
    for sqlstate in ["P0001", "22P02", "ORDER"] {
        for is_row_reported in [false, true] {
            let mut fixture = WriterFixture::new(Duration::ZERO);
            fixture.tick();
            fixture
                .repository
                .reject_rows(is_row_reported, move |row| (row.message() == b"5").then_some(sqlstate));
            fixture.admit(0..23);
            fixture.drain(SOON);
            fixture.settled(22, 0, 1);
            assert_eq!(fixture.repository.dead()[0].1, sqlstate);
            assert_eq!(fixture.breaker.transitions(), 0);
        }
    }
}

#[test]
fn lone_refused_row_is_dead_lettered_when_the_table_accepts_others() {
    for stored in [0, 5] {
        let mut fixture = WriterFixture::new(Duration::ZERO);
        fixture.tick();
        fixture.repository.reject_rows(true, |row| (row.message() == b"7").then_some("P0001"));
        if stored > 0 {
            fixture.admit(0..stored);
            fixture.tick();
        }
        fixture.admit([7]);
        fixture.drain(SOON);
        fixture.settled(stored, 0, 1);
        assert_eq!(fixture.breaker.transitions(), 0);
    }
}

#[test]
fn error_of_every_row_opens_the_breaker_and_creates_no_dead_letters() {
    for stored in [0, 5] {
        let mut fixture = WriterFixture::new(Duration::ZERO);
        fixture.tick();
        if stored > 0 {
            fixture.admit(100..100 + stored);
            fixture.tick();
        }
        fixture.repository.reject_rows(true, |_| Some("P0001"));
        fixture.admit(0..10);
        assert_eq!(fixture.tick(), WriterStep::Continue);
        assert_eq!(fixture.breaker.state(), BreakerState::Open);
        assert_eq!((fixture.repository.dead(), fixture.ledger.balance().buffered()), (Vec::new(), 10));
        fixture.repository.reject_rows(true, |_| None);
        fixture.drain(SOON);
        fixture.settled(10 + stored, 0, 0);
    }
}

#[test]
fn refused_row_is_judged_once_another_row_is_accepted() {
    let mut fixture = WriterFixture::new(Duration::ZERO);
    fixture.tick();
    // The table is empty and refuses the ordinary row too.
    fixture.repository.reject_rows(true, |row| (row.message() != b"8").then_some("P0001"));
    fixture.admit([7]);
    fixture.tick();
    assert_eq!((fixture.repository.dead(), fixture.ledger.balance().buffered()), (Vec::new(), 1));
    fixture.admit([8]);
    fixture.drain(SOON);
    fixture.settled(1, 0, 1);
}

#[test]
fn rows_refused_during_a_misconfiguration_are_stored_after_its_repair() {
    // The table refuses every row until row 50 is tried for this time.
    for tries in 1..8 {
        let mut fixture = WriterFixture::new(Duration::ZERO);
        fixture.admit(200..205);
        fixture.tick();
        let tried = AtomicU64::new(0);
        fixture.repository.reject_rows(true, move |row| {
            let is_counted = u64::from(row.message() == b"50");
            let nth = tried.fetch_add(is_counted, Ordering::Relaxed) + is_counted;
            (nth < tries).then_some("P0001")
        });
        fixture.admit(0..100);
        fixture.drain(SOON);
        fixture.settled(105, 0, 0);
    }
}

#[test]
fn rows_refused_after_others_were_stored_wait_for_the_repair() {
    let mut fixture = WriterFixture::new(Duration::ZERO);
    fixture.tick();
    // From the second try of row 50 to its sixth, the table refuses every row.
    let tries = AtomicU64::new(0);
    fixture.repository.reject_rows(true, move |row| {
        let is_counted = row.message() == b"50";
        let nth = tries.fetch_add(u64::from(is_counted), Ordering::Relaxed) + u64::from(is_counted);
        ((is_counted && nth == 1) || (2..6).contains(&nth)).then_some("P0001")
    });
    fixture.admit(0..100);
    fixture.drain(SOON);
    fixture.settled(100, 0, 0);
}

#[test]
fn error_of_the_counts_opens_the_breaker_and_creates_no_dead_letters() {
    let mut fixture = WriterFixture::new(Duration::ZERO);
    fixture.tick();
    for sqlstate in ["23514", "P0001", "22003"] {
        fixture.repository.inject_faults([InjectedFault::Fail(StoreError {
            constraint: Some("few".into()),
            outside_rows: true,
            ..error(sqlstate)
        })]);
    }
    fixture.admit(0..18);
    assert_eq!(fixture.tick(), WriterStep::Continue);
    assert!(fixture.breaker.transitions() > 0);
    fixture.settled(18, 0, 0);
}

#[test]
fn drain_stops_at_its_deadline_and_keeps_events_counted_as_buffered() {
    let mut fixture = WriterFixture::new(NEVER);
    fixture.tick();
    fixture.repository.set_outage(Some(StoreError::client_side("gone")));
    fixture.admit(0..10);
    fixture.drain(Duration::from_millis(100));
    assert_eq!((fixture.ledger.balance().buffered(), fixture.buffer.occupied().rows), (10, 10));
}

#[test]
fn drain_ignores_an_open_breaker() {
    let mut fixture = WriterFixture::new(NEVER);
    fixture.tick();
    let breaker = Breaker::new(BreakerLimits { timeout: NEVER, ..BreakerLimits::default() });
    fixture.writer.deps.breaker = Arc::new(breaker);
    fixture.writer.deps.breaker.trip(fixture.clock.now());
    fixture.admit(0..10);
    fixture.drain(SOON);
    fixture.settled(10, 0, 0);
}

#[test]
fn batch_that_times_out_is_written_in_pieces() {
    let mut fixture = WriterFixture::new(Duration::ZERO);
    fixture.tick();
    let timeout =
        || InjectedFault::Fail(StoreError { timed_out: true, ..StoreError::client_side("silence") });
    // 100 rows time out, then 16, the minimum of a piece.
    fixture.repository.inject_faults([timeout(), timeout()]);
    fixture.admit(0..100);
    fixture.drain(SOON);
    fixture.settled(100, 0, 0);
    let sizes: Vec<_> = fixture
        .repository
        .calls()
        .into_iter()
        .filter_map(|call| match call {
            RepositoryCall::Store { rows, .. } => Some(rows),
            RepositoryCall::Prepare
            | RepositoryCall::TrialInsert
            | RepositoryCall::Page
            | RepositoryCall::Count
            | RepositoryCall::Find
            | RepositoryCall::Totals
            | RepositoryCall::Ping
            | RepositoryCall::PartitionDays
            | RepositoryCall::CreatePartition(_)
            | RepositoryCall::DefaultPartition
            | RepositoryCall::SweepConditions
            | RepositoryCall::LastSweep
            | RepositoryCall::Sweep => None,
        })
        .collect();
    assert_eq!(sizes, [100, 16, 16, 16, 16, 16, 16, 16, 4]);
}

#[test]
fn failed_preparation_of_a_prepared_database_does_not_stop_the_writer() {
    let mut fixture = WriterFixture::new(Duration::ZERO);
    fixture.tick();
    fixture.admit(0..1);
    fixture.writer.prepare_at = Moment::ZERO;
    fixture.repository.inject_faults([InjectedFault::Fail(error("42501"))]);
    assert_eq!(fixture.tick(), WriterStep::Continue);
    fixture.settled(1, 0, 0);
    assert_eq!(fixture.breaker.transitions(), 0);
    let prepared = fixture.repository.calls().iter().filter(|call| **call == RepositoryCall::Prepare).count();
    assert_eq!(prepared, 2, "the failure is not retried at once");
}

#[test]
fn writer_panic_poisons_the_process() {
    let fixture = WriterFixture::new(Duration::ZERO);
    fixture.repository.inject_faults([InjectedFault::Panic]);
    let mut writer = fixture.writer;
    let thread = fixture.lifecycle.spawn("writer", move || writer.run()).unwrap();
    assert_eq!(fixture.notices.recv_timeout(SOON), Ok(LifecycleEvent::ThreadDied { name: "writer".into() }));
    assert!(thread.join().is_err());
    assert_eq!(fixture.lifecycle.phase(), LifecyclePhase::Poisoned);
}

#[test]
fn batches_in_flight_are_settled_in_the_order_of_their_commits() {
    let mut fixture = WriterFixture::new(NEVER);
    fixture.tick();
    fixture.admit(0..100);
    fixture.admit(100..200);
    fixture.admit(200..300);
    assert_eq!(fixture.writer.tick(), WriterStep::Continue);
    assert_eq!(fixture.writer.tick(), WriterStep::Continue);
    let WriterStep::SleepUntil(_) = fixture.writer.tick() else { panic!("a third batch is in flight") };
    assert!(!fixture.buffer.is_writer_parked(), "only a completion wakes the writer");
    let jobs: Vec<_> = fixture.queue.jobs.try_iter().collect();
    let [first, second] = jobs.try_into().unwrap();
    fixture.run_job(second);
    assert_eq!(fixture.writer.tick(), WriterStep::Continue);
    assert_eq!((fixture.ledger.balance().stored, fixture.buffer.occupied().rows), (100, 200));
    fixture.run_job(first);
    fixture.drain(SOON);
    fixture.settled(300, 0, 0);
    assert_eq!(paths(&fixture.repository), [StorePath::Copy; 3]);
}

/// Without it, events of a batch in flight would be left to the next start.
#[test]
fn drain_waits_for_the_batches_in_flight() {
    let mut fixture = WriterFixture::new(NEVER);
    let jobs = fixture.start_two();
    fixture.drain.set_deadline(fixture.clock.now().plus(NEVER));
    assert_ne!(fixture.writer.tick(), WriterStep::Stop);
    for job in jobs {
        fixture.run_job(job);
    }
    assert_eq!(fixture.writer.tick(), WriterStep::Stop);
    fixture.settled(200, 0, 0);
}

#[test]
fn failure_of_one_batch_leaves_the_other_in_flight_alone() {
    for second_fails in [false, true] {
        let mut fixture = WriterFixture::new(NEVER);
        let [first, second] = fixture.start_two();
        let in_doubt = StoreError { in_doubt: true, ..StoreError::client_side("connection closed") };
        fixture.repository.inject_faults([InjectedFault::FailAfter(in_doubt.clone())]);
        fixture.run_job(first);
        if second_fails {
            fixture.repository.inject_faults([InjectedFault::FailAfter(in_doubt)]);
        }
        fixture.run_job(second);
        fixture.drain(SOON);
        let duplicates = if second_fails { 200 } else { 100 };
        fixture.settled(200 - duplicates, duplicates, 0);
        assert_eq!(fixture.stored().len(), 200);
    }
}

#[test]
fn success_of_a_batch_in_flight_is_settled_while_another_is_retried() {
    let mut fixture = WriterFixture::new(NEVER);
    let [first, second] = fixture.start_two();
    fixture.repository.inject_faults([InjectedFault::Fail(StoreError::client_side("no route"))]);
    fixture.run_job(first);
    fixture.writer.receive_completions();
    fixture.run_job(second);
    fixture.repository.set_outage(Some(StoreError::client_side("gone")));
    fixture.drain(Duration::from_millis(50));
    assert_eq!((fixture.ledger.balance().stored, fixture.buffer.occupied().rows), (100, 100));
}

#[test]
fn failures_of_two_batches_count_once_each_and_do_not_reopen_the_breaker() {
    let mut fixture = WriterFixture::new(NEVER);
    let jobs = fixture.start_two();
    fixture.repository.inject_faults([
        InjectedFault::Fail(StoreError::client_side("no route")),
        InjectedFault::Fail(StoreError::client_side("no route")),
    ]);
    for job in jobs {
        fixture.run_job(job);
    }
    fixture.drain(SOON);
    fixture.settled(200, 0, 0);
    assert_eq!(fixture.breaker.transitions(), 0, "two failures of three that open it");
    assert_eq!(fixture.writer.deps.metrics.retries.load(Ordering::Relaxed), 2);
}

#[test]
fn batch_waits_while_another_is_in_flight_until_that_commits() {
    let mut fixture = WriterFixture::new(Duration::ZERO);
    fixture.tick();
    fixture.admit([1]);
    assert_eq!(fixture.writer.tick(), WriterStep::Continue);
    fixture.admit([2]);
    let WriterStep::SleepUntil(_) = fixture.writer.tick() else { panic!("a batch of one row is in flight") };
    fixture.run_jobs();
    assert_eq!(fixture.writer.tick(), WriterStep::Continue);
    fixture.drain(SOON);
    fixture.settled(2, 0, 0);
}

#[test]
fn panic_of_a_store_thread_poisons_the_process() {
    let fixture = WriterFixture::new(Duration::ZERO);
    let thread = StoreThread {
        queue: fixture.queue.clone(),
        repository: fixture.repository.clone(),
        buffer: fixture.buffer.clone(),
        clock: fixture.clock.clone(),
    };
    fixture.lifecycle.spawn("store-1", move || thread.run()).unwrap();
    let mut writer = fixture.writer;
    assert_eq!(writer.tick(), WriterStep::SleepUntil(writer.prepare_at));
    admit(&fixture.buffer, &fixture.clock, [1], || ());
    fixture.repository.inject_faults([InjectedFault::Panic]);
    writer.tick();
    assert_eq!(fixture.notices.recv_timeout(SOON), Ok(LifecycleEvent::ThreadDied { name: "store-1".into() }));
    assert_eq!(fixture.lifecycle.phase(), LifecyclePhase::Poisoned);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The bad rows become dead letters and all others are stored, whether or not COPY reports the
    /// row.
    #[test]
    fn only_bad_rows_become_dead_letters(
        bad in prop::collection::btree_set(0..ROWS_MAX as u64, 0..ROWS_MAX),
        named in any::<bool>(),
        blocks in 1..8_u64,
        outage in any::<bool>(),
    ) {
        let mut fixture = WriterFixture::new(Duration::ZERO);
        fixture.tick();
        let refused: std::collections::BTreeSet<_> = bad.iter().map(|number| id(*number)).collect();
        fixture.repository.reject_rows(named, move |row| refused.contains(&row.event_id()).then_some("22P05"));
        if outage {
            fixture.repository.inject_faults([InjectedFault::Fail(error("57P01"))]);
        }
        let size = (ROWS_MAX as u64).div_ceil(blocks);
        for start in (0..ROWS_MAX as u64).step_by(usize::try_from(size).unwrap()) {
            fixture.admit(start..(start + size).min(ROWS_MAX as u64));
        }
        fixture.drain(SOON);
        let good: Vec<_> = (0..ROWS_MAX as u64).filter(|number| !bad.contains(number)).collect();
        prop_assert_eq!(fixture.stored(), good);
        let dead: Vec<_> = fixture.repository.dead().into_iter().map(|(id, sqlstate, _)| (id, sqlstate)).collect();
        let wanted: Vec<_> = bad.iter().map(|number| (id(*number), "22P05".to_owned())).collect();
        prop_assert_eq!(dead, wanted);
        fixture.settled((ROWS_MAX - bad.len()) as u64, 0, bad.len() as u64);
    }
}
