//! An in-memory `EventRepository` for the tests of other modules, with fault injection.
//!
//! It detects duplicates as PostgreSQL does and rejects the rows that a test selects. Not for
//! production: it persists nothing, and every query scans all events.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::event::row::{self, Row};
use crate::event::{Event, EventId, HOUR_MICROS, Timestamp};
use crate::storage::{
    Chunk, CountInterval, CreatePartitionLimits, CreatePartitionOutcome, Day, DeadLetter, DefaultPartition,
    DeletedChunk, EventPage, EventRepository, EventStatus, Filter, IntervalCount, RetentionSweep, SortOrder,
    StoreError, StorePath, Stored, SweepConditions, Totals, trial,
};

/// A recorded call of the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepositoryCall {
    Prepare,
    TrialInsert,
    Store { rows: usize, dead: usize, path: StorePath },
    Page,
    Count,
    Find,
    Totals,
    Ping,
    PartitionDays,
    CreatePartition(Day),
    DefaultPartition,
    SweepConditions,
    LastSweep,
    Sweep,
}

/// A fault that a test injects into a later call.
#[derive(Clone, Debug)]
pub enum InjectedFault {
    /// Returns the error without running the call.
    Fail(StoreError),
    /// Runs the call and returns the error, as when the connection breaks during COMMIT.
    FailAfter(StoreError),
    Panic,
}

/// Returns the SQLSTATE with which a row is rejected, or None when it is accepted.
type RejectRule = Box<dyn Fn(&Row<'_>) -> Option<&'static str> + Send>;

#[derive(Default)]
pub struct MemoryRepository(Mutex<MemoryState>);

#[derive(Default)]
struct MemoryState {
    events: BTreeMap<EventId, Event>,
    dead: BTreeMap<EventId, (String, String)>,
    /// Events of other days are in the default partition.
    partitions: BTreeSet<Day>,
    /// Fails the creation of partitions.
    partition_error: Option<StoreError>,
    faults: VecDeque<InjectedFault>,
    /// Fails every call until a test clears it.
    outage: Option<StoreError>,
    reject_rule: Option<RejectRule>,
    reports_row_index: bool,
    calls: Vec<RepositoryCall>,
    last_sweep: Option<Timestamp>,
    sweep_conditions: SweepConditions,
}

impl fmt::Debug for MemoryRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("MemoryRepository")
            .field("events", &state.events.len())
            .field("dead", &state.dead.len())
            .field("faults", &state.faults)
            .finish_non_exhaustive()
    }
}

/// The events and dead letters of a [`MemoryRepository`].
#[derive(Debug)]
pub struct MemorySnapshot {
    events: BTreeMap<EventId, Event>,
    dead: BTreeMap<EventId, (String, String)>,
}

impl MemoryRepository {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn snapshot(&self) -> MemorySnapshot {
        let state = self.lock();
        MemorySnapshot { events: state.events.clone(), dead: state.dead.clone() }
    }

    /// Returns to an earlier state, as a failover does.
    pub fn set_back(&self, to: MemorySnapshot) {
        let mut state = self.lock();
        (state.events, state.dead) = (to.events, to.dead);
    }

    /// Injects these faults into the next calls of any kind, one fault per call.
    pub fn inject_faults(&self, faults: impl IntoIterator<Item = InjectedFault>) {
        self.lock().faults.extend(faults);
    }

    /// Fails every call with `error`, until this is called with None.
    pub fn set_outage(&self, error: Option<StoreError>) {
        self.lock().outage = error;
    }

