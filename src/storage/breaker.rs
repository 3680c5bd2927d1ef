//! The circuit breaker around the database: after failures in a row nobody asks it any more, until it has had time.
//!
//! `Machine` is pure and told the time; `Breaker` shares one between the writer and the query threads and says each
//! change once. What counts as a failure is the caller's judgement: a refused row is none.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Moment;

/// How soon to ask again while somebody else's probe is on its way.
const PROBE_POLL: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug)]
pub struct BreakerLimits {
    /// Failures in a row that open it.
    pub failure_threshold: u32,
    /// Successes in a row, half-open, that close it.
    pub success_threshold: u32,
    /// How long it stays open before a probe is let through; also how long a probe may take to report.
    pub timeout: Duration,
}

impl Default for BreakerLimits {
    fn default() -> Self {
        Self { failure_threshold: 5, success_threshold: 2, timeout: Duration::from_secs(30) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Closed,
    HalfOpen,
    Open,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half-open",
            Self::Open => "open",
        }
    }
}

/// Nobody may ask the database before `retry_at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the circuit breaker is open")]
pub struct Open {
    pub retry_at: Moment,
}

/// What the breaker is about, without a lock. **Invariant:** half-open, at most one probe is on its way.
#[derive(Debug)]
pub struct Machine {
    limits: BreakerLimits,
    phase: Phase,
    /// A fault of the configuration opened it, and whoever met that has not succeeded since.
    tripped: bool,
    /// The writer has failed, and not succeeded since.
    writer_fails: bool,
    transitions: u64,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed { failures: u32 },
    Open { since: Moment },
    HalfOpen { successes: u32, probe_since: Option<Moment> },
}

impl Machine {
    pub fn new(limits: BreakerLimits) -> Self {
        Self {
            limits,
            phase: Phase::Closed { failures: 0 },
            tripped: false,
            writer_fails: false,
            transitions: 0,
        }
    }

    /// Whether one may ask the database now. Who is let through must report with [`Self::succeeded`],
    /// [`Self::answered`] or [`Self::failed`]; a probe that never does is given up after the timeout.
    pub fn admit(&mut self, now: Moment) -> Result<(), Open> {
        match &mut self.phase {
            Phase::Closed { .. } => Ok(()),
            Phase::Open { since } => {
                let retry_at = since.plus(self.limits.timeout);
                if now < retry_at {
                    return Err(Open { retry_at });
                }
                self.turn(Phase::HalfOpen { successes: 0, probe_since: Some(now) });
                Ok(())
            }
            Phase::HalfOpen { probe_since, .. } => match probe_since {
                Some(since) if now < since.plus(self.limits.timeout) => {
                    Err(Open { retry_at: now.plus(PROBE_POLL) })
                }
                Some(_) | None => {
                    *probe_since = Some(now);
                    Ok(())
                }
            },
        }
    }

    /// The writer's work was done.
    pub fn succeeded(&mut self, now: Moment) {
        if !matches!(self.phase, Phase::Open { .. }) {
            self.tripped = false;
        }
        self.writer_fails = false;
        self.answered(now);
    }

    /// The database answered a query or a ping. After [`Self::trip`] that says nothing of what is wrong with it: it goes
    /// on being half-open until the writer has succeeded.
    pub fn answered(&mut self, _now: Moment) {
        match &mut self.phase {
            Phase::HalfOpen { probe_since, .. } if self.tripped => *probe_since = None,
            // Pings that are answered must not hide that no batch gets through.
            Phase::Closed { .. } if self.writer_fails => {}
            Phase::Closed { failures } => *failures = 0,
            Phase::HalfOpen { successes, probe_since } => {
                *successes += 1;
                *probe_since = None;
                if *successes >= self.limits.success_threshold {
                    self.turn(Phase::Closed { failures: 0 });
                }
            }
            // Let through before it opened. It says nothing about now.
            Phase::Open { .. } => {}
        }
    }

    /// The writer's work was not done.
    pub fn writer_failed(&mut self, now: Moment) {
        self.writer_fails = true;
        self.failed(now);
    }

    pub fn failed(&mut self, now: Moment) {
        match &mut self.phase {
            Phase::Closed { failures } => {
                *failures += 1;
                if *failures >= self.limits.failure_threshold {
                    self.turn(Phase::Open { since: now });
                }
            }
            Phase::HalfOpen { .. } => self.turn(Phase::Open { since: now }),
            Phase::Open { .. } => {}
        }
    }

    /// Opens at once, for what no retry in a row will mend: a wrong password, a missing table.
    pub fn trip(&mut self, now: Moment) {
        self.tripped = true;
        if let Phase::Open { since } = &mut self.phase {
            *since = now;
        } else {
            self.turn(Phase::Open { since: now });
        }
    }

