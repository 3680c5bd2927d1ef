//! One sequence: schedules the stages, injects faults, ends the process, and verifies the result.
//!
//! All stages run on one thread and one stack. A stage that calls the disk or the database, or
//! would sleep, enters [`Simulation::yield_point`] or [`Simulation::sleep`], which may run steps of
//! other stages. The end of the process unwinds the whole stack.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use aurore_events::buffer::{self, AdmitError, Occupied};
use aurore_events::clock::{Clock, Moment};
use aurore_events::event::Timestamp;
use aurore_events::journal::filesystem::Filesystem;
use aurore_events::journal::{self, Durability, segment};
use aurore_events::lifecycle::LifecyclePhase;
use aurore_events::storage::wal::FailoverDetector;
use aurore_events::storage::{BreakerLimits, EventRepository, StoreError, Stored};
use aurore_events::writer::WriterStep;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::database::SimDatabase;
use super::fakes::{SimFilesystem, SimRepository};
use super::files::SimDirectory;
use super::oracle::{Oracle, POISON};
use super::process::{Bounds, Process, Slot};

/// The limit of a drain, in rounds of half a second of simulated time.
const DRAIN_ROUNDS: u32 = 1_000;
/// The length of a sequence in steps.
const STEPS: std::ops::Range<u64> = 20..250;

/// The probabilities of the faults of a sequence. Some are zero, so that no fault always hides
/// another.
#[derive(Clone, Copy, Debug)]
struct Probabilities {
    /// The process ends at a yield point.
    crash: f64,
    /// The process ends by a power cut, not a kill.
    power_cut: f64,
    /// Another stage runs within a call.
    interleave: f64,
    disk_failure: f64,
    database_failure: f64,
    poison: f64,
    repeated: f64,
    large: bool,
    /// The database may be set back to an earlier state.
    failovers: bool,
}

/// The payload of the unwinding that ends the process.
struct ProcessExit {
    power_cut: bool,
}

/// The outcome of a call to the database.
pub(super) enum CallOutcome {
    Done,
    Failed(StoreError),
    DoneAndFailed(StoreError),
}

/// Counters of a sequence.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SimulationStats {
    pub(super) steps: u64,
    pub(super) acknowledged: u64,
    pub(super) kills: u64,
    pub(super) power_cuts: u64,
    pub(super) stops: u64,
    pub(super) disk_failures: u64,
    pub(super) database_failures: u64,
    pub(super) failovers: u64,
}

impl SimulationStats {
    pub(super) fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.acknowledged += other.acknowledged;
        self.kills += other.kills;
        self.power_cuts += other.power_cuts;
        self.stops += other.stops;
        self.disk_failures += other.disk_failures;
        self.database_failures += other.database_failures;
        self.failovers += other.failovers;
    }
}

/// The persistent faults of the disk and the database, and the progress of the journal.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fault of its own, and any of them go together")]
struct Environment {
    disk_full: bool,
    /// A sync is running, and the journal does not have its result yet.
    syncing: bool,
    /// At the start of the process, data existed that no sync will write.
    unwritable_data: bool,
    /// Calls of this name fail.
    broken: Option<&'static str>,
    database_down: bool,
    /// Successful ticks of the journal writer: their start, and the requests admitted until then.
    completed_ticks: VecDeque<(Moment, u64)>,
}