    /// Rejects every batch that holds a row for which `reject_rule` returns a SQLSTATE. If
    /// `reports_row_index` is set, the error has the index of the first such row.
    pub fn reject_rows(
        &self,
        reports_row_index: bool,
        reject_rule: impl Fn(&Row<'_>) -> Option<&'static str> + Send + 'static,
    ) {
        let mut state = self.lock();
        state.reports_row_index = reports_row_index;
        state.reject_rule = Some(Box::new(reject_rule));
    }

    pub fn events(&self) -> Vec<Event> {
        self.lock().events.values().cloned().collect()
    }

    /// The dead letters, with SQLSTATE and reason.
    pub fn dead(&self) -> Vec<(EventId, String, String)> {
        self.lock()
            .dead
            .iter()
            .map(|(id, (sqlstate, reason))| (*id, sqlstate.clone(), reason.clone()))
            .collect()
    }

    /// Creates a partition for each day that has events.
    pub fn create_all_partitions(&self) {
        let mut state = self.lock();
        state.partitions = state.events.keys().map(|id| Day::from_id(*id)).collect();
    }

    /// Fails the creation of partitions with `error`, until this is called with None.
    pub fn refuse_partitions(&self, error: Option<StoreError>) {
        self.lock().partition_error = error;
    }

    /// Sets the conditions that a sweep finds. By default the role is not the owner.
    pub fn set_sweep_conditions(&self, conditions: SweepConditions) {
        self.lock().sweep_conditions = conditions;
    }

    /// Sets the start time of the last finished sweep.
    pub fn set_last_sweep(&self, at: Timestamp) {
        self.lock().last_sweep = Some(at);
    }

    pub fn calls(&self) -> Vec<RepositoryCall> {
        self.lock().calls.clone()
    }

    /// An injected panic does not interrupt a change, so a poisoned lock holds a valid state.
    fn lock(&self) -> MutexGuard<'_, MemoryState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_call<T>(
        &self,
        call: RepositoryCall,
        work: impl FnOnce(&mut MemoryState) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut state = self.lock();
        state.calls.push(call);
        if let Some(error) = &state.outage {
            return Err(error.clone());
        }
        match state.faults.pop_front() {
            None => work(&mut state),
            Some(InjectedFault::Fail(error)) => Err(error),
            Some(InjectedFault::FailAfter(error)) => work(&mut state).and(Err(error)),
            Some(InjectedFault::Panic) => {
                drop(state);
                panic!("panic injected by the test");
            }
        }
    }
}

