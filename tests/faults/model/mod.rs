//! The model: the real buffer, journal, recovery and writer on one thread, on a simulated disk and a repository in
//! memory, in sequences that a seed decides. At every call to disk or database, and wherever somebody would sleep,
//! others may take their turn, the call may fail, or the process may end: killed, so that what the kernel has stays,
//! or by a power cut. What is left is recovered, perhaps ended again, and in the end everything is drained and judged
//! against a plain record of what was acknowledged:
//!
//! - at `synced` nothing is lost, at `written` nothing by kills, at either or `memory` only what lies in the window;
//! - nothing is stored that was not sent, nothing as dead that is good, and nothing twice;
//! - the ledger adds up, the capacity is never exceeded, everything drains, and every segment goes;
//! - nothing panics.
//!
//! `MODEL_SEED=n` plays one sequence and tells what happens in it; `MODEL_SEQUENCES=n` sets how many are played.

mod book;
mod files;
mod life;
mod outside;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use aurore_events::clock::Clock;
use rand::RngExt;

use crate::bench::{Line, at_length};
use world::{Tally, World};

/// Played before each merge, and at length.
const FAST: u64 = 4_000;
const LONG: u64 = 100_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var_os(name)?;
    let text = text.to_string_lossy();
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// Half of the sequences are the same in every run, half are new.
#[test]
fn sequences_of_anything_with_a_crash_at_any_step_lose_nothing_and_store_nothing_twice() {
    if let Some(seed) = number("MODEL_SEED") {
        World::play(seed, true);
        return;
    }
    let mut line = Line::of("1-11 model: buffer, journal, writer; crash at any step");
    let all = number("MODEL_SEQUENCES").unwrap_or(if at_length() { LONG } else { FAST });
    let fresh: u64 = Clock::system().rng().random::<u32>().into();
    println!("{all} sequences, half of them from seed {fresh} on");
    let next = AtomicU64::new(0);
    let workers = if at_length() { 2 } else { 1 };
    let body = || {
        let mut sum = Tally::default();
        loop {
            let nth = next.fetch_add(1, Ordering::Relaxed);
            if nth >= all {
                return Ok(sum);
            }
            let seed = if nth.is_multiple_of(2) { nth / 2 } else { (fresh << 32) + nth / 2 };
            match catch_unwind(AssertUnwindSafe(|| World::play(seed, false))) {
                Ok(tally) => sum.add(&tally),
                Err(_panic) => {
                    next.store(all, Ordering::Relaxed);
                    return Err(seed);
                }
            }
        }
    };
    let ended: Vec<Result<Tally, u64>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(body)).collect();
        threads.into_iter().map(|thread| thread.join().expect("panics are caught")).collect()
    });
    let mut sum = Tally::default();
    for result in ended {
        match result {
            Ok(tally) => sum.add(&tally),
            Err(seed) => {
                // Once more, telling what happens.
                World::play(seed, true);
                panic!("MODEL_SEED={seed} fails, and did not when it was played again");
            }
        }
    }
    println!("{all} sequences: {sum:?}");
    assert!(sum.kills > all / 10 && sum.power_cuts > all / 10 && sum.acknowledged > all, "{sum:?}");
    line.passed_model(all, sum.acknowledged);
}