pub(super) struct Simulation {
    clock: Clock,
    rng: Mutex<StdRng>,
    probabilities: Probabilities,
    bounds: Bounds,
    files: Mutex<SimDirectory>,
    oracle: Arc<Mutex<Oracle>>,
    environment: Mutex<Environment>,
    stats: Mutex<SimulationStats>,
    pub(super) database: SimDatabase,
    /// In some sequences the table refuses every row at first, as by a wrong constraint.
    refuses_every_row: Arc<AtomicBool>,
    process: Mutex<Option<Arc<Process>>>,
    steps_left: AtomicU64,
    /// No more faults and no interleaving.
    faults_off: AtomicBool,
    traced: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work` on a stage, unless the stage is running.
fn with_stage<T>(slot: &Slot<T>, work: impl FnOnce(&mut T)) -> bool {
    let Some(mut stage) = lock(slot).take() else { return false };
    work(&mut stage);
    *lock(slot) = Some(stage);
    true
}

impl Simulation {
    /// Runs the sequence of a seed, from the first process to the verification.
    pub(super) fn play(seed: u64, traced: bool) -> SimulationStats {
        let simulation = Self::new(seed, traced);
        simulation
            .trace(|| format!("MODEL_SEED={seed}: {:?} {:?}", simulation.probabilities, simulation.bounds));
        let result = catch_unwind(AssertUnwindSafe(|| {
            while !simulation.faults_are_off() {
                simulation.catch_exit(|| simulation.run_process());
            }
            simulation.drain_and_verify();
        }));
        // Breaks the cycle of references between process and simulation.
        let process = lock(&simulation.process).take();
        drop(process);
        if let Err(panic) = result {
            eprintln!("MODEL_SEED={seed} fails");
            resume_unwind(panic);
        }
        let mut stats = *lock(&simulation.stats);
        stats.acknowledged = lock(&simulation.oracle).acknowledgements;
        stats
    }

    fn new(seed: u64, traced: bool) -> Arc<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let random_up_to = |rng: &mut StdRng, most: f64| {
            if rng.random() { rng.random::<f64>() * most } else { 0.0 }
        };
        // A loss on the disk together with one in the database is beyond what is promised.
        let failovers = rng.random_bool(0.4);
        let unless_failovers = |probability: f64| if failovers { 0.0 } else { probability };
        let probabilities = Probabilities {
            crash: random_up_to(&mut rng, 0.03),
            power_cut: unless_failovers([0.0, 0.5, 1.0][rng.random_range(0..3)]),
            interleave: random_up_to(&mut rng, 0.5),
            disk_failure: unless_failovers(random_up_to(&mut rng, 0.1)),
            database_failure: random_up_to(&mut rng, 0.3),
            poison: random_up_to(&mut rng, 0.3),
            repeated: random_up_to(&mut rng, 0.3),
            large: rng.random_bool(0.01),
            failovers,
        };
        let rows_max = rng.random_range(3..40);
        let batch_rows_max = rng.random_range(1..=rows_max);
        let bytes_max = if probabilities.large {
            4 << 20
        } else if rng.random() {
            1 << 20
        } else {
            2_000
        };
        let bounds = Bounds {
            buffer: buffer::BufferLimits {
                rows_max,
                bytes_max,
                batch_rows_max,
                batch_bytes_max: if rng.random() { bytes_max } else { bytes_max / 3 },
                spill_bytes_max: [0, 3_000, 1 << 24][rng.random_range(0..3)],
            },
            shards: rng.random_range(1..4),
            linger: Duration::from_millis(rng.random_range(0..30)),
            wait_max: Duration::from_millis(rng.random_range(0..1_000)),
            connections: rng.random_range(1..4),
            journal: journal::JournalLimits {
                write_interval: Duration::from_millis(10),
                sync_interval: Duration::from_millis([0, 20, 5_000][rng.random_range(0..3)]),
                segment_bytes_max: if probabilities.large { 2 << 20 } else { rng.random_range(100..2_500) },
                retain: if failovers || rng.random() {
                    journal::RetainLimits { time: Duration::from_hours(1), bytes_max: 1 << 30 }
                } else {
                    journal::RetainLimits::NONE
                },
            },
            breaker: BreakerLimits {
                failure_threshold: rng.random_range(1..6),
                success_threshold: rng.random_range(1..3),
                timeout: Duration::from_secs(30),
            },
        };
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000), rng.random());
        let database = SimDatabase::new();
        let refuses_every_row = Arc::new(AtomicBool::new(rng.random_bool(0.2)));
        let is_misconfigured = refuses_every_row.clone();
        database.tables.reject_rows(rng.random(), move |row| {
            let is_misconfigured = is_misconfigured.load(Ordering::Relaxed);
            if is_misconfigured {
                Some("P0001")
            } else {
                (row.service() == POISON.as_bytes()).then_some("22P02")
            }
        });
        let steps = rng.random_range(STEPS);
        let simulation = Arc::new(Self {
            clock,
            rng: Mutex::new(rng),
            probabilities,
            bounds,
            files: Mutex::default(),
            oracle: Arc::default(),
            environment: Mutex::default(),
            stats: Mutex::default(),
            database,
            refuses_every_row,
            process: Mutex::default(),
            steps_left: AtomicU64::new(steps),
            faults_off: AtomicBool::new(false),
            traced,
        });
        let weak: Weak<Self> = Arc::downgrade(&simulation);
        simulation.clock.on_idle(move |wait| weak.upgrade().expect("a sequence is played").sleep(wait));
        simulation
    }

    pub(super) fn trace(&self, what: impl FnOnce() -> String) {
        if self.traced {
            eprintln!("{:>12} {}", format!("{:?}", self.clock.now().since(Moment::ZERO)), what());
        }
    }

    pub(super) fn fault_occurs(&self, probability: f64) -> bool {
        !self.faults_are_off() && self.with_probability(probability)
    }

    fn with_probability(&self, probability: f64) -> bool {
        probability > 0.0 && lock(&self.rng).random_bool(probability)
    }

    pub(super) fn random_below(&self, end: usize) -> usize {
        lock(&self.rng).random_range(0..end)
    }

    pub(super) fn files(&self) -> MutexGuard<'_, SimDirectory> {
        lock(&self.files)
    }

    pub(super) fn with_files_and_rng(&self, work: impl FnOnce(&mut SimDirectory, &mut StdRng)) {
        work(&mut lock(&self.files), &mut lock(&self.rng));
    }

    fn faults_are_off(&self) -> bool {
        self.faults_off.load(Ordering::Relaxed)
    }

    fn stop_faults(&self) {
        self.trace(|| "faults off".into());
        self.faults_off.store(true, Ordering::Relaxed);
        let mut environment = lock(&self.environment);
        (environment.disk_full, environment.broken, environment.database_down) = (false, None, false);
        self.refuses_every_row.store(false, Ordering::Relaxed);
    }

    // Called by the stages.

    /// A call to the disk or the database: the process may end here, or another stage may run.
    pub(super) fn yield_point(&self, call: &'static str) {
        self.trace(|| format!("  {call}"));
        if self.faults_are_off() || !self.take_step() {
            return;
        }
        if self.with_probability(self.probabilities.crash) {
            self.exit_process();
        }
        // During the start no other stage exists.
        if self.with_probability(self.probabilities.interleave) && lock(&self.process).is_some() {
            self.step();
        }
    }

    /// Counts a step. Returns whether more are left.
    fn take_step(&self) -> bool {
        lock(&self.stats).steps += 1;
        let left = self.steps_left.load(Ordering::Relaxed);
        if left == 0 {
            self.stop_faults();
            return false;
        }
        self.steps_left.store(left - 1, Ordering::Relaxed);
        true
    }

    fn exit_process(&self) -> ! {
        let power_cut = self.with_probability(self.probabilities.power_cut);
        self.trace(|| format!("the process ends, power cut: {power_cut}"));
        resume_unwind(Box::new(ProcessExit { power_cut }))
    }

    /// A stage sleeps for `wait`, or until woken.
    fn sleep(&self, wait: Duration) {
        self.trace(|| format!("  sleep {wait:?}"));
        if self.faults_are_off() || !self.take_step() {
            // The other stages must run, or the sleeper may wait forever.
            self.run_journal_writer();
            self.run_sync();
            self.run_writer();
            self.run_store_thread();
            self.clock.advance(wait);
            return;
        }
        if self.with_probability(self.probabilities.crash) {
            self.exit_process();
        }
        self.step();
        self.clock.advance(if self.with_probability(0.3) { wait / 2 } else { wait });
    }

    pub(super) fn is_full(&self) -> bool {
        lock(&self.environment).disk_full
    }

    pub(super) fn fails(&self, call: &'static str) -> bool {
        let broken = lock(&self.environment).broken == Some(call);
        let fails = broken || self.fault_occurs(self.probabilities.disk_failure);
        if fails {
            lock(&self.stats).disk_failures += 1;
            self.trace(|| format!("  {call} fails"));
        }
        fails
    }

    pub(super) fn outcome(&self) -> CallOutcome {
        let unreachable = || StoreError::client_side("unreachable");
        if lock(&self.environment).database_down {
            return CallOutcome::Failed(unreachable());
        }
        if !self.fault_occurs(self.probabilities.database_failure) {
            return CallOutcome::Done;
        }
        lock(&self.stats).database_failures += 1;
        let with_sqlstate =
            |sqlstate: &str| StoreError { sqlstate: Some(sqlstate.to_owned()), ..unreachable() };
        let kind = self.random_below(7);
        self.trace(|| format!("  the database fails, {kind}"));
        match kind {
            0 => CallOutcome::Failed(unreachable()),
            1 => CallOutcome::Failed(with_sqlstate("40P01")),
            2 => CallOutcome::Failed(with_sqlstate("42P01")),
            3 => CallOutcome::Failed(StoreError { timed_out: true, ..unreachable() }),
            4 => CallOutcome::Failed(StoreError { in_doubt: true, ..unreachable() }),
            _ => CallOutcome::DoneAndFailed(StoreError { in_doubt: true, ..unreachable() }),
        }
    }

    pub(super) fn record_stored(&self, stored: Stored) {
        let answered = &mut lock(&self.oracle).answered;
        answered.stored += stored.stored;
        answered.dead += stored.dead;
    }

    // The processes.

    /// Runs a process until the sequence is over or the process stops.
    fn run_process(self: &Arc<Self>) {
        if !self.start_process() {
            return;
        }
        while !self.faults_are_off() {
            if !self.take_step() {
                return;
            }
            if self.with_probability(self.probabilities.crash) {
                self.exit_process();
            }
            if self.fault_occurs(0.003) {
                self.stop();
                return;
            }
            self.step();
            self.check_invariants();
        }
    }

    fn start_process(self: &Arc<Self>) -> bool {
        self.trace(|| "the process starts".into());
        let unwritable_data = self.files().has_unwritable_data();
        let disk: Arc<dyn Filesystem> = Arc::new(SimFilesystem(self.clone()));
        let repositories = |last| {
            let detector = Arc::new(FailoverDetector::new(last));
            [true, false].map(|counts| -> Arc<dyn EventRepository> {
                Arc::new(SimRepository { simulation: self.clone(), detector: detector.clone(), counts })
            })
        };
        let process = Process::start(&disk, repositories, &self.clock, self.bounds);
        let begun = process.is_some();
        let mut environment = lock(&self.environment);
        (environment.unwritable_data, environment.syncing) = (unwritable_data, false);
        drop(environment);
        *lock(&self.process) = process.map(Arc::new);
        begun
    }

    fn process(&self) -> Arc<Process> {
        lock(&self.process).clone().expect("the process runs")
    }

    /// Runs `body`, and handles the end of the process within it.
    fn catch_exit(&self, body: impl FnOnce()) {
        let Err(payload) = catch_unwind(AssertUnwindSafe(body)) else { return };
        let payload: Box<dyn Any + Send> = payload;
        match payload.downcast::<ProcessExit>() {
            Ok(ended) => self.after_exit(ended.power_cut),
            Err(panic) => resume_unwind(panic),
        }
    }

    fn after_exit(&self, power_cut: bool) {
        let process = lock(&self.process).take();
        drop(process);
        let mut stats = lock(&self.stats);
        if power_cut {
            stats.power_cuts += 1;
        } else {
            stats.kills += 1;
        }
        drop(stats);
        lock(&self.oracle).end_process(power_cut);
        lock(&self.environment).completed_ticks.clear();
        if power_cut {
            self.with_files_and_rng(SimDirectory::power_cut);
        }
    }

    /// A graceful stop (SIGTERM): intake ends, the buffer drains, the journal writes a last time.
    fn stop(&self) {
        self.trace(|| "SIGTERM".into());
        let process = self.process();
        process.lifecycle.advance_to(LifecyclePhase::Draining);
        process.buffer.close();
        process.drain.set_deadline(self.clock.now().plus(Duration::from_millis(500)));
        process.buffer.wake_writer();
        // The writer ends when it is done or when the deadline has passed.
        while lock(&process.writer).is_some() {
            self.run_writer();
            self.run_store_thread();
            self.run_recovery();
            self.run_journal_writer();
            self.run_sync();
            self.clock.advance(Duration::from_millis(5));
        }
        process.journal.finish();
        let is_finished = || lock(&process.journal_writer).as_ref().expect("it is idle").is_finished();
        for round in 0.. {
            assert!(round < DRAIN_ROUNDS, "the last tick of the journal never ends");
            self.run_journal_writer();
            if is_finished() {
                break;
            }
            self.run_sync();
            self.clock.advance(self.bounds.journal.write_interval);
        }
        lock(&self.stats).stops += 1;
        if process.journal.guarantees(Durability::Synced) {
            lock(&self.oracle).mark_all_synced();
        }
        drop(process);
        let process = lock(&self.process).take();
        drop(process);
        lock(&self.oracle).end_process(false);
        lock(&self.environment).completed_ticks.clear();
    }

    // The steps.

    fn step(&self) {
        match self.random_below(100) {
            0..35 => self.admit(),
            35..57 => self.run_journal_writer(),
            57..68 => self.run_writer(),
            68..75 => self.run_store_thread(),
            75..79 => self.run_recovery(),
            79..85 => self.run_sync(),
            85..90 => self.clock.advance(Duration::from_millis(self.random_below(12) as u64)),
            90..93 => self.clock.advance(Duration::from_millis(self.random_below(6_000) as u64)),
            93 => {
                let hours = i64::try_from(self.random_below(48)).expect("few") - 24;
                let wall = self.clock.wall().micros() + hours * 3_600_000_000;
                self.clock.set_wall(Timestamp::from_micros(wall));
            }
            94 => self.refuses_every_row.store(false, Ordering::Relaxed),
            95..97 if self.probabilities.failovers => self.replicate_or_fail_over(),
            97 if self.probabilities.failovers => self.run_probe(),
            98 if self.probabilities.failovers => self.run_failover(),
            95..97 => {
                let mut environment = lock(&self.environment);
                environment.database_down =
                    self.probabilities.database_failure > 0.0 && !environment.database_down;
            }
            97 => {
                let mut environment = lock(&self.environment);
                environment.disk_full = self.probabilities.disk_failure > 0.0 && !environment.disk_full;
            }
            98 => {
                let calls = ["write", "sync", "create", "sync of names", "remove", "read"];
                let call = calls[self.random_below(calls.len())];
                let mut environment = lock(&self.environment);
                let breaks = self.probabilities.disk_failure > 0.0 && environment.broken.is_none();
                environment.broken = breaks.then_some(call);
            }
            _ => self.evict_page_cache(),
        }
    }

    fn replicate_or_fail_over(&self) {
        let promoted = self.random_below(2) == 0;
        if self.random_below(2) == 0 && self.database.set_back(promoted) {
            self.trace(|| format!("failover to {}", self.database.position()));
            lock(&self.stats).failovers += 1;
        } else {
            self.trace(|| "the standby catches up".into());
            self.database.replicate();
        }
    }

    fn run_probe(&self) {
        let process = self.process();
        if let Ok(state) = process.repository.state() {
            process.journal.observe(state);
        }
    }

    fn run_failover(&self) {
        let process = self.process();
        with_stage(&process.failover, |failover| {
            if let Ok(event) = process.failovers.try_recv() {
                self.trace(|| format!("failover thread: {event:?}"));
                failover.on_event(event);
            }
        });
    }

    /// Admits a request of valid events, like `api`.
    fn admit(&self) {
        let process = self.process();
        let level = Durability::ALL[self.random_below(3)];
        if process.lifecycle.phase() > LifecyclePhase::Serving || !process.journal.guarantees(level) {
            return;
        }
        let Some(shard) = self.idle_acceptor(&process) else { return };
        let limits = self.bounds.buffer;
        let count = if self.with_probability(0.5) { 1 } else { 1 + self.random_below(limits.rows_max + 1) };
        let mut oracle = lock(&self.oracle);
        let numbers: Vec<u64> = (0..count).map(|_| self.new_or_repeated_event(&mut oracle)).collect();
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for number in &numbers {
            oracle.get(*number).encode(&mut bytes);
            ends.push(bytes.len());
        }
        let cuts = ends.chunks(limits.batch_rows_max).scan(0, |start, ends| {
            let end = *ends.last().expect("a chunk has one at least");
            let block = &bytes[*start..end];
            *start = end;
            Some((block, u32::try_from(ends.len()).expect("few")))
        });
        drop(oracle);
        let (before, was_engaged) = (process.buffer.occupied(), process.buffer.spill().is_engaged());
        let rows = u32::try_from(count).expect("few");
        // Other stages may run before each block is pushed, and see only a part of the request.
        let keep = |block: &_| {
            lock(&self.oracle).admitted(&numbers);
            process.journal.append(shard, block);
            self.yield_point("push");
        };
        lock(&process.admitting).push(shard);
        let admitted = process.buffer.admit(shard, (rows, bytes.len()), self.clock.now(), cuts, keep);
        lock(&process.admitting).pop();
        self.trace(|| format!("events {numbers:?} at {}: {admitted:?}", level.name()));
        match admitted {
            Ok(()) => {}
            Err(AdmitError::Closed) => return,
            Err(AdmitError::Full | AdmitError::TooLarge) => {
                let fits =
                    before.rows + count <= limits.rows_max && before.bytes + bytes.len() <= limits.bytes_max;
                assert!(!fits || was_engaged, "rejected although capacity is free: {before:?} of {limits:?}");
                return;
            }
        }
        let mut oracle = lock(&self.oracle);
        let request = oracle.requests;
        oracle.requests += 1;
        if level == Durability::Memory {
            oracle.acknowledge(&numbers, level, request);
            return;
        }
        let oracle = self.oracle.clone();
        let traced = self.traced;
        let on_complete = move |holds| {
            if traced {
                eprintln!("{:>12} events {numbers:?} at {}: durable: {holds}", "", level.name());
            }
            if holds {
                lock(&oracle).acknowledge(&numbers, level, request);
            }
            None
        };
        process.journal.on_durable(shard, level, Box::new(on_complete));
    }

    /// An acceptor without an admission in progress.
    fn idle_acceptor(&self, process: &Process) -> Option<usize> {
        let admitting = lock(&process.admitting).clone();
        let idle: Vec<_> = (0..self.bounds.shards).filter(|shard| !admitting.contains(shard)).collect();
        (!idle.is_empty()).then(|| idle[self.random_below(idle.len())])
    }

    /// The number of a new event, or of one that was sent before.
    fn new_or_repeated_event(&self, oracle: &mut Oracle) -> u64 {
        if !oracle.sent.is_empty() && self.with_probability(self.probabilities.repeated) {
            return self.random_below(oracle.sent.len()) as u64;
        }
        let most = match self.random_below(10) {
            _ if self.probabilities.large => 60_000,
            0 => 700,
            _ => 30,
        };
        oracle.send(self.with_probability(self.probabilities.poison), self.random_below(most))
    }

    fn run_journal_writer(&self) {
        let process = self.process();
        let now = self.clock.now();
        let requests = lock(&self.oracle).requests;
        let failures = process.failures();
        let ticked = with_stage(&process.journal_writer, |journal_writer| {
            self.trace(|| "journal writer".into());
            let done = lock(&process.done).take();
            if done.is_some() {
                lock(&self.environment).syncing = false;
            }
            if let Some(job) = journal_writer.tick(done) {
                lock(&self.environment).syncing = true;
                *lock(&process.job) = Some(job);
            }
        });
        if !ticked {
            return;
        }
        if process.failures() > failures || process.journal.fault().is_some() {
            // Data in doubt is written again, so its sync interval starts anew.
            lock(&self.environment).completed_ticks.clear();
            return;
        }
        let mut oracle = lock(&self.oracle);
        // The tick has written every request before it.
        oracle.written = oracle.written.max(requests);
        let mut environment = lock(&self.environment);
        environment.completed_ticks.push_back((now, requests));
        if environment.syncing {
            return;
        }
        // No sync is running: data written this long ago is synced.
        let sync_every = self.bounds.journal.sync_interval;
        while environment.completed_ticks.front().is_some_and(|(began, _)| now.since(*began) >= sync_every) {
            let (_, requests) = environment.completed_ticks.pop_front().expect("the front exists");
            oracle.synced = oracle.synced.max(requests);
        }
    }

    /// Runs the job of the sync thread.
    fn run_sync(&self) {
        let process = self.process();
        let Some(job) = lock(&process.job).take() else { return };
        self.trace(|| "sync thread".into());
        let done = job.run(&*process.disk);
        *lock(&process.done) = Some(done);
    }

    fn run_writer(&self) {
        let process = self.process();
        if self.is_writer_asleep(&process) {
            return;
        }
        let Some(mut writer) = lock(&process.writer).take() else { return };
        self.trace(|| "writer".into());
        let step = writer.tick();
        *lock(&process.writer_sleeps_until) = match step {
            // The thread of the writer ends; events that it has not stored stay in the journal.
            WriterStep::Stop => {
                process.journal.finish();
                return;
            }
            WriterStep::Continue => None,
            WriterStep::SleepUntil(until) => Some(until),
        };
        *lock(&process.writer) = Some(writer);
    }

    /// Runs a job of a store thread. A job that other stages interrupt may commit after later ones.
    fn run_store_thread(&self) {
        let process = self.process();
        let Ok(job) = process.store_queue.jobs.try_recv() else { return };
        self.trace(|| "store thread".into());
        process.storing.fetch_add(1, Ordering::Relaxed);
        let completion = job.run(&*process.repository, &self.clock);
        process.storing.fetch_sub(1, Ordering::Relaxed);
        if process.store_queue.completions.send(completion).is_ok() {
            process.buffer.wake_writer();
        }
    }

    /// Whether a batch is in flight, or its completion is on its way to the writer.
    fn is_storing(process: &Process) -> bool {
        let queue = &process.store_queue;
        process.storing.load(Ordering::Relaxed) > 0 || !queue.jobs.is_empty() || !queue.completions.is_empty()
    }

    /// Whether the writer sleeps, nothing has woken it, and its sleep is not over.
    fn is_writer_asleep(&self, process: &Process) -> bool {
        let until = *lock(&process.writer_sleeps_until);
        until.is_some_and(|until| self.clock.now() < until) && process.buffer.is_writer_parked()
    }

    /// Runs recovery, which may wait for capacity at any record while other stages run. Skipped
    /// while a stage that frees capacity, or an admission that holds some, is further down the
    /// stack.
    fn run_recovery(&self) {
        let process = self.process();
        if !self.stages_are_idle() || !lock(&process.admitting).is_empty() {
            return;
        }
        let (was_recovering, failures) = (process.journal.is_recovering(), process.failures());
        let ticked = with_stage(&process.recovery, |recovery| {
            self.trace(|| "recovery".into());
            recovery.tick();
        });
        let is_over = was_recovering && ticked && !process.journal.is_recovering();
        if is_over && process.failures() == failures && !lock(&self.environment).unwritable_data {
            lock(&self.oracle).mark_earlier_synced();
        }
    }

    /// Evicts the data of a failed sync from the page cache, once the journal has rewritten it.
    fn evict_page_cache(&self) {
        let process = self.process();
        let is_elsewhere = process.journal.fault().is_none() && !lock(&self.environment).syncing;
        if is_elsewhere && !process.had_backlog && lock(&process.journal_writer).is_some() {
            self.files().evict();
        }
    }

    // The verification.

    /// Asserts the invariants that hold while no stage runs.
    fn check_invariants(&self) {
        let process = self.process();
        let (occupied, balance) = (process.buffer.occupied(), process.ledger.balance());
        let limits = self.bounds.buffer;
        assert!(
            occupied.rows <= limits.rows_max && occupied.bytes <= limits.bytes_max,
            "{occupied:?} of {limits:?}"
        );
        let held = occupied.rows as u64 + process.buffer.spill().events();
        assert_eq!(held, balance.buffered(), "events held and events of the ledger");
        assert_eq!(balance.lost, 0, "no synced data is damaged here");
        if self.is_writer_asleep(&process) {
            // It sleeps longer than events may linger only if it has none.
            let until = lock(&process.writer_sleeps_until).expect("it sleeps");
            let wait_max = (self.bounds.linger * 5).min(self.bounds.wait_max);
            let is_idle = until > self.clock.now().plus(wait_max) && !Self::is_storing(&process);
            assert!(!is_idle || occupied.rows == 0, "the writer sleeps until {until:?}, {occupied:?} wait");
        }
        let answered = lock(&self.oracle).answered;
        if process.store_queue.completions.is_empty() {
            assert_eq!(
                (balance.stored, balance.dead),
                (answered.stored, answered.dead),
                "results of the database and of the ledger"
            );
        }
    }

    fn drain_and_verify(self: &Arc<Self>) {
        // Sometimes the last process drains, mostly a new one recovers the rest.
        let power_cut = self.with_probability(self.probabilities.power_cut);
        match self.random_below(4) {
            0 if lock(&self.process).is_some() && self.stages_are_idle() => self.drain(),
            1 if lock(&self.process).is_some() && self.stages_are_idle() => self.stop(),
            _ => {}
        }
        self.trace(|| format!("the last end, power cut: {power_cut}"));
        self.after_exit(power_cut);
        assert!(self.start_process(), "nothing fails, and the server does not start");
        self.drain();
        self.verify();
    }

    /// Whether writer and journal are in their slots.
    fn stages_are_idle(&self) -> bool {
        let process = self.process();
        lock(&process.writer).is_some()
            && lock(&process.journal_writer).is_some()
            && process.storing.load(Ordering::Relaxed) == 0
    }

    /// Runs all stages until no event and no segment is left.
    fn drain(&self) {
        let process = self.process();
        for round in 0..DRAIN_ROUNDS {
            self.run_recovery();
            self.run_journal_writer();
            self.run_sync();
            self.run_writer();
            self.run_store_thread();
            self.run_probe();
            self.run_failover();
            self.clock.advance(Duration::from_millis(500));
            let is_empty = process.buffer.occupied() == Occupied::default()
                && process.buffer.spill().events() == 0
                // The journal has seen the state of the database.
                && round > 2
                && process.failovers.is_empty()
                && !process.journal.is_recovering();
            let is_well = process.journal.fault().is_none();
            if is_empty
                && is_well
                && !self.files().names().iter().any(|name| segment::parse_file_name(name).is_some())
            {
                self.check_invariants();
                return;
            }
        }
        // Unreadable segments stay for the next start.
        let unread = process.failures() > 0;
        let left = self.files().names();
        assert!(unread, "it does not drain: {:?} in the buffer, {left:?} on disk", process.buffer.occupied());
    }

    fn verify(&self) {
        let process = self.process();
        let balance = process.ledger.balance();
        assert_eq!(balance.received, balance.stored + balance.duplicate + balance.dead);
        let left = self.files().names();
        let left: Vec<_> = left.into_iter().filter(|name| !name.ends_with(".committed")).collect();
        let is_over = |name: &String| name.ends_with(".damaged");
        assert!(left.iter().all(is_over), "left behind: {left:?}");
        // Only a power cut or a failed sync may damage a segment.
        let stats = *lock(&self.stats);
        let may_be_damaged = stats.power_cuts > 0 || stats.disk_failures > 0;
        assert!(
            left.is_empty() || may_be_damaged,
            "damaged segments although the disk never failed: {left:?}"
        );
        let (events, dead) = (self.database.tables.events(), self.database.tables.dead());
        let oracle = lock(&self.oracle);
        let known = |millis: u64| {
            let sent = oracle.sent.get(usize::try_from(millis).expect("few are sent"));
            let sent = sent.expect("only sent events are stored");
            assert!(sent.admitted, "event {} was rejected and is stored", sent.number);
            sent
        };
        let mut stored = vec![false; oracle.sent.len()];
        let mut mark = |sent: &super::oracle::SentEvent| {
            let index = usize::try_from(sent.number).expect("few are sent");
            assert!(!std::mem::replace(&mut stored[index], true), "event {} is stored twice", sent.number);
        };
        for event in &events {
            let sent = known(event.event_id.millis());
            mark(sent);
            assert!(*event == sent.event() && !sent.poison, "{event:?}");
        }
        for (id, sqlstate, _) in &dead {
            let sent = known(id.millis());
            mark(sent);
            assert!(*id == sent.id() && sent.poison && sqlstate == "22P02", "{id} is dead: {sqlstate}");
        }
        for sent in oracle.must_be_stored() {
            let index = usize::try_from(sent.number).expect("few are sent");
            assert!(stored[index], "event {} was acknowledged and is lost", sent.number);
        }
    }
}
