//! A producer that posts in the background and remembers what was acknowledged.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use aurore_events::clock::{Clock, Moment};

use super::client::{Client, JSON, NDJSON, request};
use super::events::{event, id_of, ids_of};

const PACE: Duration = Duration::from_millis(1);
/// After a refusal or a broken connection.
const PAUSE: Duration = Duration::from_millis(10);
const BATCH: usize = 10;

pub(crate) struct Producer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Tally>>,
    clock: Clock,
}

/// How it posts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) connections: usize,
    /// Events a post, on every other connection; the rest post single events.
    pub(crate) batch: usize,
    /// The header `Durability`, when there is to be one.
    pub(crate) durability: Option<&'static str>,
    /// Between two posts of a connection.
    pub(crate) pace: Duration,
}

impl Manner {
    /// Thousands of events a second, and the machine stays usable.
    pub(crate) const STEADY: Self = Self { connections: 4, batch: BATCH, durability: None, pace: PACE };
    /// As fast as the server answers.
    pub(crate) const FULL: Self = Self { connections: 8, batch: 20, durability: None, pace: Duration::ZERO };
}

/// What a producer knows in the end.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Message of each acknowledged event by its id.
    pub(crate) acknowledged: HashMap<String, String>,
    /// When each of them was, on the clock of its producer.
    pub(crate) at: HashMap<String, Moment>,
    /// Messages of all events that were sent, whatever the answer. Each is sent once.
    pub(crate) sent: HashSet<String>,
    /// Answers by status.
    pub(crate) answers: BTreeMap<u16, u64>,
    /// Posts that got no answer.
    pub(crate) broken: u64,
    /// The longest that an answer other than 202 took.
    pub(crate) slowest_refusal: Duration,
}

impl Tally {
    #[track_caller]
    pub(crate) fn merge(&mut self, other: Self) {
        let (before, gained) = (self.acknowledged.len(), other.acknowledged.len());
        self.acknowledged.extend(other.acknowledged);
        assert_eq!(self.acknowledged.len(), before + gained, "an id was given out twice");
        self.at.extend(other.at);
        self.sent.extend(other.sent);
        for (status, count) in other.answers {
            *self.answers.entry(status).or_default() += count;
        }
        self.broken += other.broken;
        self.slowest_refusal = self.slowest_refusal.max(other.slowest_refusal);
    }
}

impl Producer {
    /// Half of the connections post single events, half batches as NDJSON.
    pub(crate) fn start(address: SocketAddr, connections: usize) -> Self {
        Self::start_as(address, Manner { connections, ..Manner::STEADY })
    }

    pub(crate) fn start_as(address: SocketAddr, manner: Manner) -> Self {
        // No two producers of a test send the same message.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = NEXT.fetch_add(1, Ordering::Relaxed);
        let clock = Clock::system();
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let spawn = |number: usize| {
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            let clock = clock.clone();
            let body =
                move || produce(address, manner, &format!("{name}.{number}"), &stop, &acknowledged, &clock);
            thread::Builder::new().name(format!("producer {number}")).spawn(body).expect("a thread starts")
        };
        let threads = (0..manner.connections).map(spawn).collect();
        Self { stop, acknowledged, threads, clock }
    }

    /// How many events have been acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Now, on the clock of the tally.
    pub(crate) fn now(&self) -> Moment {
        self.clock.now()
    }

    #[track_caller]
    pub(crate) fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for thread in self.threads {
            all.merge(thread.join().expect("a producer sees only answers it knows"));
        }
        all
    }
}

fn produce(
    address: SocketAddr,
    manner: Manner,
    name: &str,
    stop: &AtomicBool,
    acknowledged: &AtomicU64,
    clock: &Clock,
) -> Tally {
    let mut tally = Tally::default();
    let mut client = None;
    let is_single = name.ends_with(['0', '2', '4', '6', '8']);
    let (size, content_type) = if is_single { (1, JSON) } else { (manner.batch, NDJSON) };
    let mut headers = vec![("Content-Type", content_type)];
    headers.extend(manner.durability.map(|level| ("Durability", level)));
    for round in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let messages: Vec<String> = (0..size).map(|index| format!("p{name}-{round}-{index}")).collect();
        // Of a few services, the same for all producers: they meet at the same counts.
        let events: Vec<String> = messages
            .iter()
            .zip(round..)
            .map(|(message, nth)| event(&format!("service-{}", nth % 5), message))
            .collect();
        let bytes = request("POST", "/events", &headers, events.join("\n").as_bytes());
        let Some(connection) = client.as_mut() else {
            match Client::try_connect(address) {
                Ok(fresh) => client = Some(fresh),
                Err(_refused) => thread::sleep(PAUSE),
            }
            continue;
        };
        tally.sent.extend(messages.iter().cloned());
        let asked = clock.now();
        let Ok(reply) = connection.try_exchange(&bytes) else {
            tally.broken += 1;
            client = None;
            thread::sleep(PAUSE);
            continue;
        };
        *tally.answers.entry(reply.status).or_default() += 1;
        if reply.status == 202 {
            let now = clock.now();
            let ids = if is_single { vec![id_of(&reply)] } else { ids_of(&reply) };
            assert_eq!(ids.len(), size, "{}", reply.text());
            acknowledged.fetch_add(size as u64, Ordering::Relaxed);
            tally.at.extend(ids.iter().map(|id| (id.clone(), now)));
            tally.acknowledged.extend(ids.into_iter().zip(messages));
            if !manner.pace.is_zero() {
                thread::sleep(manner.pace);
            }
        } else {
            tally.slowest_refusal = tally.slowest_refusal.max(clock.now().since(asked));
            if reply.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
                client = None;
            }
            thread::sleep(PAUSE);
        }
    }
    tally
}
