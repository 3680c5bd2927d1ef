//! One sequence: whose turn it is, what fails, when the process ends; and the judgement.
//!
//! Everything runs on one thread and on its stack. A stage that calls outside, or would sleep, is interrupted there by
//! [`World::turn`] or [`World::idle`], which may run steps of the others; the end of the process unwinds them all.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use aurore_events::buffer::{self, Full, Occupied};
use aurore_events::clock::{Clock, Moment};
use aurore_events::event::Timestamp;
use aurore_events::journal::disk::Disk;
use aurore_events::journal::{self, Level, segment};
use aurore_events::lifecycle::Phase;
use aurore_events::storage::memory::MemoryRepository;
use aurore_events::storage::{BreakerLimits, EventRepository, StoreError, Stored};
use aurore_events::writer::Next;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::book::{Book, POISON};
use super::files::Files;
use super::life::{Bounds, Life, Slot};
use super::outside::{SimDisk, SimRepository};

/// What a drain may take, in rounds of half a second of the model's time.
const DRAIN_ROUNDS: u32 = 1_000;
/// Every sequence ends.
const STEPS: std::ops::Range<u64> = 20..250;

/// What is likely in a sequence: not everything in each, so that what hides another thing is absent in some.
#[derive(Clone, Copy, Debug)]
struct Habits {
    /// The process ends at a turn.
    crash: f64,
    /// By a power cut.
    power_cut: f64,
    /// Others have a turn within a call.
    nested: f64,
    disk_fails: f64,
    database_fails: f64,
    poison: f64,
    known: f64,
    large: bool,
}

/// The payload of the unwinding that ends the process.
struct Ended {
    power_cut: bool,
}

/// What comes of a call to the database.
pub(super) enum Fate {
    Done,
    Failed(StoreError),
    DoneAndFailed(StoreError),
}

/// What a sequence saw.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) steps: u64,
    pub(super) acknowledged: u64,
    pub(super) kills: u64,
    pub(super) power_cuts: u64,
    pub(super) stops: u64,
    pub(super) disk_failures: u64,
    pub(super) database_failures: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.acknowledged += other.acknowledged;
        self.kills += other.kills;
        self.power_cuts += other.power_cuts;
        self.stops += other.stops;
        self.disk_failures += other.disk_failures;
        self.database_failures += other.database_failures;
    }
}

/// What lasts while the disk, or the database, is as it is.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fault of its own, and any of them go together")]
struct Weather {
    disk_full: bool,
    /// A sync was given out, and what came of it is not known yet.
    syncing: bool,
    /// When the process began there was something that no sync will ever write.
    forsaken: bool,
    /// Calls of this name fail.
    broken: Option<&'static str>,
    database_away: bool,
    /// Good checkpoints: when they began, and how many requests had been admitted by then.
    checkpoints: VecDeque<(Moment, u64)>,
}

pub(super) struct World {
    clock: Clock,
    chance: Mutex<StdRng>,
    habits: Habits,
    bounds: Bounds,
    files: Mutex<Files>,
    book: Arc<Mutex<Book>>,
    weather: Mutex<Weather>,
    tally: Mutex<Tally>,
    pub(super) database: MemoryRepository,
    life: Mutex<Option<Arc<Life>>>,
    steps_left: AtomicU64,
    /// Nothing fails any more, and nobody interrupts.
    calm: AtomicBool,
    tells: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a stage work, unless it is at work.
fn with<T>(slot: &Slot<T>, work: impl FnOnce(&mut T)) -> bool {
    let Some(mut stage) = lock(slot).take() else { return false };
    work(&mut stage);
    *lock(slot) = Some(stage);
    true
}

impl World {
    /// Plays the sequence of a seed, from the first life to the judgement.
    pub(super) fn play(seed: u64, tells: bool) -> Tally {
        let world = Self::new(seed, tells);
        world.say(|| format!("MODEL_SEED={seed}: {:?} {:?}", world.habits, world.bounds));
        let told = catch_unwind(AssertUnwindSafe(|| {
            while !world.is_calm() {
                world.until_it_ends(|| world.live());
            }
            world.drain_and_judge();
        }));
        // The life holds the world and the world the life.
        let life = lock(&world.life).take();
        drop(life);
        if let Err(panic) = told {
            eprintln!("MODEL_SEED={seed} fails");
            resume_unwind(panic);
        }
        let mut tally = *lock(&world.tally);
        tally.acknowledged = lock(&world.book).acknowledgements;
        tally
    }

