//! `POST /events`: a body to events in the buffer, all of its good ones or none, and the answer. What takes long goes
//! slice by slice, so that no connection holds its core.
//!
//! Knows no gate and no route. Runs on the acceptor and must not block.

use std::sync::Arc;

use rand::rngs::StdRng;

use crate::buffer::{Full, RowBlock};
use crate::clock::Clock;
use crate::event::Timestamp;
use crate::health::status::Status;
use crate::http::{
    Coding, DecompressLimits, Decompressor, Headers, Promise, Request, Response, Undecodable, problem,
};
use crate::ingest::{self, Call, Decoded, Form, Ingest, Limits};
use crate::journal::Level;
use crate::lifecycle::Phase;
use crate::metrics::Reason;

/// Seconds after which another server, or this one restarted, may take what a stopping one refused.
pub(super) const RESTART_S: u64 = 5;
/// Seconds after which a journal that failed may work again.
pub(super) const JOURNAL_RETRY_S: u64 = 5;
/// A plain body of no more is decoded at once: some 400 us. What is longer is read in slices of as much.
const DECODED_BYTES: usize = 256 * 1024;
/// A compressed body of no more is tried at once: it has most likely...
const COMPRESSED_BYTES: usize = 8 * 1024;
/// ...no more than this when it is plain: some 500 us. What has more goes in slices of as much.
const PLAIN_BYTES: usize = 128 * 1024;
/// How many times longer it takes to make a byte plain than to decode it.
const PLAIN_TIMES: usize = 4;

/// What came of a post.
pub(super) enum Posted {
    /// It is answered.
    Answered,
    /// Its answer is to be given when its events have reached this level.
    Admitted(Level),
    /// [`Intake::go_on`] has more to do.
    More(Upload),
}

/// A body that takes long, as far as it has come. Nothing is allocated before its turn comes.
pub(super) struct Upload(Option<Box<Bench>>);

/// What one long body is worked on with. Acceptors work on one at a time.
struct Bench {
    decompressor: Decompressor,
    ingest: Ingest,
    now: Timestamp,
    plain: bool,
}

#[derive(Debug)]
pub(super) struct Intake {
    ingest: Ingest,
    decompressor: Decompressor,
    admission: Admission,
    /// The least that somebody waits for since the turn began.
    waiting: Option<Level>,
}

/// Where events go.
#[derive(Debug)]
struct Admission {
    acceptor: usize,
    /// What a 202 means unless the request says.
    durability: Level,
    status: Arc<Status>,
    clock: Clock,
}

impl Intake {
    pub(super) fn new(
        acceptor: usize,
        limits: Limits,
        durability: Level,
        rng: StdRng,
        status: Arc<Status>,
    ) -> Self {
        Self {
            ingest: Ingest::new(limits, rng),
            decompressor: Decompressor::new(DecompressLimits::new(limits.plain_bytes_max)),
            admission: Admission { acceptor, durability, clock: status.clock.clone(), status },
            waiting: None,
        }
    }

    /// Takes a body in, or begins to. `services` are those that its sender may write.
    pub(super) fn post(
        &mut self,
        services: Option<&[Box<str>]>,
        request: &Request<'_>,
        response: &mut Response,
    ) -> Posted {
        let Self { ingest, decompressor, admission, .. } = self;
        let Some(call) = admission.examine(services, request, response) else { return Posted::Answered };
        let body = if call.coding == Coding::Identity {
            if request.body.len() > DECODED_BYTES {
                return Posted::More(Upload(None));
            }
            request.body
        } else {
            if request.body.len() > COMPRESSED_BYTES {
                return Posted::More(Upload(None));
            }
            decompressor.begin();
            match decompressor.go_on(call.coding, request.body, PLAIN_BYTES) {
                Ok(true) => {}
                Ok(false) => return Posted::More(Upload(None)),
                Err(refused) => return admission.undecodable(refused, response),
            }
            decompressor.plain(call.coding, request.body)
        };
        if call.coding != Coding::Identity {
            response.effort = body.len() * PLAIN_TIMES;
        }
        let decoded = ingest.decode(call, body, admission.clock.wall());
        let posted = admission.admit(call, &decoded, response);
        decompressor.release();
        posted
    }

    /// Does the next slice of a body that takes long.
    pub(super) fn go_on(
        &mut self,
        upload: Upload,
        services: Option<&[Box<str>]>,
        request: &Request<'_>,
        response: &mut Response,
    ) -> Posted {
        let admission = &self.admission;
        let mut bench = if let Some(bench) = upload.0 {
            bench
        } else {
            // It may have waited for its turn.
            if admission.examine(services, request, response).is_none() {
                return Posted::Answered;
            }
            let (decompressor, ingest) = (self.decompressor.another(), self.ingest.another());
            Box::new(Bench { decompressor, ingest, now: admission.clock.wall(), plain: false })
        };
        let Ok(call) = Call::read(request.headers) else {
            unreachable!("BUG: the same headers were good before");
        };
        let call = Call { services, ..call };
        if !bench.plain {
            match bench.decompressor.go_on(call.coding, request.body, PLAIN_BYTES) {
                Ok(plain) => bench.plain = plain,
                Err(refused) => return admission.undecodable(refused, response),
            }
            return Posted::More(Upload(Some(bench)));
        }
        let body = bench.decompressor.plain(call.coding, request.body);
        if !bench.ingest.read_on(call, body, bench.now, DECODED_BYTES) {
            return Posted::More(Upload(Some(bench)));
        }
        admission.admit(call, &bench.ingest.decoded(), response)
    }

