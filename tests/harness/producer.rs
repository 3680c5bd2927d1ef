//! A producer that posts in the background and remembers what was acknowledged.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::client::{Client, JSON, NDJSON, post};
use super::events::{event, id_of, ids_of};

/// Between two posts of a connection: thousands of events a second in all, and the machine stays usable.
const PACE: Duration = Duration::from_millis(1);
/// After a refusal or a broken connection.
const PAUSE: Duration = Duration::from_millis(10);
const BATCH: usize = 10;

pub(crate) struct Producer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Tally>>,
}

/// What a producer knows in the end.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Message of each acknowledged event by its id.
    pub(crate) acknowledged: HashMap<String, String>,
    /// Messages of all events that were sent, whatever the answer. Each is sent once.
    pub(crate) sent: HashSet<String>,
    /// Answers by status.
    pub(crate) answers: BTreeMap<u16, u64>,
    /// Posts that got no answer.
    pub(crate) broken: u64,
}

impl Producer {
    /// Half of the connections post single events, half batches as NDJSON.
    pub(crate) fn start(address: SocketAddr, connections: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let spawn = |number: usize| {
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            let body = move || produce(address, number, &stop, &acknowledged);
            thread::Builder::new().name(format!("producer {number}")).spawn(body).expect("a thread starts")
        };
        let threads = (0..connections).map(spawn).collect();
        Self { stop, acknowledged, threads }
    }

    /// How many events have been acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    #[track_caller]
    pub(crate) fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for thread in self.threads {
            let tally = thread.join().expect("a producer sees only answers it knows");
            let before = all.acknowledged.len();
            let gained = tally.acknowledged.len();
            all.acknowledged.extend(tally.acknowledged);
            assert_eq!(all.acknowledged.len(), before + gained, "an id was given out twice");
            all.sent.extend(tally.sent);
            for (status, count) in tally.answers {
                *all.answers.entry(status).or_default() += count;
            }
            all.broken += tally.broken;
        }
        all
    }
}

fn produce(address: SocketAddr, number: usize, stop: &AtomicBool, acknowledged: &AtomicU64) -> Tally {
    let mut tally = Tally::default();
    let mut client = None;
    let size = if number.is_multiple_of(2) { 1 } else { BATCH };
    for round in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let messages: Vec<String> = (0..size).map(|index| format!("p{number}-{round}-{index}")).collect();
        let service = format!("service-{number}");
        let events: Vec<String> = messages.iter().map(|message| event(&service, message)).collect();
        let bytes = post(if size == 1 { JSON } else { NDJSON }, events.join("\n").as_bytes());
        let Some(connection) = client.as_mut() else {
            match Client::try_connect(address) {
                Ok(fresh) => client = Some(fresh),
                Err(_refused) => thread::sleep(PAUSE),
            }
            continue;
        };
        tally.sent.extend(messages.iter().cloned());
        let Ok(reply) = connection.try_exchange(&bytes) else {
            tally.broken += 1;
            client = None;
            thread::sleep(PAUSE);
            continue;
        };
        *tally.answers.entry(reply.status).or_default() += 1;
        if reply.status == 202 {
            let ids = if size == 1 { vec![id_of(&reply)] } else { ids_of(&reply) };
            assert_eq!(ids.len(), size, "{}", reply.text());
            acknowledged.fetch_add(size as u64, Ordering::Relaxed);
            tally.acknowledged.extend(ids.into_iter().zip(messages));
            thread::sleep(PACE);
        } else {
            if reply.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
                client = None;
            }
            thread::sleep(PAUSE);
        }
    }
    tally
}