    pub fn state(&self) -> State {
        match self.phase {
            Phase::Closed { .. } => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// When the next probe is let through; None unless it is open.
    pub fn retry_at(&self) -> Option<Moment> {
        match self.phase {
            Phase::Open { since } => Some(since.plus(self.limits.timeout)),
            Phase::Closed { .. } | Phase::HalfOpen { .. } => None,
        }
    }

    pub fn transitions(&self) -> u64 {
        self.transitions
    }

    fn turn(&mut self, phase: Phase) {
        self.phase = phase;
        self.transitions += 1;
    }
}

/// One breaker for all who ask the database.
#[derive(Debug)]
pub struct Breaker(Mutex<Machine>);

impl Breaker {
    pub fn new(limits: BreakerLimits) -> Self {
        Self(Mutex::new(Machine::new(limits)))
    }

    pub fn admit(&self, now: Moment) -> Result<(), Open> {
        self.change(|machine| machine.admit(now))
    }

    pub fn succeeded(&self, now: Moment) {
        self.change(|machine| machine.succeeded(now));
    }

    pub fn answered(&self, now: Moment) {
        self.change(|machine| machine.answered(now));
    }

    pub fn writer_failed(&self, now: Moment) {
        self.change(|machine| machine.writer_failed(now));
    }

    pub fn failed(&self, now: Moment) {
        self.change(|machine| machine.failed(now));
    }

    pub fn trip(&self, now: Moment) {
        self.change(|machine| machine.trip(now));
    }

    pub fn state(&self) -> State {
        self.lock().state()
    }

    /// When the next probe is let through; None unless it is open.
    pub fn retry_at(&self) -> Option<Moment> {
        self.lock().retry_at()
    }

    /// How often it has changed its state.
    pub fn transitions(&self) -> u64 {
        self.lock().transitions()
    }

    fn change<T>(&self, work: impl FnOnce(&mut Machine) -> T) -> T {
        let mut machine = self.lock();
        let before = machine.state();
        let result = work(&mut machine);
        let after = machine.state();
        drop(machine);
        if before != after {
            match after {
                State::Open => log::error!("circuit breaker {} -> open", before.name()),
                State::HalfOpen | State::Closed => {
                    log::info!("circuit breaker {} -> {}", before.name(), after.name());
                }
            }
        }
        result
    }

    /// No method of the machine can leave it half changed.
    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: BreakerLimits =
        BreakerLimits { failure_threshold: 3, success_threshold: 2, timeout: Duration::from_secs(10) };

    fn at(seconds: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_secs(seconds))
    }

    fn opened() -> Machine {
        let mut machine = Machine::new(LIMITS);
        for _ in 0..3 {
            assert_eq!(machine.state(), State::Closed);
            machine.failed(at(0));
        }
        assert_eq!(machine.state(), State::Open);
        machine
    }

    #[test]
    fn it_opens_after_failures_in_a_row_only() {
        let mut machine = Machine::new(LIMITS);
        for _ in 0..10 {
            machine.failed(at(0));
            machine.failed(at(0));
            machine.succeeded(at(0));
        }
        assert_eq!((machine.state(), machine.transitions()), (State::Closed, 0));
    }

    #[test]
    fn answered_pings_do_not_hide_that_the_writer_gets_nothing_through() {
        let mut machine = Machine::new(LIMITS);
        for _ in 0..3 {
            machine.writer_failed(at(0));
            machine.answered(at(0));
        }
        assert_eq!(machine.state(), State::Open);
        let mut machine = Machine::new(LIMITS);
        machine.writer_failed(at(0));
        machine.writer_failed(at(0));
        machine.succeeded(at(0));
        machine.failed(at(0));
        machine.answered(at(0));
        machine.writer_failed(at(0));
        assert_eq!(machine.state(), State::Closed);
    }

    #[test]
    fn open_it_refuses_until_the_timeout_and_then_lets_one_probe_through() {
        let mut machine = opened();
        assert_eq!(machine.admit(at(9)), Err(Open { retry_at: at(10) }));
        assert_eq!(machine.admit(at(10)), Ok(()));
        assert_eq!(machine.state(), State::HalfOpen);
        assert_eq!(machine.admit(at(11)), Err(Open { retry_at: at(11).plus(PROBE_POLL) }));
        machine.succeeded(at(11));
        assert_eq!(machine.admit(at(11)), Ok(()));
        machine.succeeded(at(12));
        assert_eq!((machine.state(), machine.transitions()), (State::Closed, 3));
    }

    #[test]
    fn a_probe_that_fails_opens_it_again_and_one_that_is_lost_is_given_up() {
        let mut machine = opened();
        assert_eq!(machine.admit(at(10)), Ok(()));
        machine.failed(at(12));
        assert_eq!(machine.admit(at(21)), Err(Open { retry_at: at(22) }));
        assert_eq!(machine.admit(at(22)), Ok(()));
        assert!(machine.admit(at(31)).is_err());
        assert_eq!(machine.admit(at(32)), Ok(()), "the probe of second 22 never reported");
    }

    #[test]
    fn a_trip_opens_at_once_and_lasts_from_the_latest() {
        let breaker = Breaker::new(LIMITS);
        breaker.trip(at(1));
        breaker.trip(at(5));
        assert_eq!(breaker.admit(at(14)), Err(Open { retry_at: at(15) }));
        assert_eq!((breaker.state(), breaker.transitions()), (State::Open, 1));
    }

    #[test]
    fn after_a_trip_only_who_met_it_closes_the_breaker() {
        let mut machine = Machine::new(LIMITS);
        machine.trip(at(0));
        for second in [10, 11, 12] {
            assert_eq!(machine.admit(at(second)), Ok(()));
            machine.answered(at(second));
            assert_eq!(machine.state(), State::HalfOpen);
        }
        machine.succeeded(at(13));
        machine.answered(at(14));
        assert_eq!(machine.state(), State::Closed);
    }

    /// The rules once more, as a reading of the whole history instead of a state kept from step to step.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Admit,
        Succeed,
        Answer,
        Fail,
        Trip,
        Wait(u64),
    }

