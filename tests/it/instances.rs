//! Several servers on one database: they share its tables, and none is in another's way.

use crate::harness::producer::{Manner, Tally};
use crate::harness::server::run;
use crate::harness::{Postgres, Producer, Server, judge, settle, until};

/// Small batches, so that the servers meet at the same counts again and again.
const SETTINGS: &[(&str, &str)] = &[
    ("DURABILITY", "written"),
    ("DRAIN_INTERVAL", "20"),
    ("BATCH_SIZE", "50"),
    ("CIRCUIT_BREAKER_TIMEOUT_MS", "100"),
];
const MANNER: Manner = Manner { batch: 10, ..Manner::STEADY };

fn load(servers: &[Server]) -> Vec<Producer> {
    servers.iter().map(|server| Producer::start_as(server.address(), MANNER)).collect()
}

#[track_caller]
fn stop(producers: Vec<Producer>, tally: &mut Tally) {
    for producer in producers {
        tally.merge(producer.stop());
    }
}

#[test]
fn three_servers_store_all_of_it_once_though_one_is_killed() {
    let postgres = Postgres::start();
    let mut servers: Vec<Server> = (0..3).map(|_| Server::on(&postgres, SETTINGS)).collect();
    let mut tally = Tally::default();
    let producers = load(&servers);
    until("all are under load", || producers.iter().all(|producer| producer.acknowledged() > 500));
    servers[1].kill();
    let others = |producer: &Producer| producer.acknowledged();
    let (first, third) = (others(&producers[0]), others(&producers[2]));
    until("the others go on", || others(&producers[0]) > first + 500 && others(&producers[2]) > third + 500);
    stop(producers, &mut tally);
    // What it had acknowledged waits in its journal; the others do not touch it.
    servers[1].start_again();
    let producers = load(&servers);
    until("all are under load again", || producers.iter().all(|producer| producer.acknowledged() > 500));
    stop(producers, &mut tally);
    servers.iter().for_each(settle);
    judge(&tally, &postgres);
    assert_eq!(postgres.dead(), 0);

    let counted: i64 = postgres.value("SELECT sum(count)::bigint FROM event_counts");
    assert_eq!(counted, postgres.stored(), "the counts add up to the events");
    let url = postgres.url();
    assert_eq!(run(&[("DATABASE_URL", &url)], &["counts", "check"]).code, Some(0));
    let deadlocks: i64 =
        postgres.value("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()");
    assert_eq!(deadlocks, 0, "all lock the counts in the same order");
    // Of the two that were not killed, the ledger is that of all their lives.
    for server in [&servers[0], &servers[2]] {
        assert_eq!(server.metric("events_duplicate_total") + server.metric("events_dead_total"), 0);
    }
}
