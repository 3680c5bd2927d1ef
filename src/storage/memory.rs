//! A repository in memory, for the tests of others. It judges rows as PostgreSQL would and fails as it is told to.
//!
//! Not for service: it forgets everything and scans for every query.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::event::row::{self, Row};
use crate::event::{Event, EventId, Timestamp};
use crate::storage::{
    Chunk, Day, DeadLetter, Deleted, EventRepository, Filter, Found, HourCount, Order, Page, StoreError,
    StorePath, Stored, Sweeping, Tidied, Totals,
};

/// What was asked of the repository, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Prepare,
    Store { rows: usize, dead: usize, path: StorePath },
    Page,
    Chunk,
    Count,
    Find,
    Totals,
    Ping,
    Days,
    Tidy,
    LastSweep,
    Sweep,
}

/// What happens to a coming call, instead of what was asked or after it.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing is done.
    Fail(StoreError),
    /// All is done, and the answer is lost: as when the connection breaks during COMMIT.
    FailAfter(StoreError),
    Panic,
}

/// Whether a row is refused, and with which SQLSTATE.
type Refusal = Box<dyn Fn(&Row<'_>) -> Option<&'static str> + Send>;

#[derive(Default)]
pub struct MemoryRepository(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    events: BTreeMap<EventId, Event>,
    dead: BTreeMap<EventId, (String, String)>,
    faults: VecDeque<Fault>,
    /// Lasts until it is taken back.
    outage: Option<StoreError>,
    refusal: Option<Refusal>,
    names_the_row: bool,
    calls: Vec<Call>,
    swept: Option<Timestamp>,
}

impl fmt::Debug for MemoryRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        f.debug_struct("MemoryRepository")
            .field("events", &inner.events.len())
            .field("dead", &inner.dead.len())
            .field("faults", &inner.faults)
            .finish_non_exhaustive()
    }
}

impl MemoryRepository {
    pub fn new() -> Self {
        Self::default()
    }

    /// The coming calls of any kind meet these faults, one each, before all goes well again.
    pub fn meet(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().faults.extend(faults);
    }

    /// Every call fails with `error`, until this is called with None.
    pub fn set_outage(&self, error: Option<StoreError>) {
        self.lock().outage = error;
    }

    /// Rows for which `refusal` gives a SQLSTATE are refused, as a whole batch with them. The error names the first
    /// such row if `names_the_row`.
    pub fn refuse(
        &self,
        names_the_row: bool,
        refusal: impl Fn(&Row<'_>) -> Option<&'static str> + Send + 'static,
    ) {
        let mut inner = self.lock();
        inner.names_the_row = names_the_row;
        inner.refusal = Some(Box::new(refusal));
    }

    pub fn events(&self) -> Vec<Event> {
        self.lock().events.values().cloned().collect()
    }

    /// The dead, with SQLSTATE and reason.
    pub fn dead(&self) -> Vec<(EventId, String, String)> {
        self.lock().dead.iter().map(|(id, (state, reason))| (*id, state.clone(), reason.clone())).collect()
    }

    /// A sweep came to its end that had begun then.
    pub fn set_swept(&self, at: Timestamp) {
        self.lock().swept = Some(at);
    }

    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// A panic that was asked for poisons the lock and leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call<T>(
        &self,
        call: Call,
        work: impl FnOnce(&mut Inner) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut inner = self.lock();
        inner.calls.push(call);
        if let Some(error) = &inner.outage {
            return Err(error.clone());
        }
        match inner.faults.pop_front() {
            None => work(&mut inner),
            Some(Fault::Fail(error)) => Err(error),
            Some(Fault::FailAfter(error)) => work(&mut inner).and(Err(error)),
            Some(Fault::Panic) => {
                drop(inner);
                panic!("a test asked for this panic");
            }
        }
    }
}