impl MemoryState {
    fn store(
        &mut self,
        runs: &[&[u8]],
        dead: &[DeadLetter<'_>],
        path: StorePath,
    ) -> Result<Stored, StoreError> {
        let mut new_events = BTreeMap::new();
        let mut duplicate = 0;
        for (index, row) in runs.iter().flat_map(|run| row::rows(run)).enumerate() {
            if let Some(sqlstate) = self.reject_rule.as_ref().and_then(|reject_rule| reject_rule(&row)) {
                return Err(rejected_row_error(sqlstate, self.reports_row_index.then_some(index), None));
            }
            let id = row.event_id();
            let is_stored = self.events.contains_key(&id) || new_events.contains_key(&id);
            match path {
                StorePath::Copy if is_stored => {
                    return Err(rejected_row_error("23505", Some(index), Some("events_pkey".to_owned())));
                }
                StorePath::Staging if is_stored => duplicate += 1,
                StorePath::Copy | StorePath::Staging => {
                    new_events.insert(id, row.to_event());
                }
            }
        }
        let stored = new_events.len() as u64;
        self.events.extend(new_events);
        let mut inserted = 0;
        for letter in dead {
            if let Entry::Vacant(slot) = self.dead.entry(letter.row.event_id()) {
                slot.insert((letter.sqlstate.clone(), letter.reason.clone()));
                inserted += 1;
            }
        }
        Ok(Stored { stored, duplicate, dead: inserted, commit: None })
    }

    fn trial_insert(&self, now: Timestamp) -> Result<(), StoreError> {
        let Some(reject_rule) = &self.reject_rule else { return Ok(()) };
        let mut rows: Vec<_> = self.events.values().map(trial::copy_of).collect();
        if rows.is_empty() {
            rows.push(trial::ordinary_row(now));
        }
        let refusals: Vec<_> =
            rows.iter().flat_map(|row| row::rows(row)).filter_map(|row| reject_rule(&row)).collect();
        match refusals.first() {
            Some(sqlstate) if refusals.len() == rows.len() => Err(rejected_row_error(sqlstate, None, None)),
            Some(_) | None => Ok(()),
        }
    }

    fn matching(&self, filter: &Filter) -> impl Iterator<Item = &Event> {
        self.events.values().filter(move |event| {
            (filter.from..filter.to).contains(&event.timestamp)
                && filter.arrived_from.is_none_or(|from| event.arrival >= from)
                && filter.service.as_ref().is_none_or(|service| *service == event.service)
                && filter
                    .text
                    .as_ref()
                    .is_none_or(|text| event.message.to_lowercase().contains(&text.to_lowercase()))
                && filter.metadata.iter().all(|objects| metadata_contains(event, objects))
        })
    }

    fn page(&self, page: &EventPage) -> Vec<Event> {
        let mut events: Vec<_> = self.matching(&page.filter).cloned().collect();
        events.sort_unstable_by_key(Event::key);
        if page.order == SortOrder::Desc {
            events.reverse();
        }
        if let Some(after) = page.after {
            events.retain(|event| match page.order {
                SortOrder::Desc => event.key() < after,
                SortOrder::Asc => event.key() > after,
            });
        }
        events.truncate(usize::from(page.limit));
        events
    }

    fn totals(&self, since: Timestamp, services_max: u16) -> Totals {
        let (mut services, mut hours) = (BTreeMap::new(), BTreeMap::new());
        for event in self.events.values() {
            *services.entry(event.service.clone()).or_default() += 1;
            let hour = event.timestamp.micros().div_euclid(HOUR_MICROS) * HOUR_MICROS;
            *hours.entry(Timestamp::from_micros(hour)).or_default() += 1;
        }
        let mut services: Vec<(String, u64)> = services.into_iter().collect();
        services.sort_by_key(|(_, events)| std::cmp::Reverse(*events));
        services.truncate(usize::from(services_max));
        hours.retain(|hour, _| *hour >= since);
        Totals { events: self.events.len() as u64, services, hours: hours.into_iter().collect() }
    }

    fn find(&self, id: EventId) -> Option<EventStatus> {
        if let Some(event) = self.events.get(&id) {
            return Some(EventStatus::Stored(event.clone()));
        }
        let (sqlstate, reason) = self.dead.get(&id)?.clone();
        Some(EventStatus::Dead { sqlstate, reason })
    }
}

/// Checks that the metadata contains one of the objects.
fn metadata_contains(event: &Event, objects: &[String]) -> bool {
    let parsed = |text: &str| sonic_rs::from_str::<sonic_rs::Object>(text).unwrap_or_default();
    let metadata = parsed(event.metadata.as_deref().unwrap_or("{}"));
    objects.iter().any(|object| parsed(object).iter().all(|(key, value)| metadata.get(&key) == Some(value)))
}

fn rejected_row_error(sqlstate: &str, row: Option<usize>, constraint: Option<String>) -> StoreError {
    StoreError {
        sqlstate: Some(sqlstate.to_owned()),
        message: format!("rejected by the test ({sqlstate})"),
        row,
        constraint,
        column: None,
        outside_rows: false,
        timed_out: false,
        in_doubt: false,
    }
}

impl EventRepository for MemoryRepository {
    fn prepare(&self) -> Result<(), StoreError> {
        self.run_call(RepositoryCall::Prepare, |_| Ok(()))
    }