    fn reference(history: &[Step]) -> (State, Option<bool>) {
        let (mut state, mut now, mut entered, mut admitted) = (State::Closed, 0, 0, None);
        let mut recent: Vec<Step> = Vec::new();
        let mut probe: Option<u64> = None;
        let mut tripped = false;
        for step in history {
            admitted = None;
            let before = state;
            match (state, *step) {
                (_, Step::Trip) => tripped = true,
                (State::Closed | State::HalfOpen, Step::Succeed) => tripped = false,
                _ => {}
            }
            match (state, *step) {
                (_, Step::Wait(seconds)) => now += seconds,
                (State::Closed, Step::Admit) => admitted = Some(true),
                (State::Open, Step::Admit) => {
                    admitted = Some(now >= entered + 10);
                    if admitted == Some(true) {
                        state = State::HalfOpen;
                        probe = Some(now);
                    }
                }
                (State::HalfOpen, Step::Admit) => {
                    admitted = Some(probe.is_none_or(|since| now >= since + 10));
                    if admitted == Some(true) {
                        probe = Some(now);
                    }
                }
                (State::Open, Step::Succeed | Step::Answer | Step::Fail) => {}
                (State::Closed, Step::Succeed | Step::Answer | Step::Fail) => {
                    recent.push(*step);
                    let tail = recent.iter().rev().take_while(|step| matches!(step, Step::Fail)).count();
                    if tail >= 3 {
                        state = State::Open;
                        entered = now;
                    }
                }
                (_, Step::Trip) | (State::HalfOpen, Step::Fail) => {
                    state = State::Open;
                    entered = now;
                }
                (State::HalfOpen, Step::Answer) if tripped => probe = None,
                (State::HalfOpen, Step::Succeed | Step::Answer) => {
                    recent.push(*step);
                    probe = None;
                    if recent.len() >= 2 {
                        state = State::Closed;
                    }
                }
            }
            if before != state {
                recent.clear();
            }
        }
        (state, admitted)
    }

    proptest! {
        #[test]
        fn it_does_what_the_rules_say(history in prop::collection::vec(prop_oneof![
            4 => Just(Step::Admit),
            3 => Just(Step::Succeed),
            3 => Just(Step::Answer),
            4 => Just(Step::Fail),
            1 => Just(Step::Trip),
            3 => (1_u64..15).prop_map(Step::Wait),
        ], 0..80)) {
            let mut machine = Machine::new(LIMITS);
            let mut now = 0;
            for (index, step) in history.iter().enumerate() {
                let admitted = match step {
                    Step::Admit => Some(machine.admit(at(now)).is_ok()),
                    Step::Succeed => { machine.succeeded(at(now)); None }
                    Step::Answer => { machine.answered(at(now)); None }
                    Step::Fail => { machine.failed(at(now)); None }
                    Step::Trip => { machine.trip(at(now)); None }
                    Step::Wait(seconds) => { now += seconds; None }
                };
                prop_assert_eq!((machine.state(), admitted), reference(&history[..=index]), "step {}", index);
            }
        }
    }
}