impl Inner {
    fn store(
        &mut self,
        runs: &[&[u8]],
        dead: &[DeadLetter<'_>],
        path: StorePath,
    ) -> Result<Stored, StoreError> {
        let mut fresh = BTreeMap::new();
        let mut duplicate = 0;
        for (index, row) in runs.iter().flat_map(|run| row::rows(run)).enumerate() {
            if let Some(state) = self.refusal.as_ref().and_then(|refusal| refusal(&row)) {
                return Err(refused(state, self.names_the_row.then_some(index), None));
            }
            let id = row.event_id();
            let known = self.events.contains_key(&id) || fresh.contains_key(&id);
            match path {
                StorePath::Copy if known => {
                    return Err(refused("23505", Some(index), Some("events_pkey".to_owned())));
                }
                StorePath::Stage if known => duplicate += 1,
                StorePath::Copy | StorePath::Stage => {
                    fresh.insert(id, row.event());
                }
            }
        }
        let stored = fresh.len() as u64;
        self.events.extend(fresh);
        let mut buried = 0;
        for letter in dead {
            if let Entry::Vacant(place) = self.dead.entry(letter.row.event_id()) {
                place.insert((letter.sqlstate.clone(), letter.reason.clone()));
                buried += 1;
            }
        }
        Ok(Stored { stored, duplicate, dead: buried })
    }

    fn matching(&self, filter: &Filter) -> impl Iterator<Item = &Event> {
        self.events.values().filter(move |event| {
            (filter.from..filter.to).contains(&event.timestamp)
                && filter.service.as_ref().is_none_or(|service| *service == event.service)
                && filter
                    .text
                    .as_ref()
                    .is_none_or(|text| event.message.to_lowercase().contains(&text.to_lowercase()))
                && filter.metadata.iter().all(|objects| has(event, objects))
        })
    }

    fn page(&self, page: &Page) -> Vec<Event> {
        let key = |event: &Event| (event.timestamp, event.event_id);
        let mut events: Vec<_> = self.matching(&page.filter).cloned().collect();
        events.sort_unstable_by_key(key);
        if page.order == Order::Desc {
            events.reverse();
        }
        if let Some(after) = page.after {
            events.retain(|event| match page.order {
                Order::Desc => key(event) < after,
                Order::Asc => key(event) > after,
            });
        }
        events.truncate(usize::from(page.limit));
        events
    }

    fn totals(&self, since: Timestamp, services_max: u16) -> Totals {
        const HOUR_MICROS: i64 = 3_600_000_000;
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

    fn find(&self, id: EventId) -> Option<Found> {
        if let Some(event) = self.events.get(&id) {
            return Some(Found::Stored(event.clone()));
        }
        let (sqlstate, reason) = self.dead.get(&id)?.clone();
        Some(Found::Dead { sqlstate, reason })
    }
}

/// Whether the metadata contains one of the objects.
fn has(event: &Event, objects: &[String]) -> bool {
    let parsed = |text: &str| sonic_rs::from_str::<sonic_rs::Object>(text).unwrap_or_default();
    let metadata = parsed(event.metadata.as_deref().unwrap_or("{}"));
    objects.iter().any(|object| parsed(object).iter().all(|(key, value)| metadata.get(&key) == Some(value)))
}

fn refused(sqlstate: &str, row: Option<usize>, constraint: Option<String>) -> StoreError {
    StoreError {
        sqlstate: Some(sqlstate.to_owned()),
        message: format!("refused as the test asked ({sqlstate})"),
        row,
        constraint,
        column: None,
        timed_out: false,
        in_doubt: false,
    }
}

impl EventRepository for MemoryRepository {
    fn prepare(&self, _now: Timestamp) -> Result<(), StoreError> {
        self.call(Call::Prepare, |_| Ok(()))
    }

    fn store(&self, runs: &[&[u8]], dead: &[DeadLetter<'_>], path: StorePath) -> Result<Stored, StoreError> {
        let rows = runs.iter().flat_map(|run| row::rows(run)).count();
        self.call(Call::Store { rows, dead: dead.len(), path }, |inner| inner.store(runs, dead, path))
    }

    fn page(&self, page: &Page) -> Result<Vec<Event>, StoreError> {
        self.call(Call::Page, |inner| Ok(inner.page(page)))
    }

    fn chunk(&self, page: &Page, bytes_max: usize) -> Result<Chunk, StoreError> {
        self.call(Call::Chunk, |inner| Ok(Chunk::gather(inner.page(page), page.limit, bytes_max)))
    }

    fn count(&self, filter: &Filter) -> Result<u64, StoreError> {
        self.call(Call::Count, |inner| Ok(inner.matching(filter).count() as u64))
    }

    fn hours(&self, filter: &Filter, rows_max: u32) -> Result<Vec<HourCount>, StoreError> {
        const HOUR_MICROS: i64 = 3_600_000_000;
        self.call(Call::Count, |inner| {
            let mut counts = BTreeMap::<_, u64>::new();
            for event in inner.matching(filter) {
                let hour = event.timestamp.micros().div_euclid(HOUR_MICROS) * HOUR_MICROS;
                *counts.entry((Timestamp::from_micros(hour), event.service.clone())).or_default() += 1;
            }
            let hours = counts.into_iter().take(rows_max as usize);
            Ok(hours.map(|((hour, service), count)| HourCount { hour, service, count }).collect())
        })
    }

    fn find(&self, id: EventId) -> Result<Option<Found>, StoreError> {
        self.call(Call::Find, |inner| Ok(inner.find(id)))
    }

    fn totals(&self, since: Timestamp, services_max: u16) -> Result<Totals, StoreError> {
        self.call(Call::Totals, |inner| Ok(inner.totals(since, services_max)))
    }

    fn ping(&self) -> Result<(), StoreError> {
        self.call(Call::Ping, |_| Ok(()))
    }

    fn days(&self) -> Result<Vec<Day>, StoreError> {
        self.call(Call::Days, |inner| {
            Ok(inner.events.keys().map(|id| Day::of_id(*id)).collect::<BTreeSet<_>>().into_iter().collect())
        })
    }

    fn tidy(&self) -> Result<Tidied, StoreError> {
        self.call(Call::Tidy, |_| Ok(Tidied::default()))
    }

    fn last_sweep(&self) -> Result<Option<Timestamp>, StoreError> {
        self.call(Call::LastSweep, |inner| Ok(inner.swept))
    }

    fn sweep(&self, _edge: Timestamp) -> Result<Option<Box<dyn Sweeping + '_>>, StoreError> {
        self.call(Call::Sweep, |_| Ok(Some(Box::new(MemorySweep(self)) as Box<dyn Sweeping>)))
    }
}

/// Every step is a call of its own, and meets the faults of its turn. Nobody else ever sweeps here, and the dead, of
/// which the time of death is not known, stay.
#[derive(Debug)]
struct MemorySweep<'a>(&'a MemoryRepository);

impl Sweeping for MemorySweep<'_> {
    fn finish_drops(&mut self) -> Result<(), StoreError> {
        self.0.call(Call::Sweep, |_| Ok(()))
    }

