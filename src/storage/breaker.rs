//! The circuit breaker of the database: consecutive failures open it, and while it is open no call
//! reaches the database.
//!
//! `BreakerMachine` is a pure state machine that takes the time as an argument. `Breaker` shares
//! one machine between the writer, the query threads and the probe, and logs each transition. The
//! caller decides which errors are failures: a rejected row is not one.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Moment;

/// The retry delay while another caller's probe is in flight.
const PROBE_POLL: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug)]
pub struct BreakerLimits {
    /// Consecutive failures that open the breaker.
    pub failure_threshold: u32,
    /// Consecutive successes that close the half-open breaker.
    pub success_threshold: u32,
    /// The time from opening to the first probe, and the time limit of a probe.
    pub timeout: Duration,
}

impl Default for BreakerLimits {
    fn default() -> Self {
        Self { failure_threshold: 5, success_threshold: 2, timeout: Duration::from_secs(30) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    Closed,
    HalfOpen,
    Open,
}

impl BreakerState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half-open",
            Self::Open => "open",
        }
    }
}

/// The breaker rejects calls until `retry_at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the circuit breaker is open")]
pub struct BreakerOpenError {
    pub retry_at: Moment,
}

/// The state machine of the breaker, without a lock. **Invariant:** when half-open, at most one
/// probe is in flight.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, and any of them go together")]
pub struct BreakerMachine {
    limits: BreakerLimits,
    phase: MachinePhase,
    /// [`Self::trip`] opened the breaker, and the writer has not succeeded since.
    tripped: bool,
    /// The writer has failed and not succeeded since.
    writer_failing: bool,
    /// The last failure was that of a database that is not reachable.
    unreachable: bool,
    /// [`Self::record_return`] has ended an open phase since the breaker was closed.
    returned: bool,
    transitions: u64,
}

#[derive(Clone, Copy, Debug)]
enum MachinePhase {
    Closed { failures: u32 },
    Open { since: Moment },
    HalfOpen { successes: u32, probe_since: Option<Moment> },
}

impl BreakerMachine {
    pub fn new(limits: BreakerLimits) -> Self {
        Self {
            limits,
            phase: MachinePhase::Closed { failures: 0 },
            tripped: false,
            writer_failing: false,
            unreachable: false,
            returned: false,
            transitions: 0,
        }
    }

    /// Admits or rejects a call to the database. An admitted caller must report the result with one
    /// of the `record_*` methods or [`Self::trip`]; a probe without a result expires after the
    /// timeout.
    pub fn admit(&mut self, now: Moment) -> Result<(), BreakerOpenError> {
        match &mut self.phase {
            MachinePhase::Closed { .. } => Ok(()),
            MachinePhase::Open { since } => {
                let retry_at = since.plus(self.limits.timeout);
                if now < retry_at {
                    return Err(BreakerOpenError { retry_at });
                }
                self.transition_to(MachinePhase::HalfOpen { successes: 0, probe_since: Some(now) });
                Ok(())
            }
            MachinePhase::HalfOpen { probe_since, .. } => match probe_since {
                Some(since) if now < since.plus(self.limits.timeout) => {
                    Err(BreakerOpenError { retry_at: now.plus(PROBE_POLL) })
                }
                Some(_) | None => {
                    *probe_since = Some(now);
                    Ok(())
                }
            },
        }
    }

    /// Records that the writer stored a batch.
    pub fn record_writer_success(&mut self, now: Moment) {
        if !matches!(self.phase, MachinePhase::Open { .. }) {
            self.tripped = false;
        }
        self.writer_failing = false;
        self.unreachable = false;
        self.record_success(now);
    }

    /// Records that the database answered a query or a ping. After [`Self::trip`] the breaker stays
    /// half-open until the writer succeeds, since an answered query does not prove that the
    /// configuration was fixed.
    pub fn record_success(&mut self, _now: Moment) {
        match &mut self.phase {
            MachinePhase::HalfOpen { probe_since, .. } if self.tripped => *probe_since = None,
            // Answered pings must not reset the failures of the writer.
            MachinePhase::Closed { .. } if self.writer_failing => {}
            MachinePhase::Closed { failures } => *failures = 0,
            MachinePhase::HalfOpen { successes, probe_since } => {
                *successes += 1;
                *probe_since = None;
                if *successes >= self.limits.success_threshold {
                    self.transition_to(MachinePhase::Closed { failures: 0 });
                }
            }
            // The call was admitted before the breaker opened; its result is stale.
            MachinePhase::Open { .. } => {}
        }
    }

