//! Several servers on one database.

use crate::harness::producer::{LoadProfile, ProducerRecord};
use crate::harness::server::run;
use crate::harness::{Postgres, Producer, Server, check_stored, until, wait_for_drain};

/// Small batches, so that the servers often update the same rows of counts.
const SETTINGS: &[(&str, &str)] = &[
    ("DURABILITY", "written"),
    ("DRAIN_INTERVAL", "20"),
    ("BATCH_SIZE", "50"),
    ("CIRCUIT_BREAKER_TIMEOUT_MS", "100"),
];
const PROFILE: LoadProfile = LoadProfile { batch: 10, ..LoadProfile::STEADY };

fn load(servers: &[Server]) -> Vec<Producer> {
    servers.iter().map(|server| Producer::start_with_profile(server.address(), PROFILE)).collect()
}

#[track_caller]
fn stop(producers: Vec<Producer>, record: &mut ProducerRecord) {
    for producer in producers {
        record.merge(producer.stop());
    }
}

#[test]
fn three_servers_store_every_event_once_though_one_is_killed() {
    let postgres = Postgres::start();
    let mut servers: Vec<Server> = (0..3).map(|_| Server::start_on(&postgres, SETTINGS)).collect();
    let mut record = ProducerRecord::default();
    let producers = load(&servers);
    until("all are under load", || producers.iter().all(|producer| producer.acknowledged() > 500));
    servers[1].kill();
    let others = |producer: &Producer| producer.acknowledged();
    let (first, third) = (others(&producers[0]), others(&producers[2]));
    until("the others go on", || others(&producers[0]) > first + 500 && others(&producers[2]) > third + 500);
    stop(producers, &mut record);
    // Its acknowledged events wait in its journal, which the others do not read.
    servers[1].restart();
    let producers = load(&servers);
    until("all are under load again", || producers.iter().all(|producer| producer.acknowledged() > 500));
    stop(producers, &mut record);
    servers.iter().for_each(wait_for_drain);
    check_stored(&record, &postgres);
    assert_eq!(postgres.dead(), 0);

    let counted: i64 = postgres.value("SELECT sum(count)::bigint FROM event_counts");
    assert_eq!(counted, postgres.stored(), "the counts add up to the events");
    let url = postgres.url();
    assert_eq!(run(&[("DATABASE_URL", &url)], &["counts", "check"]).code, Some(0));
    let deadlocks: i64 =
        postgres.value("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()");
    assert_eq!(deadlocks, 0, "all lock the counts in the same order");
    // The ledgers of the two servers that were not killed are complete.
    for server in [&servers[0], &servers[2]] {
        assert_eq!(server.metric("events_duplicate_total") + server.metric("events_dead_total"), 0);
    }
}