    fn new(seed: u64, tells: bool) -> Arc<Self> {
        let mut chance = StdRng::seed_from_u64(seed);
        let some = |chance: &mut StdRng, most: f64| {
            if chance.random() { chance.random::<f64>() * most } else { 0.0 }
        };
        let habits = Habits {
            crash: some(&mut chance, 0.03),
            power_cut: [0.0, 0.5, 1.0][chance.random_range(0..3)],
            nested: some(&mut chance, 0.5),
            disk_fails: some(&mut chance, 0.1),
            database_fails: some(&mut chance, 0.3),
            poison: some(&mut chance, 0.3),
            known: some(&mut chance, 0.3),
            large: chance.random_bool(0.01),
        };
        let rows_max = chance.random_range(3..40);
        let batch_rows_max = chance.random_range(1..=rows_max);
        let bytes_max = if habits.large {
            4 << 20
        } else if chance.random() {
            1 << 20
        } else {
            2_000
        };
        let bounds = Bounds {
            buffer: buffer::Limits {
                rows_max,
                bytes_max,
                batch_rows_max,
                batch_bytes_max: if chance.random() { bytes_max } else { bytes_max / 3 },
                spill_bytes_max: [0, 3_000, 1 << 24][chance.random_range(0..3)],
            },
            shards: chance.random_range(1..4),
            linger: Duration::from_millis(chance.random_range(0..30)),
            journal: journal::Limits {
                write_every: Duration::from_millis(10),
                sync_every: Duration::from_millis([0, 20, 5_000][chance.random_range(0..3)]),
                segment_bytes_max: if habits.large { 2 << 20 } else { chance.random_range(100..2_500) },
            },
            breaker: BreakerLimits {
                failure_threshold: chance.random_range(1..6),
                success_threshold: chance.random_range(1..3),
                timeout: Duration::from_secs(30),
            },
        };
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000), chance.random());
        let database = MemoryRepository::new();
        database.refuse(chance.random(), |row| (row.service() == POISON).then_some("22P02"));
        let steps = chance.random_range(STEPS);
        let world = Arc::new(Self {
            clock,
            chance: Mutex::new(chance),
            habits,
            bounds,
            files: Mutex::default(),
            book: Arc::default(),
            weather: Mutex::default(),
            tally: Mutex::default(),
            database,
            life: Mutex::default(),
            steps_left: AtomicU64::new(steps),
            calm: AtomicBool::new(false),
            tells,
        });
        let weak: Weak<Self> = Arc::downgrade(&world);
        world.clock.on_idle(move |wait| weak.upgrade().expect("a sequence is played").idle(wait));
        world
    }

    pub(super) fn say(&self, what: impl FnOnce() -> String) {
        if self.tells {
            eprintln!("{:>12} {}", format!("{:?}", self.clock.now().since(Moment::ZERO)), what());
        }
    }

    pub(super) fn toss(&self, probability: f64) -> bool {
        !self.is_calm() && self.likely(probability)
    }

    fn likely(&self, probability: f64) -> bool {
        probability > 0.0 && lock(&self.chance).random_bool(probability)
    }

    pub(super) fn below(&self, end: usize) -> usize {
        lock(&self.chance).random_range(0..end)
    }

    pub(super) fn files(&self) -> MutexGuard<'_, Files> {
        lock(&self.files)
    }

    pub(super) fn with_files_and_chance(&self, work: impl FnOnce(&mut Files, &mut StdRng)) {
        work(&mut lock(&self.files), &mut lock(&self.chance));
    }

    fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    fn calm_down(&self) {
        self.say(|| "calm".into());
        self.calm.store(true, Ordering::Relaxed);
        let mut weather = lock(&self.weather);
        (weather.disk_full, weather.broken, weather.database_away) = (false, None, false);
    }

    // What the stages meet.

    /// Somebody calls outside: the process may end here, or others have their turn.
    pub(super) fn turn(&self, call: &'static str) {
        self.say(|| format!("  {call}"));
        if self.is_calm() || !self.spend() {
            return;
        }
        if self.likely(self.habits.crash) {
            self.end();
        }
        // Before the stages are made there is nobody else.
        if self.likely(self.habits.nested) && lock(&self.life).is_some() {
            self.step();
        }
    }

    /// Counts a step. Tells whether there are more.
    fn spend(&self) -> bool {
        lock(&self.tally).steps += 1;
        let left = self.steps_left.load(Ordering::Relaxed);
        if left == 0 {
            self.calm_down();
            return false;
        }
        self.steps_left.store(left - 1, Ordering::Relaxed);
        true
    }

    fn end(&self) -> ! {
        let power_cut = self.likely(self.habits.power_cut);
        self.say(|| format!("the process ends, power cut: {power_cut}"));
        resume_unwind(Box::new(Ended { power_cut }))
    }

    /// Somebody sleeps for so long, or until woken.
    fn idle(&self, wait: Duration) {
        self.say(|| format!("  sleep {wait:?}"));
        if self.is_calm() || !self.spend() {
            // Whoever else there is must get on, or the sleeper may wait in vain.
            self.checkpoint();
            self.sync();
            self.write();
            self.clock.advance(wait);
            return;
        }
        if self.likely(self.habits.crash) {
            self.end();
        }
        self.step();
        self.clock.advance(if self.likely(0.3) { wait / 2 } else { wait });
    }

    pub(super) fn is_full(&self) -> bool {
        lock(&self.weather).disk_full
    }

    pub(super) fn fails(&self, call: &'static str) -> bool {
        let broken = lock(&self.weather).broken == Some(call);
        let fails = broken || self.toss(self.habits.disk_fails);
        if fails {
            lock(&self.tally).disk_failures += 1;
            self.say(|| format!("  {call} fails"));
        }
        fails
    }

    pub(super) fn fate(&self) -> Fate {
        let away = || StoreError::unreachable("away");
        if lock(&self.weather).database_away {
            return Fate::Failed(away());
        }
        if !self.toss(self.habits.database_fails) {
            return Fate::Done;
        }
        lock(&self.tally).database_failures += 1;
        let said = |sqlstate: &str| StoreError { sqlstate: Some(sqlstate.to_owned()), ..away() };
        let kind = self.below(7);
        self.say(|| format!("  the database fails, {kind}"));
        match kind {
            0 => Fate::Failed(away()),
            1 => Fate::Failed(said("40P01")),
            2 => Fate::Failed(said("42P01")),
            3 => Fate::Failed(StoreError { timed_out: true, ..away() }),
            4 => Fate::Failed(StoreError { in_doubt: true, ..away() }),
            _ => Fate::DoneAndFailed(StoreError { in_doubt: true, ..away() }),
        }
    }

    pub(super) fn answered(&self, stored: Stored) {
        let answered = &mut lock(&self.book).answered;
        answered.stored += stored.stored;
        answered.dead += stored.dead;
    }

    // The lives.

    /// Lives until the sequence is over, or the process ends itself.
    fn live(self: &Arc<Self>) {
        if !self.begin() {
            return;
        }
        while !self.is_calm() {
            if !self.spend() {
                return;
            }
            if self.likely(self.habits.crash) {
                self.end();
            }
            if self.toss(0.003) {
                self.stop();
                return;
            }
            self.step();
            self.check();
        }
    }

    fn begin(self: &Arc<Self>) -> bool {
        self.say(|| "the process begins".into());
        let forsaken = self.files().has_forsaken();
        let disk: Arc<dyn Disk> = Arc::new(SimDisk(self.clone()));
        let repository: Arc<dyn EventRepository> = Arc::new(SimRepository(self.clone()));
        let life = Life::begin(&disk, repository, &self.clock, self.bounds);
        let begun = life.is_some();
        let mut weather = lock(&self.weather);
        (weather.forsaken, weather.syncing) = (forsaken, false);
        drop(weather);
        *lock(&self.life) = life.map(Arc::new);
        begun
    }

    fn life(&self) -> Arc<Life> {
        lock(&self.life).clone().expect("it lives")
    }

    /// Runs what may end with the process, and sees to what is left of it then.
    fn until_it_ends(&self, body: impl FnOnce()) {
        let Err(payload) = catch_unwind(AssertUnwindSafe(body)) else { return };
        let payload: Box<dyn Any + Send> = payload;
        match payload.downcast::<Ended>() {
            Ok(ended) => self.fall(ended.power_cut),
            Err(panic) => resume_unwind(panic),
        }
    }

    fn fall(&self, power_cut: bool) {
        let life = lock(&self.life).take();
        drop(life);
        let mut tally = lock(&self.tally);
        if power_cut {
            tally.power_cuts += 1;
        } else {
            tally.kills += 1;
        }
        drop(tally);
        lock(&self.book).end_life(power_cut);
        lock(&self.weather).checkpoints.clear();
        if power_cut {
            self.with_files_and_chance(Files::cut_power);
        }
    }

    /// As after SIGTERM: no more events, a drain, the last checkpoint.
    fn stop(&self) {
        self.say(|| "SIGTERM".into());
        let life = self.life();
        life.lifecycle.enter(Phase::Draining);
        life.buffer.close();
        life.drain.by(self.clock.now().plus(Duration::from_millis(500)));
        // Until the writer ends: it is done, or the deadline has passed.
        while lock(&life.writer).is_some() {
            self.write();
            self.recover();
            self.checkpoint();
            self.sync();
            self.clock.advance(Duration::from_millis(5));
        }
        life.journal.finish();
        let is_finished = || lock(&life.checkpoint).as_ref().expect("it is idle").is_finished();
        for round in 0.. {
            assert!(round < DRAIN_ROUNDS, "the last checkpoint never ends");
            self.checkpoint();
            if is_finished() {
                break;
            }
            self.sync();
            self.clock.advance(self.bounds.journal.write_every);
        }
        lock(&self.tally).stops += 1;
        if life.journal.promises(Level::Synced) {
            lock(&self.book).all_is_synced();
        }
        drop(life);
        let life = lock(&self.life).take();
        drop(life);
        lock(&self.book).end_life(false);
        lock(&self.weather).checkpoints.clear();
    }

    // The steps.

    fn step(&self) {
        match self.below(100) {
            0..35 => self.admit(),
            35..57 => self.checkpoint(),
            57..75 => self.write(),
            75..79 => self.recover(),
            79..85 => self.sync(),
            85..90 => self.clock.advance(Duration::from_millis(self.below(12) as u64)),
            90..93 => self.clock.advance(Duration::from_millis(self.below(6_000) as u64)),
            93 => {
                let hours = i64::try_from(self.below(48)).expect("few") - 24;
                let wall = self.clock.wall().micros() + hours * 3_600_000_000;
                self.clock.set_wall(Timestamp::from_micros(wall));
            }
            94..97 => {
                let mut weather = lock(&self.weather);
                weather.database_away = self.habits.database_fails > 0.0 && !weather.database_away;
            }
            97 => {
                let mut weather = lock(&self.weather);
                weather.disk_full = self.habits.disk_fails > 0.0 && !weather.disk_full;
            }
            98 => {
                let calls = ["write", "sync", "create", "sync of names", "remove", "read"];
                let call = calls[self.below(calls.len())];
                let mut weather = lock(&self.weather);
                let breaks = self.habits.disk_fails > 0.0 && weather.broken.is_none();
                weather.broken = breaks.then_some(call);
            }
            _ => self.evict(),
        }
    }

    /// What `api` does with a request whose events are good.
    fn admit(&self) {
        let life = self.life();
        let level = Level::ALL[self.below(3)];
        if life.lifecycle.phase() > Phase::Serving || !life.journal.promises(level) {
            return;
        }
        let limits = self.bounds.buffer;
        let count = if self.likely(0.5) { 1 } else { 1 + self.below(limits.rows_max + 1) };
        let mut book = lock(&self.book);
        let numbers: Vec<u64> = (0..count).map(|_| self.event(&mut book)).collect();
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for number in &numbers {
            book.get(*number).encode(&mut bytes);
            ends.push(bytes.len());
        }
        let cuts = ends.chunks(limits.batch_rows_max).scan(0, |start, ends| {
            let end = *ends.last().expect("a chunk has one at least");
            let block = &bytes[*start..end];
            *start = end;
            Some((block, u32::try_from(ends.len()).expect("few")))
        });
        let shard = self.below(self.bounds.shards);
        let (before, was_engaged) = (life.buffer.occupied(), life.buffer.spill().is_engaged());
        let rows = u32::try_from(count).expect("few");
        let keep = |block: &_| life.journal.keep(shard, block);
        let admitted = life.buffer.admit(shard, (rows, bytes.len()), self.clock.now(), cuts, keep);
        self.say(|| format!("events {numbers:?} at {}: {admitted:?}", level.name()));
        match admitted {
            Ok(()) => {}
            Err(Full::Closed) => return,
            Err(Full::Now | Full::Always) => {
                let fits =
                    before.rows + count <= limits.rows_max && before.bytes + bytes.len() <= limits.bytes_max;
                assert!(!fits || was_engaged, "refused although there is room: {before:?} of {limits:?}");
                return;
            }
        }
        book.admitted(&numbers);
        let request = book.requests;
        book.requests += 1;
        if level == Level::Memory {
            book.acknowledge(&numbers, level, request);
            return;
        }
        let book = self.book.clone();
        let tells = self.tells;
        let told = move |holds| {
            if tells {
                eprintln!("{:>12} events {numbers:?} at {}: told {holds}", "", level.name());
            }
            if holds {
                lock(&book).acknowledge(&numbers, level, request);
            }
        };
        life.journal.when(shard, level, Box::new(told));
    }

    /// A new event, or one that was sent before.
    fn event(&self, book: &mut Book) -> u64 {
        if !book.sent.is_empty() && self.likely(self.habits.known) {
            return self.below(book.sent.len()) as u64;
        }
        let most = match self.below(10) {
            _ if self.habits.large => 60_000,
            0 => 700,
            _ => 30,
        };
        book.send(self.likely(self.habits.poison), self.below(most))
    }

    fn checkpoint(&self) {
        let life = self.life();
        let now = self.clock.now();
        let requests = lock(&self.book).requests;
        let failures = life.failures();
        let ticked = with(&life.checkpoint, |checkpoint| {
            self.say(|| "checkpoint".into());
            let done = lock(&life.done).take();
            if done.is_some() {
                lock(&self.weather).syncing = false;
            }
            if let Some(job) = checkpoint.tick(done) {
                lock(&self.weather).syncing = true;
                *lock(&life.job) = Some(job);
            }
        });
        if !ticked {
            return;
        }
        if life.failures() > failures || life.journal.trouble().is_some() {
            // What is in doubt is written again: its time begins anew.
            lock(&self.weather).checkpoints.clear();
            return;
        }
        let mut book = lock(&self.book);
        // It wrote everything that had come before it.
        book.written = book.written.max(requests);
        let mut weather = lock(&self.weather);
        weather.checkpoints.push_back((now, requests));
        if weather.syncing {
            return;
        }
        // No sync is due or under way: what was written this long ago is on disk.
        let sync_every = self.bounds.journal.sync_every;
        while weather.checkpoints.front().is_some_and(|(began, _)| now.since(*began) >= sync_every) {
            let (_, requests) = weather.checkpoints.pop_front().expect("it was looked at");
            book.synced = book.synced.max(requests);
        }
    }

    /// What the sync thread does.
    fn sync(&self) {
        let life = self.life();
        let Some(job) = lock(&life.job).take() else { return };
        self.say(|| "sync thread".into());
        let done = job.run(&*life.disk);
        *lock(&life.done) = Some(done);
    }

    fn write(&self) {
        let life = self.life();
        let Some(mut writer) = lock(&life.writer).take() else { return };
        self.say(|| "writer".into());
        if writer.tick() == Next::End {
            // Its thread ends with this; what it gave up stays where it is.
            life.journal.finish();
            return;
        }
        *lock(&life.writer) = Some(writer);
    }

    /// May wait for room at any record; the others have their turns meanwhile. Not while one of those that make room is
    /// further down the stack and could not.
    fn recover(&self) {
        let life = self.life();
        if !self.is_whole() {
            return;
        }
        let (was_recovering, failures) = (life.journal.is_recovering(), life.failures());
        let ticked = with(&life.recovery, |recovery| {
            self.say(|| "recovery".into());
            recovery.tick();
        });
        let is_over = was_recovering && ticked && !life.journal.is_recovering();
        if is_over && life.failures() == failures && !lock(&self.weather).forsaken {
            lock(&self.book).past_is_synced();
        }
    }

    /// The kernel forgets what a failed sync left behind, once the journal has written it elsewhere.
    fn evict(&self) {
        let life = self.life();
        let is_elsewhere = life.journal.trouble().is_none() && !lock(&self.weather).syncing;
        if is_elsewhere && !life.had_backlog && lock(&life.checkpoint).is_some() {
            self.files().evict();
        }
    }

    // The judgement.

    /// What holds whenever no stage is at work.
    fn check(&self) {
        let life = self.life();
        let (occupied, balance) = (life.buffer.occupied(), life.ledger.balance());
        let limits = self.bounds.buffer;
        assert!(
            occupied.rows <= limits.rows_max && occupied.bytes <= limits.bytes_max,
            "{occupied:?} of {limits:?}"
        );
        let held = occupied.rows as u64 + life.buffer.spill().events();
        assert_eq!(held, balance.buffered(), "what is held and what the ledger says");
        assert_eq!(balance.lost, 0, "nothing that was synced is damaged here");
        let answered = lock(&self.book).answered;
        assert_eq!((balance.stored, balance.dead), (answered.stored, answered.dead), "what the ledger says");
    }

    fn drain_and_judge(self: &Arc<Self>) {
        // Sometimes the last life goes on, mostly another has to find what is left.
        let power_cut = self.likely(self.habits.power_cut);
        match self.below(4) {
            0 if lock(&self.life).is_some() && self.is_whole() => self.drain(),
            1 if lock(&self.life).is_some() && self.is_whole() => self.stop(),
            _ => {}
        }
        self.say(|| format!("the last end, power cut: {power_cut}"));
        self.fall(power_cut);
        assert!(self.begin(), "nothing fails, and the server does not start");
        self.drain();
        self.judge();
    }

    /// Whether all stages are there.
    fn is_whole(&self) -> bool {
        let life = self.life();
        lock(&life.writer).is_some() && lock(&life.checkpoint).is_some()
    }

    /// Until nothing is left to do.
    fn drain(&self) {
        let life = self.life();
        for _ in 0..DRAIN_ROUNDS {
            self.recover();
            self.checkpoint();
            self.sync();
            self.write();
            self.clock.advance(Duration::from_millis(500));
            let is_empty = life.buffer.occupied() == Occupied::default()
                && life.buffer.spill().events() == 0
                && !life.journal.is_recovering();
            let is_well = life.journal.trouble().is_none();
            if is_empty && is_well && !self.files().names().iter().any(|name| segment::number(name).is_some())
            {
                self.check();
                return;
            }
        }
        // What could not be read stays for another start.
        let unread = life.failures() > 0;
        let left = self.files().names();
        assert!(unread, "it does not drain: {:?} in the buffer, {left:?} on disk", life.buffer.occupied());
    }

    fn judge(&self) {
        let life = self.life();
        let balance = life.ledger.balance();
        assert_eq!(balance.received, balance.stored + balance.duplicate + balance.dead);
        let left = self.files().names();
        let is_over = |name: &String| name.ends_with(".damaged");
        assert!(left.iter().all(is_over), "left behind: {left:?}");
        // A power cut, or what a failed sync left behind.
        let tally = *lock(&self.tally);
        let may_be_damaged = tally.power_cuts > 0 || tally.disk_failures > 0;
        assert!(left.is_empty() || may_be_damaged, "damaged although the disk never failed: {left:?}");
        let (events, dead) = (self.database.events(), self.database.dead());
        let book = lock(&self.book);
        let known = |millis: u64| {
            let sent = book.sent.get(usize::try_from(millis).expect("few are sent"));
            let sent = sent.expect("something is stored that was never sent");
            assert!(sent.admitted, "event {} was refused and is stored", sent.number);
            sent
        };
        let mut stored = vec![false; book.sent.len()];
        let mut mark = |sent: &super::book::Sent| {
            let index = usize::try_from(sent.number).expect("few are sent");
            assert!(!std::mem::replace(&mut stored[index], true), "event {} is stored twice", sent.number);
        };
        for event in &events {
            let sent = known(event.event_id.millis());
            mark(sent);
            assert!(
                event.event_id == sent.id() && event.message == sent.message() && !sent.poison,
                "{event:?}"
            );
        }
        for (id, sqlstate, _) in &dead {
            let sent = known(id.millis());
            mark(sent);
            assert!(*id == sent.id() && sent.poison && sqlstate == "22P02", "{id} is dead: {sqlstate}");
        }
        for sent in book.owed() {
            let index = usize::try_from(sent.number).expect("few are sent");
            assert!(stored[index], "event {} was acknowledged and is lost", sent.number);
        }
    }
}
