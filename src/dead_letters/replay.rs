//! Stores dead letters again. A set that PostgreSQL refuses is bisected, so that one refused event
//! holds back no other.

use serde::Serialize;

use super::CHUNK;
use crate::event::EventId;
use crate::storage::StoreError;
use crate::storage::dead::{DeadFilter, DeadLetters, ReplayOutcome};
use crate::writer::ErrorClass;

/// Counts of a replay by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReplaySummary {
    pub stored: u64,
    pub duplicate: u64,
    pub refused: u64,
    pub unreadable: u64,
}

/// Replays the first `limit` matches after the id `after` once each, in order of id; rejected events
/// stay dead letters, with their new reason. Ends early when `may_continue` is false.
///
/// Returns the counts, and the id after which to continue if there may be more.
pub fn replay(
    letters: &dyn DeadLetters,
    filter: &DeadFilter,
    mut after: Option<EventId>,
    limit: u32,
    may_continue: impl Fn() -> bool,
) -> Result<(ReplaySummary, Option<EventId>), StoreError> {
    let mut summary = ReplaySummary::default();
    let mut left = limit;
    while left > 0 && may_continue() {
        let ids = letters.dead_ids(filter, after, left.min(CHUNK))?;
        let Some(last) = ids.last().copied() else { return Ok((summary, None)) };
        left = left.saturating_sub(u32::try_from(ids.len()).unwrap_or(left));
        after = Some(replay_chunk(letters, ids, last, &may_continue, &mut summary)?);
    }
    Ok((summary, after))
}

