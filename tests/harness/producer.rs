//! A producer that posts in the background and records the acknowledgements.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use aurore_events::clock::{Clock, Moment};

use super::client::{Client, JSON, NDJSON, request};
use super::events::{EventFields, id_of, ids_of, now};

const PACE: Duration = Duration::from_millis(1);
/// The delay after a rejection or a broken connection.
const PAUSE: Duration = Duration::from_millis(10);
const BATCH: usize = 10;

pub(crate) struct Producer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    threads: Vec<JoinHandle<ProducerRecord>>,
    clock: Clock,
}

/// The load that a producer generates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadProfile {
    pub(crate) connections: usize,
    /// Events per post, on every other connection; the rest post single events.
    pub(crate) batch: usize,
    /// The value of the header `Durability`.
    pub(crate) durability: Option<&'static str>,
    /// The delay between two posts of a connection.
    pub(crate) pace: Duration,
}

impl LoadProfile {
    /// Thousands of events per second, without saturating the machine.
    pub(crate) const STEADY: Self = Self { connections: 4, batch: BATCH, durability: None, pace: PACE };
    /// As fast as the server answers.
    pub(crate) const FULL: Self = Self { connections: 8, batch: 20, durability: None, pace: Duration::ZERO };
}

/// The record of a producer's posts and their responses.
#[derive(Debug, Default)]
pub(crate) struct ProducerRecord {
    /// Message of each acknowledged event by its id.
    pub(crate) acknowledged: HashMap<String, String>,
    /// The time of each acknowledgement by id, on the clock of the producer.
    pub(crate) acknowledged_at: HashMap<String, Moment>,
    /// All events that were sent, whatever the response, by their messages. Each is sent once.
    pub(crate) sent: HashMap<String, EventFields>,
    /// The number of responses by status.
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Posts that got no response.
    pub(crate) unanswered: u64,
    /// Attempts to connect that failed.
    pub(crate) refused: u64,
    /// The longest latency of a response other than 202.
    pub(crate) slowest_refusal: Duration,
}

impl ProducerRecord {
    #[track_caller]
    pub(crate) fn merge(&mut self, other: Self) {
        let (before, gained) = (self.acknowledged.len(), other.acknowledged.len());
        self.acknowledged.extend(other.acknowledged);
        assert_eq!(self.acknowledged.len(), before + gained, "an id was returned twice");
        self.acknowledged_at.extend(other.acknowledged_at);
        self.sent.extend(other.sent);
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.unanswered += other.unanswered;
        self.refused += other.refused;
        self.slowest_refusal = self.slowest_refusal.max(other.slowest_refusal);
    }
}

impl Producer {
    /// Half of the connections post single events, half batches as NDJSON.
    pub(crate) fn start(address: SocketAddr, connections: usize) -> Self {
        Self::start_with_profile(address, LoadProfile { connections, ..LoadProfile::STEADY })
    }

    pub(crate) fn start_with_profile(address: SocketAddr, profile: LoadProfile) -> Self {
        // The name makes messages unique among the producers of a test.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = NEXT.fetch_add(1, Ordering::Relaxed);
        let clock = Clock::system();
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let spawn = |number: usize| {
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            let clock = clock.clone();
            let body =
                move || produce(address, profile, &format!("{name}.{number}"), &stop, &acknowledged, &clock);
            thread::Builder::new().name(format!("producer {number}")).spawn(body).expect("a thread starts")
        };
        let threads = (0..profile.connections).map(spawn).collect();
        Self { stop, acknowledged, threads, clock }
    }

    /// The number of events acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// The current time on the clock of `acknowledged_at`.
    pub(crate) fn now(&self) -> Moment {
        self.clock.now()
    }

    #[track_caller]
    pub(crate) fn stop(self) -> ProducerRecord {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = ProducerRecord::default();
        for thread in self.threads {
            all.merge(thread.join().expect("a producer thread does not panic"));
        }
        all
    }
}

fn produce(
    address: SocketAddr,
    profile: LoadProfile,
    name: &str,
    stop: &AtomicBool,
    acknowledged: &AtomicU64,
    clock: &Clock,
) -> ProducerRecord {
    let mut record = ProducerRecord::default();
    let mut client = None;
    let is_single = name.ends_with(['0', '2', '4', '6', '8']);
    let (size, content_type) = if is_single { (1, JSON) } else { (profile.batch, NDJSON) };
    let mut headers = vec![("Content-Type", content_type)];
    headers.extend(profile.durability.map(|level| ("Durability", level)));
    for round in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let messages: Vec<String> = (0..size).map(|index| format!("p{name}-{round}-{index}")).collect();
        // All producers use the same few services, so their batches update the same rows of counts.
        let fields: Vec<EventFields> = messages
            .iter()
            .zip(round..)
            .map(|(message, nth)| EventFields {
                time: now(),
                service: format!("service-{}", nth % 5),
                metadata: (!nth.is_multiple_of(3)).then(|| format!("{{\"of\": \"{message}\"}}")),
            })
            .collect();
        let events: Vec<String> =
            fields.iter().zip(&messages).map(|(fields, message)| fields.with_message(message)).collect();
        let bytes = request("POST", "/events", &headers, events.join("\n").as_bytes());
        let Some(connection) = client.as_mut() else {
            match Client::try_connect(address) {
                Ok(fresh) => client = Some(fresh),
                Err(_refused) => {
                    record.refused += 1;
                    thread::sleep(PAUSE);
                }
            }
            continue;
        };
        record.sent.extend(messages.iter().cloned().zip(fields));
        let sent_at = clock.now();
        let Ok(reply) = connection.try_exchange(&bytes) else {
            record.unanswered += 1;
            client = None;
            thread::sleep(PAUSE);
            continue;
        };
        *record.statuses.entry(reply.status).or_default() += 1;
        if reply.status == 202 {
            let now = clock.now();
            let ids = if is_single { vec![id_of(&reply)] } else { ids_of(&reply) };
            assert_eq!(ids.len(), size, "{}", reply.text());
            acknowledged.fetch_add(size as u64, Ordering::Relaxed);
            record.acknowledged_at.extend(ids.iter().map(|id| (id.clone(), now)));
            record.acknowledged.extend(ids.into_iter().zip(messages));
            if !profile.pace.is_zero() {
                thread::sleep(profile.pace);
            }
        } else {
            record.slowest_refusal = record.slowest_refusal.max(clock.now().since(sent_at));
            if reply.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
                client = None;
            }
            thread::sleep(PAUSE);
        }
    }
    record
}
