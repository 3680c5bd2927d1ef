//! The hand-over from producers (acceptors and the refill) to the writer.

use loom::sync::Arc;
// The atomics of `handover`.
use loom::sync::atomic;
use loom::thread;

use super::parker::{Parker, Slots, Stuck, explore};
use handover::Handover;

#[path = "../../src/buffer/handover.rs"]
#[expect(dead_code, reason = "only the protocol is modelled")]
mod handover;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// That of the server.
    PushThenAnnounce,
    AnnounceThenPush,
}

struct Model {
    producers: usize,
    /// Blocks per producer.
    blocks: usize,
    /// The rows of a full batch; the writer waits for one.
    batch_rows: usize,
    order: Order,
    /// Whether the writer looks into the shards after `prepare_park`.
    looks_again: bool,
}

const MODEL: Model =
    Model { producers: 2, blocks: 1, batch_rows: 1, order: Order::PushThenAnnounce, looks_again: true };

struct Shared {
    handover: Handover,
    shards: Vec<Slots>,
    parker: Parker,
}

impl Model {
    /// Asserts that the writer gets all blocks.
    fn check(self) {
        let Self { producers, blocks, batch_rows, order, looks_again } = self;
        explore(move || {
            let shared = Arc::new(Shared {
                handover: Handover::new(batch_rows, 1 << 20),
                shards: (0..producers).map(|_| Slots::new(blocks)).collect(),
                parker: Parker::new(producers),
            });
            for shard in 0..producers {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.produce(shard, blocks, order));
            }
            shared.write(producers * blocks, batch_rows, looks_again);
        });
    }
}

impl Shared {
    /// Like `Buffer::admit`.
    fn produce(&self, shard: usize, blocks: usize, order: Order) {
        for nth in 0..blocks {
            if order == Order::PushThenAnnounce {
                self.shards[shard].push(nth);
            }
            if self.handover.announce(1, 1) {
                self.parker.unpark();
            }
            if order == Order::AnnounceThenPush {
                self.shards[shard].push(nth);
            }
        }
        self.parker.waker_ends();
    }

    /// Like `Writer::run`, with a linger that never ends: a batch is written when it is full.
    fn write(&self, mut left: usize, batch_rows: usize, looks_again: bool) {
        let (mut next, mut batch) = (vec![0; self.shards.len()], 0);
        let gather = |next: &mut Vec<usize>, batch: &mut usize| {
            let before = *batch;
            for (shard, next) in self.shards.iter().zip(next) {
                while *batch < batch_rows && shard.pop(next) {
                    *batch += 1;
                }
            }
            *batch > before
        };
        loop {
            gather(&mut next, &mut batch);
            if batch == batch_rows {
                left -= batch;
                batch = 0;
                if left == 0 {
                    return;
                }
                continue;
            }
            self.handover.prepare_park(batch, batch);
            if looks_again && gather(&mut next, &mut batch) {
                continue;
            }
            self.parker.park().unwrap_or_else(|Stuck| panic!("the writer sleeps, {left} events wait"));
        }
    }
}

#[test]
fn each_event_wakes_a_writer_that_sleeps_without_a_batch() {
    MODEL.check();
}

#[test]
fn each_event_of_one_producer_wakes_a_writer_that_sleeps_without_a_batch() {
    Model { producers: 1, blocks: 3, ..MODEL }.check();
}

#[test]
fn the_event_that_fills_the_batch_wakes_a_writer_that_lingers() {
    Model { batch_rows: 2, ..MODEL }.check();
}

#[test]
fn the_event_of_one_producer_that_fills_the_batch_wakes_a_writer_that_lingers() {
    Model { producers: 1, blocks: 4, batch_rows: 2, ..MODEL }.check();
}

#[test]
#[should_panic(expected = "the writer sleeps")]
fn the_model_finds_an_announcement_before_the_push() {
    Model { order: Order::AnnounceThenPush, ..MODEL }.check();
}

#[test]
#[should_panic(expected = "the writer sleeps")]
fn the_model_finds_a_writer_that_does_not_look_again() {
    Model { looks_again: false, ..MODEL }.check();
}