/// Replays `ids` and returns the last one that was tried.
fn replay_chunk(
    letters: &dyn DeadLetters,
    ids: Vec<EventId>,
    last: EventId,
    may_continue: &impl Fn() -> bool,
    summary: &mut ReplaySummary,
) -> Result<EventId, StoreError> {
    // A stack whose top is the piece with the lowest ids.
    let mut todo = vec![ids];
    let mut tried = None;
    while let Some(mut piece) = todo.pop() {
        // The first piece is tried in any case, so that each call makes progress.
        if let (Some(tried), false) = (tried, may_continue()) {
            return Ok(tried);
        }
        match letters.replay_dead(&piece) {
            Ok(ReplayOutcome { stored, duplicate, unreadable }) => {
                summary.stored += stored;
                summary.duplicate += duplicate;
                summary.unreadable += unreadable;
            }
            // A replay skips ids that are stored, so a duplicate key is that of another index.
            Err(error)
                if matches!(ErrorClass::of(&error), ErrorClass::RowFault | ErrorClass::DuplicateKey) =>
            {
                if let [id] = piece[..] {
                    summary.refused += 1;
                    let sqlstate = error.sqlstate.unwrap_or_default();
                    letters.update_dead_reason(id, &sqlstate, &error.message.replace('\0', "\u{fffd}"))?;
                } else {
                    todo.push(piece.split_off(piece.len() / 2));
                    todo.push(piece);
                    continue;
                }
            }
            Err(error) => return Err(error),
        }
        tried = piece.last().copied().or(tried);
    }
    Ok(tried.unwrap_or(last))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    use super::*;
    use crate::event::Event;
    use crate::storage::dead::{DeadEvent, DeadKey};

    /// Dead letters by their number, of which those in `bad` are refused.
    #[derive(Debug, Default)]
    struct FakeLetters {
        dead: Mutex<BTreeSet<u64>>,
        bad: BTreeSet<u64>,
        reasons: Mutex<Vec<(u64, String)>>,
    }

    impl FakeLetters {
        fn new(count: u64, bad: &[u64]) -> Self {
            Self {
                dead: Mutex::new((1..=count).collect()),
                bad: bad.iter().copied().collect(),
                ..Self::default()
            }
        }
    }

    impl DeadLetters for FakeLetters {
        fn list_dead(
            &self,
            _: &DeadFilter,
            _: Option<DeadKey>,
            _: u32,
        ) -> Result<Vec<DeadEvent>, StoreError> {
            unimplemented!("a replay does not list")
        }

        fn dead_rows(&self, _ids: &[EventId]) -> Result<Vec<Event>, StoreError> {
            unimplemented!("a replay does not read rows")
        }

        fn count_dead(&self, _filter: &DeadFilter) -> Result<u64, StoreError> {
            unimplemented!("a replay does not count")
        }

        fn dead_ids(
            &self,
            _: &DeadFilter,
            after: Option<EventId>,
            limit: u32,
        ) -> Result<Vec<EventId>, StoreError> {
            let after = after.map_or(0, |id| id.millis());
            let dead = self.dead.lock().unwrap();
            Ok(dead.range(after + 1..).take(limit as usize).map(|nth| EventId::floor(*nth)).collect())
        }

        fn replay_dead(&self, ids: &[EventId]) -> Result<ReplayOutcome, StoreError> {
            if ids.iter().any(|id| self.bad.contains(&id.millis())) {
                let mut error = StoreError::client_side("bad\0row");
                error.sqlstate = Some("22001".to_owned());
                return Err(error);
            }
            let mut dead = self.dead.lock().unwrap();
            for id in ids {
                assert!(dead.remove(&id.millis()), "{id} is replayed once");
            }
            Ok(ReplayOutcome { stored: ids.len() as u64, ..ReplayOutcome::default() })
        }

        fn update_dead_reason(&self, id: EventId, _sqlstate: &str, reason: &str) -> Result<(), StoreError> {
            self.reasons.lock().unwrap().push((id.millis(), reason.to_owned()));
            Ok(())
        }

        fn purge_dead(&self, _filter: &DeadFilter) -> Result<u64, StoreError> {
            unimplemented!("a replay does not purge")
        }
    }

    #[test]
    fn refused_events_stay_and_hold_back_no_other() {
        let letters = FakeLetters::new(1300, &[1, 700, 701, 1300]);
        let all = replay(&letters, &DeadFilter::default(), None, u32::MAX, || true).unwrap();
        assert_eq!(all, (ReplaySummary { stored: 1296, refused: 4, ..ReplaySummary::default() }, None));
        let reasons = letters.reasons.into_inner().unwrap();
        assert_eq!(reasons.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 700, 701, 1300]);
        assert_eq!(reasons[0].1, "bad\u{fffd}row");
    }

    #[test]
    fn a_limited_replay_continues_after_the_id_that_it_returns() {
        let letters = FakeLetters::new(25, &[3, 11]);
        let (mut after, mut stored, mut refused, mut calls) = (None, 0, 0, 0);
        loop {
            let (summary, next) = replay(&letters, &DeadFilter::default(), after, 10, || true).unwrap();
            (stored, refused, calls) = (stored + summary.stored, refused + summary.refused, calls + 1);
            after = next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!((stored, refused, calls), (23, 2, 3));
    }

    #[test]
    fn a_replay_that_is_out_of_time_tries_one_piece_and_tells_where_to_continue() {
        let letters = FakeLetters::new(40, &[1]);
        // Time for the whole, its halves and so on down to the first event.
        let calls = Cell::new(0);
        let (summary, next) = replay(&letters, &DeadFilter::default(), None, 40, || {
            calls.set(calls.get() + 1);
            calls.get() < 3
        })
        .unwrap();
        assert_eq!((summary.stored, summary.refused), (0, 1));
        assert_eq!(next, Some(EventId::floor(1)));
        let rest = replay(&letters, &DeadFilter::default(), next, 40, || true).unwrap();
        assert_eq!((rest.0.stored, rest.1), (39, None));
        // Without time nothing is tried.
        let none = replay(&letters, &DeadFilter::default(), None, 40, || false).unwrap();
        assert_eq!(none, (ReplaySummary::default(), None));
    }
}