    /// Has the answer in `response` given when the events it speaks of have reached `level`.
    pub(super) fn answer_when(&mut self, level: Level, promise: Promise, response: &mut Response) {
        let answer = std::mem::take(response);
        let told = move |holds| {
            if holds {
                return promise.fulfil(answer);
            }
            let mut response = Response::default();
            problem::answer_later(
                &mut response,
                problem::Kind::JournalUnavailable,
                "the durability asked for could not be reached; the events may be stored all the same, so that \
                 only those with an idempotency key can be sent again without being stored twice",
                JOURNAL_RETRY_S,
            );
            promise.fulfil(response);
        };
        self.admission.status.journal.when(self.admission.acceptor, level, Box::new(told));
        self.waiting = Some(self.waiting.map_or(level, |waiting| waiting.min(level)));
    }

    /// Wakes the checkpoint thread once for all who wait since the turn began.
    pub(super) fn turn_ended(&mut self) {
        if let Some(level) = self.waiting.take() {
            self.admission.status.journal.wake_for(level);
        }
    }
}

impl Admission {
    /// What the request asks for, unless its body need not be looked at to refuse it.
    fn examine<'a>(
        &self,
        services: Option<&'a [Box<str>]>,
        request: &Request<'a>,
        response: &mut Response,
    ) -> Option<Call<'a>> {
        let status = &self.status;
        if status.lifecycle.phase() > Phase::Serving {
            problem::shutting_down(response, RESTART_S);
            return None;
        }
        if request.body.is_empty() && !is_framed(request.headers) {
            let detail = "a POST says how long its body is";
            problem::answer(response, problem::Kind::LengthRequired, detail);
            return None;
        }
        let call = match Call::read(request.headers) {
            Ok(call) => Call { services, ..call },
            Err(refused) => {
                refused.answer(response);
                return None;
            }
        };
        // Under overload most batches are turned away: not to read them leaves the time to the writer. Only lines can be
        // counted without reading them; of what is compressed it is only known that there is one.
        let plain = call.coding == Coding::Identity;
        if (call.form == Form::Ndjson || !plain) && status.buffer.is_full() {
            let events = if plain { ingest::count_lines(request.body) } else { 1 };
            status.ledger.dropped(Reason::BufferFull, events);
            problem::buffer_full(response, status.retry_after());
            return None;
        }
        Some(call)
    }

    /// Admits all that is good of a body, or nothing, and writes the answer.
    fn admit(&self, call: Call<'_>, decoded: &Decoded<'_>, response: &mut Response) -> Posted {
        let (ledger, journal) = (&self.status.ledger, &self.status.journal);
        if decoded.rejected() > 0 {
            ledger.dropped(Reason::Invalid, u64::from(decoded.rejected()));
        }
        let rows = u32::try_from(decoded.accepted()).expect("BUG: a body is bounded far below 2^32 events");
        if rows == 0 {
            decoded.answer(response);
            return Posted::Answered;
        }
        let level = call.durability.unwrap_or(self.durability);
        if !journal.promises(level) {
            ledger.dropped(Reason::JournalUnavailable, u64::from(rows));
            problem::journal_unavailable(response, JOURNAL_RETRY_S);
            return Posted::Answered;
        }
        let admitted_at = self.clock.now();
        let keep = |block: &RowBlock| journal.keep(self.acceptor, block);
        let size = (rows, decoded.bytes());
        match self.status.buffer.admit(self.acceptor, size, admitted_at, decoded.blocks(), keep) {
            Ok(()) => {
                decoded.answer(response);
                response.header("Durability", level.name());
                return Posted::Admitted(level);
            }
            Err(Full::Now) => {
                ledger.dropped(Reason::BufferFull, u64::from(rows));
                problem::buffer_full(response, self.status.retry_after());
            }
            Err(Full::Always) => {
                ledger.dropped(Reason::TooLarge, u64::from(rows));
                let detail = "the request has more events than the whole buffer holds; send it in parts";
                problem::answer(response, problem::Kind::TooLarge, detail);
            }
            Err(Full::Closed) => {
                ledger.dropped(Reason::ShuttingDown, u64::from(rows));
                problem::shutting_down(response, RESTART_S);
            }
        }
        Posted::Answered
    }

    fn undecodable(&self, refused: Undecodable, response: &mut Response) -> Posted {
        self.status.ledger.dropped(Reason::Invalid, 1);
        let kind = if refused.is_too_large() { problem::Kind::TooLarge } else { problem::Kind::Invalid };
        problem::answer(response, kind, &refused.to_string());
        Posted::Answered
    }
}

/// Whether the request said that it has a body, be it an empty one.
fn is_framed(headers: Headers<'_>) -> bool {
    headers.get("Content-Length").is_some() || headers.get("Transfer-Encoding").is_some()
}
