//! The oracle: the sent and the acknowledged events, and the events that must be stored in the end.

use aurore_events::event::row;
use aurore_events::event::{ArrivalNumber, Event, EventId, Timestamp};
use aurore_events::journal::Durability;
use aurore_events::storage::Stored;

/// The service whose events the database rejects.
pub(super) const POISON: &str = "poison";

/// An event. Its number determines all of its contents.
#[derive(Debug)]
pub(super) struct SentEvent {
    pub(super) number: u64,
    pub(super) poison: bool,
    message_bytes: usize,
    /// Whether a request with this event was admitted. A rejected event must never be stored.
    pub(super) admitted: bool,
}

impl SentEvent {
    pub(super) fn id(&self) -> EventId {
        EventId::keyed(self.number, [0; 10])
    }

    pub(super) fn message(&self) -> String {
        let mut message = format!("m{}-", self.number);
        message.extend(std::iter::repeat_n('x', self.message_bytes));
        message
    }

    pub(super) fn event(&self) -> Event {
        let millis = i64::try_from(self.number).expect("few are sent");
        Event {
            event_id: self.id(),
            timestamp: Timestamp::from_millis(millis),
            service: if self.poison { POISON.into() } else { format!("s{}", self.number % 7) },
            message: self.message(),
            metadata: (!self.number.is_multiple_of(3)).then(|| format!("{{\"of\":{}}}", self.number)),
            ingested_at: Timestamp::from_millis(millis + 1),
            arrival: ArrivalNumber::from_nanos(millis),
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let event = self.event();
        row::append_header(out, event.event_id, event.timestamp, event.ingested_at, event.arrival);
        row::append_text(out, event.service.as_bytes());
        row::append_text(out, event.message.as_bytes());
        row::append_metadata(out, event.metadata.as_deref().map(str::as_bytes));
    }
}

/// An acknowledgement (202) of an event.
#[derive(Clone, Debug)]
struct Acknowledged {
    number: u64,
    level: Durability,
    /// The number of the request in the current process; None for requests of earlier processes.
    request: Option<u64>,
    /// Synced by an earlier process.
    synced: bool,
}

#[derive(Debug, Default)]
pub(super) struct Oracle {
    pub(super) sent: Vec<SentEvent>,
    acknowledged: Vec<Acknowledged>,
    pub(super) acknowledgements: u64,
    /// The results that the database returned to the writer of the current process.
    pub(super) answered: Stored,
    /// The number of requests of the current process.
    pub(super) requests: u64,
    /// Requests below these numbers are written, or known to be synced.
    pub(super) written: u64,
    pub(super) synced: u64,
}

impl Oracle {
    pub(super) fn send(&mut self, poison: bool, message_bytes: usize) -> u64 {
        let number = self.sent.len() as u64;
        self.sent.push(SentEvent { number, poison, message_bytes, admitted: false });
        number
    }

    pub(super) fn get(&self, number: u64) -> &SentEvent {
        &self.sent[usize::try_from(number).expect("few are sent")]
    }

    pub(super) fn admitted(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.sent[usize::try_from(*number).expect("few are sent")].admitted = true;
        }
    }

    pub(super) fn acknowledge(&mut self, numbers: &[u64], level: Durability, request: u64) {
        self.acknowledgements += numbers.len() as u64;
        let entry =
            |number: &u64| Acknowledged { number: *number, level, request: Some(request), synced: false };
        self.acknowledged.extend(numbers.iter().map(entry));
    }

    /// Marks the acknowledged events of earlier processes as synced.
    pub(super) fn mark_earlier_synced(&mut self) {
        self.acknowledged.iter_mut().filter(|one| one.request.is_none()).for_each(|one| one.synced = true);
    }

    /// Marks all events of the current process as synced.
    pub(super) fn mark_all_synced(&mut self) {
        self.written = self.requests;
        self.synced = self.requests;
    }

    /// Ends the process, by a power cut or not: removes the events that may be lost, and begins a
    /// new process.
    pub(super) fn end_process(&mut self, power_cut: bool) {
        let (written, synced) = (self.written, self.synced);
        self.acknowledged.retain_mut(|one| {
            let is_synced = one.synced
                || one.level == Durability::Synced
                || one.request.is_some_and(|request| request < synced);
            let is_written =
                one.level >= Durability::Written || one.request.is_none_or(|request| request < written);
            one.synced = is_synced;
            one.request = None;
            is_synced || (is_written && !power_cut)
        });
        (self.requests, self.written, self.synced) = (0, 0, 0);
        self.answered = Stored::default();
    }

    /// The events that must be in the tables in the end.
    pub(super) fn must_be_stored(&self) -> impl Iterator<Item = &SentEvent> {
        self.acknowledged.iter().map(|one| self.get(one.number))
    }
}