    /// Records that the writer could not store a batch.
    pub fn record_writer_failure(&mut self, now: Moment) {
        self.writer_failing = true;
        self.record_failure(now);
    }

    pub fn record_failure(&mut self, now: Moment) {
        match &mut self.phase {
            MachinePhase::Closed { failures } => {
                *failures += 1;
                if *failures >= self.limits.failure_threshold {
                    self.transition_to(MachinePhase::Open { since: now });
                }
            }
            MachinePhase::HalfOpen { .. } => self.transition_to(MachinePhase::Open { since: now }),
            MachinePhase::Open { .. } => {}
        }
    }

    /// Notes the cause of the failure that is recorded next.
    pub fn set_unreachable(&mut self, unreachable: bool) {
        self.unreachable = unreachable;
    }

    /// Whether the breaker is open only because the database is not reachable, so that an answered
    /// ping shows that a call may succeed. It shows so once: if that call fails, the timeout applies.
    pub fn awaits_return(&self) -> bool {
        let is_open = matches!(self.phase, MachinePhase::Open { .. });
        is_open && self.unreachable && !self.tripped && !self.returned
    }

    /// Records that the database answers again: an open breaker that awaited it becomes half-open
    /// before its timeout.
    pub fn record_return(&mut self) {
        if self.awaits_return() {
            self.returned = true;
            self.transition_to(MachinePhase::HalfOpen { successes: 0, probe_since: None });
        }
    }

    /// Opens the breaker at once, for faults that a retry does not fix: a wrong password, a missing
    /// table.
    pub fn trip(&mut self, now: Moment) {
        self.tripped = true;
        if let MachinePhase::Open { since } = &mut self.phase {
            *since = now;
        } else {
            self.transition_to(MachinePhase::Open { since: now });
        }
    }

