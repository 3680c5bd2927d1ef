//! The model test: a deterministic simulation of the real buffer, journal, recovery and writer on
//! one thread, with a simulated disk and an in-memory repository. A seed decides each sequence. At
//! every call to the disk or the database, before each push of an admission, and wherever a stage
//! would sleep, another stage may run, the call may fail, or the process may end, by a kill (the page
//! cache survives) or by a power cut. Several batches may be in flight and commit in any order; any
//! of them may fail, also after its commit. The writer sleeps until it is woken or its time has come. Then
//! a new process recovers the remaining state and may be ended again. In the end
//! everything is drained and compared with an oracle, which records the acknowledgements. Asserted:
//!
//! - at `synced` no event is lost, at `written` none by kills, at all levels only events inside the
//!   window;
//! - no event is stored that was not sent, no valid event is dead-lettered, and none is stored
//!   twice;
//! - the ledger balances, the capacity is never exceeded, every event drains, and every segment is
//!   deleted;
//! - the writer does not sleep while events wait longer than the linger, unless a batch is in flight;
//! - a failover of the database to an earlier state loses no event that is retained in the journal;
//! - no stage panics.
//!
//! `MODEL_SEED=n` replays one sequence and prints its steps; `MODEL_SEQUENCES=n` sets the number of
//! sequences.

mod database;
mod fakes;
mod files;
mod oracle;
mod process;
mod simulation;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use aurore_events::clock::Clock;
use rand::RngExt;

use crate::fixture::{ReportRow, is_full_run};
use simulation::{Simulation, SimulationStats};

/// The number of sequences in `scripts/test` and in `scripts/faults`.
const FAST: u64 = 4_000;
const LONG: u64 = 100_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var_os(name)?;
    let text = text.to_string_lossy();
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// Half of the seeds are the same in every run, half are new.
#[test]
fn random_sequences_with_a_crash_at_any_step_lose_and_duplicate_no_event() {
    if let Some(seed) = number("MODEL_SEED") {
        Simulation::play(seed, true);
        return;
    }
    let mut row = ReportRow::new("1-11 model: buffer, journal, writer; crash at any step");
    let all = number("MODEL_SEQUENCES").unwrap_or(if is_full_run() { LONG } else { FAST });
    let fresh: u64 = Clock::system().rng().random::<u32>().into();
    println!("{all} sequences, half of them from seed {fresh} on");
    let next = AtomicU64::new(0);
    let workers = if is_full_run() { 2 } else { 1 };
    let body = || {
        let mut sum = SimulationStats::default();
        loop {
            let nth = next.fetch_add(1, Ordering::Relaxed);
            if nth >= all {
                return Ok(sum);
            }
            let seed = if nth.is_multiple_of(2) { nth / 2 } else { (fresh << 32) + nth / 2 };
            match catch_unwind(AssertUnwindSafe(|| Simulation::play(seed, false))) {
                Ok(stats) => sum.add(&stats),
                Err(_panic) => {
                    next.store(all, Ordering::Relaxed);
                    return Err(seed);
                }
            }
        }
    };
    let ended: Vec<Result<SimulationStats, u64>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(body)).collect();
        threads.into_iter().map(|thread| thread.join().expect("panics are caught")).collect()
    });
    let mut sum = SimulationStats::default();
    for result in ended {
        match result {
            Ok(stats) => sum.add(&stats),
            Err(seed) => {
                // Replays the sequence and prints its steps.
                Simulation::play(seed, true);
                panic!("MODEL_SEED={seed} fails, but not when it is replayed");
            }
        }
    }
    println!("{all} sequences: {sum:?}");
    assert!(sum.failovers > all / 20, "{sum:?}");
    assert!(sum.kills > all / 10 && sum.power_cuts > all / 10 && sum.acknowledged > all, "{sum:?}");
    row.passed_model(all, sum.acknowledged);
}