    fn drop_day(&mut self, day: Day) -> Result<u64, StoreError> {
        self.0.call(Call::Sweep, |inner| {
            let before = inner.events.len();
            inner.events.retain(|id, _| Day::of_id(*id) != day);
            Ok((before - inner.events.len()) as u64)
        })
    }

    fn delete_events(
        &mut self,
        after: EventId,
        before: EventId,
        rows_max: u32,
    ) -> Result<Deleted, StoreError> {
        self.0.call(Call::Sweep, |inner| {
            let between = inner.events.range((Bound::Excluded(after), Bound::Excluded(before)));
            let ids: Vec<_> = between.map(|(id, _)| *id).take(rows_max as usize).collect();
            for id in &ids {
                inner.events.remove(id);
            }
            let next = ids.last().copied().filter(|_| ids.len() == rows_max as usize);
            Ok(Deleted { rows: ids.len() as u64, next })
        })
    }

    fn delete_dead(&mut self, _rows_max: u32) -> Result<u64, StoreError> {
        self.0.call(Call::Sweep, |_| Ok(0))
    }

    fn delete_minutes(&mut self) -> Result<bool, StoreError> {
        Ok(false)
    }

    fn end(&mut self, _error: Option<&str>) -> Result<(), StoreError> {
        self.0.call(Call::Sweep, |_| Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u64, message: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let time = Timestamp::from_millis(i64::try_from(id).unwrap());
        row::begin(&mut bytes, EventId::floor(id), time, time);
        row::text(&mut bytes, b"s");
        row::text(&mut bytes, message.as_bytes());
        row::metadata(&mut bytes, None);
        bytes
    }

    #[test]
    fn duplicates_fail_a_copy_and_are_counted_by_the_stage() {
        let repository = MemoryRepository::new();
        let (one, two) = (row(1, "m"), row(2, "m"));
        assert_eq!(repository.store(&[&one], &[], StorePath::Copy).unwrap().stored, 1);
        let error = repository.store(&[&two, &one], &[], StorePath::Copy).unwrap_err();
        assert_eq!((error.sqlstate.as_deref(), error.row), (Some("23505"), Some(1)));
        let stored = repository.store(&[&two, &one, &two], &[], StorePath::Stage).unwrap();
        assert_eq!(stored, Stored { stored: 1, duplicate: 2, dead: 0 });
    }

    #[test]
    fn it_fails_as_it_is_told_to_and_then_goes_on() {
        let repository = MemoryRepository::new();
        let down = StoreError::unreachable("down");
        repository.meet([Fault::Fail(down.clone()), Fault::FailAfter(down)]);
        assert!(repository.store(&[&row(1, "m")], &[], StorePath::Copy).is_err());
        assert_eq!(repository.events().len(), 0);
        assert!(repository.store(&[&row(1, "m")], &[], StorePath::Copy).is_err());
        assert_eq!(repository.events().len(), 1);
        repository.refuse(true, |row| (row.message() == b"bad").then_some("22P02"));
        let error = repository.store(&[&row(2, "m"), &row(3, "bad")], &[], StorePath::Stage).unwrap_err();
        assert_eq!((error.sqlstate.as_deref(), error.row), (Some("22P02"), Some(1)));
        assert_eq!((repository.events().len(), repository.calls().len()), (1, 3));
    }
}
