//! Runs one stage of an event's life on a fixed corpus, for `perf/instructions`, which counts the
//! instructions with callgrind.
//!
//! `instructions STAGE` prints the number of events and of their bytes; without a stage it prints
//! the names of all. `instructions compare` prints events per second of NDJSON and of OTLP, for
//! `perf/otlp`. Nothing else depends on the time or on chance, so that each run executes the same
//! instructions. Only the work within [`counted`] is counted.

mod compare;
mod corpus;
mod otlp;
mod request;
mod stages;

use std::error::Error;
use std::hint::black_box;
use std::io::Write as _;

use aurore_events::buffer::RowBlock;
use corpus::Body;

const STAGES: [&str; 14] = [
    "decode-single",
    "decode-batch",
    "decode-keyed",
    "decode-otlp",
    "validate",
    "encode",
    "respond",
    "admit-single",
    "admit-batch",
    "append",
    "assemble-single",
    "assemble-batch",
    "request-single",
    "request-batch",
];

/// The work of a stage.
struct Work {
    events: usize,
    bytes: usize,
}

impl Work {
    fn of(bodies: &[Body]) -> Self {
        Self {
            events: bodies.iter().map(|body| body.events).sum(),
            bytes: bodies.iter().map(|body| body.bytes.len()).sum(),
        }
    }

    fn of_blocks(blocks: &[RowBlock]) -> Self {
        Self {
            events: blocks.iter().map(|block| block.rows() as usize).sum(),
            bytes: blocks.iter().map(|block| block.bytes().len()).sum(),
        }
    }
}

/// Callgrind counts while this function runs: `perf/instructions` names it.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    work();
    // Keeps the call above from becoming a jump, after which callgrind would not see the return.
    black_box(());
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    let Some(name) = std::env::args().nth(1) else {
        writeln!(out, "{}", STAGES.join("\n"))?;
        return Ok(());
    };
    if name == "compare" {
        writeln!(out, "{}", compare::run())?;
        return Ok(());
    }
    let work = match name.strip_prefix("request-") {
        Some(form) => request::run(form)?,
        None => stages::run(&name),
    };
    let Work { events, bytes } = work.ok_or("there is no such stage")?;
    writeln!(out, "{events} {bytes}")?;
    Ok(())
}