    fn store(&self, runs: &[&[u8]], dead: &[DeadLetter<'_>], path: StorePath) -> Result<Stored, StoreError> {
        let rows = runs.iter().flat_map(|run| row::rows(run)).count();
        self.run_call(RepositoryCall::Store { rows, dead: dead.len(), path }, |state| {
            state.store(runs, dead, path)
        })
    }

    fn trial_insert(&self, now: Timestamp) -> Result<(), StoreError> {
        self.run_call(RepositoryCall::TrialInsert, |state| state.trial_insert(now))
    }

    fn page(&self, page: &EventPage, bytes_max: usize) -> Result<Chunk, StoreError> {
        self.run_call(RepositoryCall::Page, |state| {
            Ok(Chunk::from_events(state.page(page), page.limit, bytes_max))
        })
    }

    fn count(&self, filter: &Filter) -> Result<u64, StoreError> {
        self.run_call(RepositoryCall::Count, |state| Ok(state.matching(filter).count() as u64))
    }

    fn interval_counts(
        &self,
        filter: &Filter,
        interval: CountInterval,
        rows_max: u32,
    ) -> Result<Vec<IntervalCount>, StoreError> {
        self.run_call(RepositoryCall::Count, |state| {
            let mut counts = BTreeMap::<_, u64>::new();
            for event in state.matching(filter) {
                let start = event.timestamp.micros().div_euclid(interval.micros()) * interval.micros();
                *counts.entry((Timestamp::from_micros(start), event.service.clone())).or_default() += 1;
            }
            let first = counts.into_iter().take(rows_max as usize);
            Ok(first.map(|((start, service), count)| IntervalCount { start, service, count }).collect())
        })
    }

    fn find(&self, id: EventId) -> Result<Option<EventStatus>, StoreError> {
        self.run_call(RepositoryCall::Find, |state| Ok(state.find(id)))
    }

    fn totals(&self, since: Timestamp, services_max: u16) -> Result<Totals, StoreError> {
        self.run_call(RepositoryCall::Totals, |state| Ok(state.totals(since, services_max)))
    }

    fn ping(&self) -> Result<(), StoreError> {
        self.run_call(RepositoryCall::Ping, |_| Ok(()))
    }

    fn partition_days(&self) -> Result<Vec<Day>, StoreError> {
        self.run_call(RepositoryCall::PartitionDays, |state| Ok(state.partitions.iter().copied().collect()))
    }

    fn create_partition(
        &self,
        day: Day,
        limits: CreatePartitionLimits,
    ) -> Result<CreatePartitionOutcome, StoreError> {
        self.run_call(RepositoryCall::CreatePartition(day), |state| {
            if let Some(error) = &state.partition_error {
                return Err(error.clone());
            }
            if state.partitions.contains(&day) {
                return Ok(CreatePartitionOutcome::Exists);
            }
            let moved = state.events.keys().filter(|id| Day::from_id(**id) == day).count() as u64;
            if moved > limits.moved_rows_max {
                return Ok(CreatePartitionOutcome::TooManyRows);
            }
            state.partitions.insert(day);
            Ok(CreatePartitionOutcome::Created { moved })
        })
    }

    fn default_partition(&self) -> Result<DefaultPartition, StoreError> {
        self.run_call(RepositoryCall::DefaultPartition, |state| {
            let days = state.events.keys().map(|id| Day::from_id(*id));
            let days: Vec<_> = days.filter(|day| !state.partitions.contains(day)).collect();
            let rows = days.len() as u64;
            Ok(DefaultPartition { days: BTreeSet::from_iter(days).into_iter().collect(), rows })
        })
    }

    fn sweep_conditions(&self) -> Result<SweepConditions, StoreError> {
        self.run_call(RepositoryCall::SweepConditions, |state| Ok(state.sweep_conditions))
    }

    fn last_sweep(&self) -> Result<Option<Timestamp>, StoreError> {
        self.run_call(RepositoryCall::LastSweep, |state| Ok(state.last_sweep))
    }

    fn begin_sweep(&self, _cutoff: Timestamp) -> Result<Option<Box<dyn RetentionSweep + '_>>, StoreError> {
        self.run_call(RepositoryCall::Sweep, |_| {
            Ok(Some(Box::new(MemorySweep(self)) as Box<dyn RetentionSweep>))
        })
    }
}

/// A sweep of which every step is a recorded call that takes the next injected fault. The sweep
/// lock is always free. Dead letters have no `died_at` here, so they are never deleted.
#[derive(Debug)]
struct MemorySweep<'a>(&'a MemoryRepository);

