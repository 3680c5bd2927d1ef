//! The judge itself: it must find what the faults are said not to do.

use crate::harness::judge::Findings;
use crate::harness::{Producer, World, settle, until};

#[test]
fn the_judge_finds_what_is_lost_twice_or_strange() {
    let world = World::start(&[("DRAIN_INTERVAL", "20")]);
    let producer = Producer::start(world.server.address(), 2);
    until("it is under load", || producer.acknowledged() > 500);
    let tally = producer.stop();
    settle(&world.server);
    let found = Findings::of(&tally, &world.postgres);
    assert_eq!((found.lost.len(), found.twice, found.strangers), (0, 0, 0));

    let again = "INSERT INTO events (event_id, timestamp, ingested_at, service, message) \
                 SELECT gen_random_uuid(), now(), now(), service, ";
    world.postgres.execute(&format!("{again} message FROM events LIMIT 3"));
    world.postgres.execute(&format!("{again} 'nobody sent this' FROM events LIMIT 1"));
    let found = Findings::of(&tally, &world.postgres);
    assert_eq!((found.lost.len(), found.twice, found.strangers), (0, 3, 1));

    let ids: Vec<_> = tally.acknowledged.keys().take(8).map(|id| format!("'{id}'")).collect();
    world.postgres.execute(&format!("UPDATE events SET message = 'altered' WHERE event_id = {}", ids[0]));
    world.postgres.execute(&format!("DELETE FROM events WHERE event_id IN ({})", ids[1..].join(", ")));
    let found = Findings::of(&tally, &world.postgres);
    assert_eq!((found.lost.len(), found.strangers), (8, 2));
}
