//! The routes `GET /dead`, `POST /dead/replay` and `DELETE /dead`: checks a request on the acceptor
//! and runs it on a query thread.

use std::time::Duration;

use serde::Serialize;

use super::list::read_page;
use super::params::{ListParams, PurgeParams, ReplayParams};
use super::replay::{ReplaySummary, replay};
use crate::http::problem::{self, FieldError, FieldErrors, ProblemKind};
use crate::http::{HandlerResult, Promise, Response};
use crate::query::{QueryDatabase, QueryQueue, QueryRequest, RunQueryError};

/// The time after which a replay begins no further transaction: less than `RESPONSE_TIMEOUT_MS`.
const REPLAY_TIME_MAX: Duration = Duration::from_secs(10);

/// An operation on dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadRoute {
    List,
    Replay,
    Purge,
}

#[derive(Serialize)]
struct ReplayResponse {
    #[serde(flatten)]
    summary: ReplaySummary,
    next_cursor: Option<String>,
}

#[derive(Serialize)]
struct PurgeResponse {
    purged: u64,
}

impl DeadRoute {
    /// Queues the operation, or refuses it. Calls `promise` only for a pending response.
    pub fn handle(
        self,
        queue: &QueryQueue,
        request: QueryRequest<'_>,
        promise: impl FnOnce() -> Promise,
        response: &mut Response,
    ) -> HandlerResult {
        match self {
            Self::List => {
                let Some(params) =
                    request.parse(ListParams::parse, |params| params.filter.service.as_deref(), response)
                else {
                    return HandlerResult::Done;
                };
                let bytes_max = queue.response_bytes_max();
                let job = move |database: &QueryDatabase, response: &mut Response| {
                    list(database, &params, bytes_max, response);
                };
                queue.submit(job, promise, response)
            }
            Self::Replay => {
                let Some(params) =
                    request.parse(ReplayParams::parse, |params| params.filter.service.as_deref(), response)
                else {
                    return HandlerResult::Done;
                };
                let job = move |database: &QueryDatabase, response: &mut Response| {
                    replay_some(database, &params, response);
                };
                queue.submit(job, promise, response)
            }
            Self::Purge => {
                let Some(params) =
                    request.parse(PurgeParams::parse, |params| params.filter.service.as_deref(), response)
                else {
                    return HandlerResult::Done;
                };
                let job = move |database: &QueryDatabase, response: &mut Response| {
                    purge(database, &params, response);
                };
                queue.submit(job, promise, response)
            }
        }
    }
}

fn list(database: &QueryDatabase, params: &ListParams, bytes_max: usize, response: &mut Response) {
    match database.dead_letters("dead", |letters| read_page(letters, params, bytes_max)) {
        Ok(page) => write_json(response, page),
        Err(failure) => write_failure(failure, response),
    }
}

fn replay_some(database: &QueryDatabase, params: &ReplayParams, response: &mut Response) {
    let ReplayParams { filter, limit, after } = params;
    let end = database.now().plus(REPLAY_TIME_MAX);
    let replayed = database.dead_letters("dead/replay", |letters| {
        replay(letters, filter, *after, *limit, || database.now() < end)
    });
    match replayed {
        Ok((summary, next)) => {
            log::info!(
                stored = summary.stored, duplicate = summary.duplicate, refused = summary.refused,
                unreadable = summary.unreadable;
                "dead letters were replayed by a request"
            );
            let body = ReplayResponse { summary, next_cursor: next.map(|id| id.to_string()) };
            write_json(response, sonic_rs::to_vec(&body).expect("BUG: numbers and strings are serializable"));
        }
        Err(failure) => write_failure(failure, response),
    }
}

fn purge(database: &QueryDatabase, params: &PurgeParams, response: &mut Response) {
    if !params.is_confirmed {
        match database.dead_letters("dead", |letters| letters.count_dead(&params.filter)) {
            Ok(count) => write_unconfirmed(count, response),
            Err(failure) => write_failure(failure, response),
        }
        return;
    }
    match database.dead_letters("dead", |letters| letters.purge_dead(&params.filter)) {
        Ok(purged) => {
            log::info!(purged; "dead letters were deleted by a request");
            let body = sonic_rs::to_vec(&PurgeResponse { purged }).expect("BUG: a number is serializable");
            write_json(response, body);
        }
        Err(failure) => write_failure(failure, response),
    }
}

fn write_unconfirmed(count: u64, response: &mut Response) {
    let detail = format!("{count} dead letters match; confirm=true deletes them permanently");
    let mut errors = FieldErrors::default();
    errors.push(|| FieldError { index: None, field: "confirm".into(), detail: detail.clone() });
    problem::write_invalid(response, &detail, &errors);
}

fn write_failure(failure: RunQueryError, response: &mut Response) {
    if failure == RunQueryError::TimedOut {
        let detail = "the statement timed out; select fewer dead letters";
        return problem::write_retryable(response, ProblemKind::DatabaseUnavailable, detail, 1);
    }
    failure.write(response);
}

fn write_json(response: &mut Response, body: Vec<u8>) {
    response.status = 200;
    response.content_type = "application/json";
    response.body = body;
}
