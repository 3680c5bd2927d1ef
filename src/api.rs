//! One acceptor's handler: sends each request to the stage that answers it, and counts it.
//!
//! Runs on the acceptor and must not block: what needs the database goes to the reader threads.

use std::sync::Arc;

use rand::rngs::StdRng;

use crate::buffer::{Buffer, Full};
use crate::clock::Clock;
use crate::http::accept::preferred;
use crate::http::{Answer, Handler, Method, Promise, Request, Response, Route, route};
use crate::ingest::{Call, Ingest, Limits, problem};
use crate::lifecycle::Phase;
use crate::metrics::{HttpFigures, Reason};
use crate::query::Readers;
use crate::row::RowBlock;
use crate::status::{Part, Status};

/// Seconds after which another server, or this one restarted, may take what a stopping one refused.
const RESTART_S: u64 = 5;

#[derive(Debug)]
pub struct Api {
    acceptor: usize,
    ingest: Ingest,
    buffer: Arc<Buffer>,
    status: Arc<Status>,
    readers: Arc<Readers>,
    figures: Arc<HttpFigures>,
    clock: Clock,
}

impl Api {
    pub fn new(
        acceptor: usize,
        limits: Limits,
        rng: StdRng,
        status: Arc<Status>,
        readers: Arc<Readers>,
    ) -> Self {
        Self {
            acceptor,
            ingest: Ingest::new(limits, rng),
            buffer: status.buffer.clone(),
            figures: status.http.clone(),
            clock: status.clock.clone(),
            status,
            readers,
        }
    }

    /// `POST /events`: all of its good events are admitted, or none.
    fn post_events(&mut self, request: &Request<'_>, response: &mut Response) {
        let ledger = &self.status.ledger;
        if self.status.lifecycle.phase() > Phase::Serving {
            return problem::shutting_down(response, RESTART_S);
        }
        let call = match Call::read(request.headers) {
            Ok(call) => call,
            Err(refused) => return refused.answer(response),
        };
        let decoded = self.ingest.decode(call, request.body, self.clock.wall());
        if decoded.rejected() > 0 {
            ledger.dropped(Reason::Invalid, u64::from(decoded.rejected()));
        }
        let rows = u32::try_from(decoded.accepted()).expect("BUG: a body is bounded far below 2^32 events");
        if rows == 0 {
            return decoded.answer(response);
        }
        let admitted_at = self.clock.now();
        let blocks =
            decoded.blocks().map(|(bytes, rows)| RowBlock { bytes: bytes.into(), rows, admitted_at });
        match self.buffer.admit(self.acceptor, rows, decoded.bytes(), blocks) {
            Ok(()) => decoded.answer(response),
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
    }

    fn metrics(&self, request: &Request<'_>, response: &mut Response) {
        const OFFERS: [&str; 3] = ["application/json", "text/plain", "application/openmetrics-text"];
        let accept = request.headers.get("Accept").and_then(|accept| str::from_utf8(accept).ok());
        // None of them, or no preference: JSON.
        if accept.and_then(|accept| preferred(accept, &OFFERS)).is_some_and(|offer| offer > 0) {
            self.status.metrics_text(response);
        } else {
            self.status.metrics_json(response);
        }
    }
}