impl RetentionSweep for MemorySweep<'_> {
    fn drop_detached_partitions(&mut self) -> Result<(), StoreError> {
        self.0.run_call(RepositoryCall::Sweep, |_| Ok(()))
    }

    fn drop_partition(&mut self, day: Day) -> Result<u64, StoreError> {
        self.0.run_call(RepositoryCall::Sweep, |state| {
            let before = state.events.len();
            state.events.retain(|id, _| Day::from_id(*id) != day);
            state.partitions.remove(&day);
            Ok((before - state.events.len()) as u64)
        })
    }

    fn delete_events(
        &mut self,
        after: EventId,
        before: EventId,
        rows_max: u32,
    ) -> Result<DeletedChunk, StoreError> {
        self.0.run_call(RepositoryCall::Sweep, |state| {
            let between = state.events.range((Bound::Excluded(after), Bound::Excluded(before)));
            let ids: Vec<_> = between.map(|(id, _)| *id).take(rows_max as usize).collect();
            for id in &ids {
                state.events.remove(id);
            }
            let next = ids.last().copied().filter(|_| ids.len() == rows_max as usize);
            Ok(DeletedChunk { rows: ids.len() as u64, next })
        })
    }

    fn delete_dead_letters(&mut self, _rows_max: u32) -> Result<u64, StoreError> {
        self.0.run_call(RepositoryCall::Sweep, |_| Ok(0))
    }

    fn delete_minute_counts(&mut self) -> Result<bool, StoreError> {
        Ok(false)
    }

    fn finish(&mut self, _error: Option<&str>) -> Result<(), StoreError> {
        self.0.run_call(RepositoryCall::Sweep, |_| Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ArrivalNumber;

    fn row(id: u64, message: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let time = Timestamp::from_millis(i64::try_from(id).unwrap());
        row::append_header(&mut bytes, EventId::floor(id), time, time, ArrivalNumber::default());
        row::append_text(&mut bytes, b"s");
        row::append_text(&mut bytes, message.as_bytes());
        row::append_metadata(&mut bytes, None);
        bytes
    }

    #[test]
    fn memory_store_rejects_duplicates_by_copy_and_counts_them_by_staging() {
        let repository = MemoryRepository::new();
        let (one, two) = (row(1, "m"), row(2, "m"));
        assert_eq!(repository.store(&[&one], &[], StorePath::Copy).unwrap().stored, 1);
        let error = repository.store(&[&two, &one], &[], StorePath::Copy).unwrap_err();
        assert_eq!((error.sqlstate.as_deref(), error.row), (Some("23505"), Some(1)));
        let stored = repository.store(&[&two, &one, &two], &[], StorePath::Staging).unwrap();
        assert_eq!(stored, Stored { stored: 1, duplicate: 2, dead: 0, commit: None });
    }

    #[test]
    fn memory_repository_applies_injected_faults_and_then_succeeds() {
        let repository = MemoryRepository::new();
        let down = StoreError::client_side("down");
        repository.inject_faults([InjectedFault::Fail(down.clone()), InjectedFault::FailAfter(down)]);
        assert!(repository.store(&[&row(1, "m")], &[], StorePath::Copy).is_err());
        assert_eq!(repository.events().len(), 0);
        assert!(repository.store(&[&row(1, "m")], &[], StorePath::Copy).is_err());
        assert_eq!(repository.events().len(), 1);
        repository.reject_rows(true, |row| (row.message() == b"bad").then_some("22P02"));
        let error = repository.store(&[&row(2, "m"), &row(3, "bad")], &[], StorePath::Staging).unwrap_err();
        assert_eq!((error.sqlstate.as_deref(), error.row), (Some("22P02"), Some(1)));
        assert_eq!((repository.events().len(), repository.calls().len()), (1, 3));
    }
}
