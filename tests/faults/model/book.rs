//! The plain record of what was sent and acknowledged, and what may be lost of it.

use aurore_events::event::row;
use aurore_events::event::{EventId, Timestamp};
use aurore_events::journal::Level;
use aurore_events::storage::Stored;

/// What PostgreSQL refuses, here.
pub(super) const POISON: &[u8] = b"poison";

/// An event, known by its number, from which all else follows.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) number: u64,
    pub(super) poison: bool,
    message_bytes: usize,
    /// Whether a request with it was admitted: what was refused must never be stored.
    pub(super) admitted: bool,
}

impl Sent {
    pub(super) fn id(&self) -> EventId {
        EventId::keyed(self.number, [0; 10])
    }

    pub(super) fn message(&self) -> String {
        let mut message = format!("m{}-", self.number);
        message.extend(std::iter::repeat_n('x', self.message_bytes));
        message
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let time = Timestamp::from_millis(i64::try_from(self.number).expect("few are sent"));
        row::begin(out, self.id(), time, time);
        row::text(out, if self.poison { POISON } else { b"s" });
        row::text(out, self.message().as_bytes());
        row::metadata(out, None);
    }
}

/// A 202 that was given.
#[derive(Clone, Debug)]
struct Acknowledged {
    number: u64,
    level: Level,
    /// Which request of this life it was; None in the lives after.
    request: Option<u64>,
    /// Known to be on disk since the life in which it was given.
    synced: bool,
}

#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) sent: Vec<Sent>,
    acknowledged: Vec<Acknowledged>,
    pub(super) acknowledgements: u64,
    /// What the writer of this life was told that became of its rows.
    pub(super) answered: Stored,
    /// Requests of this life.
    pub(super) requests: u64,
    /// Requests of this life before these were admitted before a checkpoint that wrote, or is known to be synced.
    pub(super) written: u64,
    pub(super) synced: u64,
}

impl Book {
    pub(super) fn send(&mut self, poison: bool, message_bytes: usize) -> u64 {
        let number = self.sent.len() as u64;
        self.sent.push(Sent { number, poison, message_bytes, admitted: false });
        number
    }

    pub(super) fn get(&self, number: u64) -> &Sent {
        &self.sent[usize::try_from(number).expect("few are sent")]
    }

    pub(super) fn admitted(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.sent[usize::try_from(*number).expect("few are sent")].admitted = true;
        }
    }

    pub(super) fn acknowledge(&mut self, numbers: &[u64], level: Level, request: u64) {
        self.acknowledgements += numbers.len() as u64;
        let of =
            |number: &u64| Acknowledged { number: *number, level, request: Some(request), synced: false };
        self.acknowledged.extend(numbers.iter().map(of));
    }

    /// What was acknowledged in earlier lives is on disk for good.
    pub(super) fn past_is_synced(&mut self) {
        self.acknowledged.iter_mut().filter(|one| one.request.is_none()).for_each(|one| one.synced = true);
    }

    /// All of this life is on disk for good.
    pub(super) fn all_is_synced(&mut self) {
        self.written = self.requests;
        self.synced = self.requests;
    }

    /// The process is gone, and with it, or not, the power. Forgets what may be lost, and begins a new life.
    pub(super) fn end_life(&mut self, power_cut: bool) {
        let (written, synced) = (self.written, self.synced);
        self.acknowledged.retain_mut(|one| {
            let is_synced = one.synced
                || one.level == Level::Synced
                || one.request.is_some_and(|request| request < synced);
            let is_written =
                one.level >= Level::Written || one.request.is_none_or(|request| request < written);
            one.synced = is_synced;
            one.request = None;
            is_synced || (is_written && !power_cut)
        });
        (self.requests, self.written, self.synced) = (0, 0, 0);
        self.answered = Stored::default();
    }

    /// What has to be in the tables by now.
    pub(super) fn owed(&self) -> impl Iterator<Item = &Sent> {
        self.acknowledged.iter().map(|one| self.get(one.number))
    }
}
