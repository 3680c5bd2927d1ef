//! The stages of an event, one by one, through the interface of the library.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use aurore_events::buffer::{Buffer, BufferLimits, RowBlock};
use aurore_events::clock::{Clock, Moment};
use aurore_events::event::id_generator::IdGenerator;
use aurore_events::event::{ArrivalNumber, EventId, row};
use aurore_events::http::{ContentCoding, Response};
use aurore_events::ingest::{BodyFormat, IngestDecoder, IngestHeaders, IngestLimits};
use aurore_events::journal::Journal;
use aurore_events::json::text;
use aurore_events::metrics::Ledger;
use aurore_events::writer::{Batch, BatchLimits};

use super::corpus::{self, Body, EventKind, NOW};
use super::{Work, counted, otlp};

/// The default settings.
pub(super) const INGEST_LIMITS: IngestLimits = IngestLimits {
    clock_skew: Duration::from_mins(5),
    retention: Duration::from_hours(30 * 24),
    rows_per_block_max: 5000,
    decompressed_bytes_max: 64 << 20,
};
pub(super) const BUFFER_LIMITS: BufferLimits = BufferLimits {
    rows_max: 50_000,
    bytes_max: 256 << 20,
    batch_rows_max: 5000,
    batch_bytes_max: 16 << 20,
    spill_bytes_max: 0,
};
const BATCH_LIMITS: BatchLimits = BatchLimits {
    rows_max: 5000,
    bytes_max: 16 << 20,
    linger: Duration::from_millis(20),
    wait_max: Duration::from_secs(1),
};

fn headers(format: BodyFormat) -> IngestHeaders<'static> {
    IngestHeaders {
        format,
        coding: ContentCoding::Identity,
        key: None,
        durability: None,
        services: None,
        keeps_ids: false,
    }
}

pub(super) fn decoder() -> IngestDecoder {
    IngestDecoder::new(INGEST_LIMITS, IdGenerator::new(Clock::manual(NOW, 1).rng()))
}

/// Bodies to rows: scans, validates, makes ids, encodes.
pub(super) fn decode(bodies: &[Body], format: BodyFormat) -> Work {
    let mut decoder = decoder();
    counted(&mut || {
        for body in bodies {
            let request = decoder.decode(headers(format), &body.bytes, NOW);
            assert_eq!(request.accepted(), body.events, "the corpus is valid");
            black_box(request.bytes());
        }
    });
    Work::of(bodies)
}

/// Events that are all refused: scans, validates, writes the problem.
fn validate(bodies: &[Body]) -> Work {
    let mut decoder = decoder();
    let mut response = Response::default();
    counted(&mut || {
        for body in bodies {
            let request = decoder.decode(headers(BodyFormat::Ndjson), &body.bytes, NOW);
            assert_eq!(request.accepted(), 0, "the corpus is invalid");
            response.clear();
            request.write_response(&[], &mut response);
            black_box(&response.body);
        }
    });
    Work::of(bodies)
}

/// Responses to accepted batches.
fn respond(bodies: &[Body]) -> Work {
    let mut decoder = decoder();
    let mut response = Response::default();
    for body in bodies {
        let request = decoder.decode(headers(BodyFormat::Ndjson), &body.bytes, NOW);
        response.clear();
        counted(&mut || request.write_response(&[], &mut response));
        black_box(&response.body);
    }
    Work::of(bodies)
}

/// Fields to rows, unescaping the texts.
fn encode(events: &[[String; 3]]) -> Work {
    let (id, mut out, mut bytes) = (EventId::random(1, [7; 10]), Vec::new(), 0);
    counted(&mut || {
        for [service, message, metadata] in events {
            out.clear();
            row::append_header(&mut out, id, NOW, NOW, ArrivalNumber::first_at(NOW));
            row::append_text(&mut out, service.as_bytes());
            row::append_text_with(&mut out, |out| text::unescape(out, message.as_bytes()));
            row::append_metadata(&mut out, (!metadata.is_empty()).then_some(metadata.as_bytes()));
            bytes += out.len();
        }
    });
    Work { events: events.len(), bytes }
}

/// The blocks of `bodies`.
fn blocks(bodies: &[Body], format: BodyFormat) -> Vec<RowBlock> {
    let mut decoder = decoder();
    let mut blocks = Vec::new();
    for body in bodies {
        let request = decoder.decode(headers(format), &body.bytes, NOW);
        blocks.extend(request.blocks().map(|(bytes, rows)| RowBlock::new(bytes, rows, Moment::ZERO)));
    }
    blocks
}

fn buffer() -> Buffer {
    Buffer::new(BUFFER_LIMITS, 1, Arc::new(Ledger::new(1))).0
}

fn admit(buffer: &Buffer, block: &RowBlock) {
    let size = (block.rows(), block.bytes().len());
    let blocks = std::iter::once((block.bytes(), block.rows()));
    let admitted = buffer.admit(0, size, Moment::ZERO, blocks, |block| _ = black_box(block));
    admitted.expect("the buffer holds the corpus");
}

/// Blocks into the buffer.
fn admission(blocks: &[RowBlock]) -> Work {
    let buffer = buffer();
    counted(&mut || {
        for block in blocks {
            admit(&buffer, block);
        }
    });
    Work::of_blocks(blocks)
}

/// Blocks into a lane of the journal.
fn append(blocks: &[RowBlock]) -> Work {
    let (journal, _parkers) = Journal::new(1);
    counted(&mut || {
        for block in blocks {
            journal.append(0, block);
        }
    });
    Work::of_blocks(blocks)
}

/// Blocks out of the buffer into batches, up to the slices that COPY gets.
fn assemble(blocks: &[RowBlock]) -> Work {
    let buffer = buffer();
    for block in blocks {
        admit(&buffer, block);
    }
    counted(&mut || {
        let (mut batch, mut shard) = (Batch::new(BATCH_LIMITS), 0);
        while let Some(block) = buffer.pop(&mut shard) {
            if batch.is_full() || !batch.admits(&block) {
                black_box(batch.runs());
                batch = Batch::new(BATCH_LIMITS);
            }
            batch.push(block);
        }
        black_box(batch.runs());
    });
    Work::of_blocks(blocks)
}

/// Runs the stage `name`.
pub(super) fn run(name: &str) -> Option<Work> {
    use EventKind::{Invalid, Keyed, Plain};
    let singles = |kind| corpus::singles(1000, kind);
    let batches = |kind| corpus::batches(40, kind);
    let single_blocks = || blocks(&singles(Plain), BodyFormat::Json);
    let batch_blocks = || blocks(&batches(Plain), BodyFormat::Ndjson);
    Some(match name {
        "decode-single" => decode(&singles(Plain), BodyFormat::Json),
        "decode-batch" => decode(&batches(Plain), BodyFormat::Ndjson),
        "decode-keyed" => decode(&batches(Keyed), BodyFormat::Ndjson),
        "decode-otlp" => otlp::decode(&otlp::batches(40, corpus::BATCH_EVENTS)),
        "validate" => validate(&batches(Invalid)),
        "encode" => encode(&corpus::fields(4000)),
        "respond" => respond(&batches(Plain)),
        "admit-single" => admission(&single_blocks()),
        "admit-batch" => admission(&batch_blocks()),
        "append" => append(&single_blocks()),
        "assemble-single" => assemble(&single_blocks()),
        "assemble-batch" => assemble(&batch_blocks()),
        _ => return None,
    })
}