    pub fn state(&self) -> BreakerState {
        match self.phase {
            MachinePhase::Closed { .. } => BreakerState::Closed,
            MachinePhase::Open { .. } => BreakerState::Open,
            MachinePhase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// The time of the next probe; None unless the breaker is open.
    pub fn retry_at(&self) -> Option<Moment> {
        match self.phase {
            MachinePhase::Open { since } => Some(since.plus(self.limits.timeout)),
            MachinePhase::Closed { .. } | MachinePhase::HalfOpen { .. } => None,
        }
    }

    pub fn transitions(&self) -> u64 {
        self.transitions
    }

    fn transition_to(&mut self, phase: MachinePhase) {
        self.returned &= !matches!(phase, MachinePhase::Closed { .. });
        self.phase = phase;
        self.transitions += 1;
    }
}

/// The breaker that all callers of the database share.
#[derive(Debug)]
pub struct Breaker(Mutex<BreakerMachine>);

impl Breaker {
    pub fn new(limits: BreakerLimits) -> Self {
        Self(Mutex::new(BreakerMachine::new(limits)))
    }

    pub fn admit(&self, now: Moment) -> Result<(), BreakerOpenError> {
        self.change(|machine| machine.admit(now))
    }

    pub fn record_writer_success(&self, now: Moment) {
        self.change(|machine| machine.record_writer_success(now));
    }

    pub fn record_success(&self, now: Moment) {
        self.change(|machine| machine.record_success(now));
    }

    pub fn record_writer_failure(&self, now: Moment) {
        self.change(|machine| machine.record_writer_failure(now));
    }

    pub fn record_failure(&self, now: Moment) {
        self.change(|machine| machine.record_failure(now));
    }

    pub fn set_unreachable(&self, unreachable: bool) {
        self.lock().set_unreachable(unreachable);
    }

    pub fn awaits_return(&self) -> bool {
        self.lock().awaits_return()
    }

    pub fn record_return(&self) {
        self.change(BreakerMachine::record_return);
    }

    pub fn trip(&self, now: Moment) {
        self.change(|machine| machine.trip(now));
    }

    pub fn state(&self) -> BreakerState {
        self.lock().state()
    }

    /// The time of the next probe; None unless the breaker is open.
    pub fn retry_at(&self) -> Option<Moment> {
        self.lock().retry_at()
    }

    /// The number of state transitions.
    pub fn transitions(&self) -> u64 {
        self.lock().transitions()
    }

    fn change<T>(&self, work: impl FnOnce(&mut BreakerMachine) -> T) -> T {
        let mut machine = self.lock();
        let before = machine.state();
        let result = work(&mut machine);
        let after = machine.state();
        drop(machine);
        if before != after {
            match after {
                BreakerState::Open => log::error!("circuit breaker {} -> open", before.name()),
                BreakerState::HalfOpen | BreakerState::Closed => {
                    log::info!("circuit breaker {} -> {}", before.name(), after.name());
                }
            }
        }
        result
    }

    /// No method of the machine panics between two writes, so a poisoned lock holds a valid state.
    fn lock(&self) -> MutexGuard<'_, BreakerMachine> {
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

    fn opened() -> BreakerMachine {
        let mut machine = BreakerMachine::new(LIMITS);
        for _ in 0..3 {
            assert_eq!(machine.state(), BreakerState::Closed);
            machine.record_failure(at(0));
        }
        assert_eq!(machine.state(), BreakerState::Open);
        machine
    }

    #[test]
    fn breaker_opens_only_after_consecutive_failures() {
        let mut machine = BreakerMachine::new(LIMITS);
        for _ in 0..10 {
            machine.record_failure(at(0));
            machine.record_failure(at(0));
            machine.record_writer_success(at(0));
        }
        assert_eq!((machine.state(), machine.transitions()), (BreakerState::Closed, 0));
    }

    #[test]
    fn breaker_ping_successes_do_not_reset_writer_failures() {
        let mut machine = BreakerMachine::new(LIMITS);
        for _ in 0..3 {
            machine.record_writer_failure(at(0));
            machine.record_success(at(0));
        }
        assert_eq!(machine.state(), BreakerState::Open);
        let mut machine = BreakerMachine::new(LIMITS);
        machine.record_writer_failure(at(0));
        machine.record_writer_failure(at(0));
        machine.record_writer_success(at(0));
        machine.record_failure(at(0));
        machine.record_success(at(0));
        machine.record_writer_failure(at(0));
        assert_eq!(machine.state(), BreakerState::Closed);
    }

    #[test]
    fn breaker_open_rejects_until_the_timeout_and_then_admits_one_probe() {
        let mut machine = opened();
        assert_eq!(machine.admit(at(9)), Err(BreakerOpenError { retry_at: at(10) }));
        assert_eq!(machine.admit(at(10)), Ok(()));
        assert_eq!(machine.state(), BreakerState::HalfOpen);
        assert_eq!(machine.admit(at(11)), Err(BreakerOpenError { retry_at: at(11).plus(PROBE_POLL) }));
        machine.record_writer_success(at(11));
        assert_eq!(machine.admit(at(11)), Ok(()));
        machine.record_writer_success(at(12));
        assert_eq!((machine.state(), machine.transitions()), (BreakerState::Closed, 3));
    }

    #[test]
    fn breaker_reopens_after_a_failed_probe_and_expires_a_lost_probe() {
        let mut machine = opened();
        assert_eq!(machine.admit(at(10)), Ok(()));
        machine.record_failure(at(12));
        assert_eq!(machine.admit(at(21)), Err(BreakerOpenError { retry_at: at(22) }));
        assert_eq!(machine.admit(at(22)), Ok(()));
        assert!(machine.admit(at(31)).is_err());
        assert_eq!(machine.admit(at(32)), Ok(()), "the probe of second 22 expired");
    }

    #[test]
    fn breaker_trip_opens_at_once_and_restarts_the_timeout() {
        let breaker = Breaker::new(LIMITS);
        breaker.trip(at(1));
        breaker.trip(at(5));
        assert_eq!(breaker.admit(at(14)), Err(BreakerOpenError { retry_at: at(15) }));
        assert_eq!((breaker.state(), breaker.transitions()), (BreakerState::Open, 1));
    }

    #[test]
    fn breaker_after_a_trip_closes_only_after_a_writer_success() {
        let mut machine = BreakerMachine::new(LIMITS);
        machine.trip(at(0));
        for second in [10, 11, 12] {
            assert_eq!(machine.admit(at(second)), Ok(()));
            machine.record_success(at(second));
            assert_eq!(machine.state(), BreakerState::HalfOpen);
        }
        machine.record_writer_success(at(13));
        machine.record_success(at(14));
        assert_eq!(machine.state(), BreakerState::Closed);
    }

    #[test]
    fn breaker_that_awaits_the_return_of_the_database_is_half_open_with_it_once() {
        let mut machine = opened();
        machine.record_return();
        assert_eq!(machine.state(), BreakerState::Open, "the database was reachable");
        machine.set_unreachable(true);
        assert!(machine.awaits_return());
        machine.record_return();
        assert_eq!((machine.state(), machine.admit(at(1))), (BreakerState::HalfOpen, Ok(())));
        // The call fails nonetheless: the timeout applies.
        machine.record_writer_failure(at(1));
        machine.record_return();
        assert_eq!((machine.state(), machine.awaits_return()), (BreakerState::Open, false));
        assert_eq!(machine.admit(at(11)), Ok(()));
        machine.record_writer_success(at(11));
        machine.record_writer_success(at(11));
        assert_eq!(machine.state(), BreakerState::Closed);
        machine.set_unreachable(true);
        (0..3).for_each(|_| machine.record_writer_failure(at(12)));
        assert!(machine.awaits_return(), "the next outage");
        machine.trip(at(13));
        machine.record_return();
        assert_eq!(machine.state(), BreakerState::Open, "a ping does not show that a fault was corrected");
    }

    /// Operations for the reference model, which derives the state from the whole history.
    #[derive(Clone, Copy, Debug)]
    enum BreakerOp {
        Admit,
        WriterSuccess,
        Success,
        Failure,
        Trip,
        Wait(u64),
    }

    fn reference(history: &[BreakerOp]) -> (BreakerState, Option<bool>) {
        let (mut state, mut now, mut entered, mut admitted) = (BreakerState::Closed, 0, 0, None);
        let mut recent: Vec<BreakerOp> = Vec::new();
        let mut probe: Option<u64> = None;
        let mut tripped = false;
        for step in history {
            admitted = None;
            let before = state;
            match (state, *step) {
                (_, BreakerOp::Trip) => tripped = true,
                (BreakerState::Closed | BreakerState::HalfOpen, BreakerOp::WriterSuccess) => tripped = false,
                _ => {}
            }
            match (state, *step) {
                (_, BreakerOp::Wait(seconds)) => now += seconds,
                (BreakerState::Closed, BreakerOp::Admit) => admitted = Some(true),
                (BreakerState::Open, BreakerOp::Admit) => {
                    admitted = Some(now >= entered + 10);
                    if admitted == Some(true) {
                        state = BreakerState::HalfOpen;
                        probe = Some(now);
                    }
                }
                (BreakerState::HalfOpen, BreakerOp::Admit) => {
                    admitted = Some(probe.is_none_or(|since| now >= since + 10));
                    if admitted == Some(true) {
                        probe = Some(now);
                    }
                }
                (BreakerState::Open, BreakerOp::WriterSuccess | BreakerOp::Success | BreakerOp::Failure) => {}
                (
                    BreakerState::Closed,
                    BreakerOp::WriterSuccess | BreakerOp::Success | BreakerOp::Failure,
                ) => {
                    recent.push(*step);
                    let tail =
                        recent.iter().rev().take_while(|step| matches!(step, BreakerOp::Failure)).count();
                    if tail >= 3 {
                        state = BreakerState::Open;
                        entered = now;
                    }
                }
                (_, BreakerOp::Trip) | (BreakerState::HalfOpen, BreakerOp::Failure) => {
                    state = BreakerState::Open;
                    entered = now;
                }
                (BreakerState::HalfOpen, BreakerOp::Success) if tripped => probe = None,
                (BreakerState::HalfOpen, BreakerOp::WriterSuccess | BreakerOp::Success) => {
                    recent.push(*step);
                    probe = None;
                    if recent.len() >= 2 {
                        state = BreakerState::Closed;
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
        fn breaker_matches_the_reference_model(history in prop::collection::vec(prop_oneof![
            4 => Just(BreakerOp::Admit),
            3 => Just(BreakerOp::WriterSuccess),
            3 => Just(BreakerOp::Success),
            4 => Just(BreakerOp::Failure),
            1 => Just(BreakerOp::Trip),
            3 => (1_u64..15).prop_map(BreakerOp::Wait),
        ], 0..80)) {
            let mut machine = BreakerMachine::new(LIMITS);
            let mut now = 0;
            for (index, step) in history.iter().enumerate() {
                let admitted = match step {
                    BreakerOp::Admit => Some(machine.admit(at(now)).is_ok()),
                    BreakerOp::WriterSuccess => { machine.record_writer_success(at(now)); None }
                    BreakerOp::Success => { machine.record_success(at(now)); None }
                    BreakerOp::Failure => { machine.record_failure(at(now)); None }
                    BreakerOp::Trip => { machine.trip(at(now)); None }
                    BreakerOp::Wait(seconds) => { now += seconds; None }
                };
                prop_assert_eq!((machine.state(), admitted), reference(&history[..=index]), "step {}", index);
            }
        }
    }
}
