//! One acceptor's side of the gateway: reads a request, hands it to the shared state, and answers. Must not block.

use std::borrow::Cow;
use std::sync::Arc;

use super::exposition::Form;
use super::figures::Reason;
use super::forward::Forwarded;
use super::push::{self, BadBody};
use super::scrape::{Asked, Line};
use super::target::Target;
use super::{Gateway, Refused, Summed, keys, listing, protobuf, text};
use crate::access::{Grant, holds};
use crate::event::Timestamp;
use crate::http::accept::preferred;
use crate::http::gzip;
use crate::http::percent::decode;
use crate::http::problem::{self, Errors, FieldError, Kind};
use crate::http::{Answer, Headers, Method, Promise, Request, Response};
use crate::http::{Coding, Decompressor};
use crate::ingest::idempotency::HeaderKey;
use crate::journal::Level;

/// Seconds after which a log that failed may work again.
const RETRY_S: u64 = 5;

/// A page of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayPage<'a> {
    /// `POST /metrics/push`
    Push,
    /// PUT, POST or DELETE of `/metrics/job/…`, with what follows `/metrics/`, percent-decoded.
    Group(Cow<'a, str>),
    /// `GET /metrics/pushed`
    Pushed,
    /// `DELETE /metrics/pushed`
    Remove,
    Healthy,
    Ready,
    /// `GET /api/v1/metrics`
    Groups,
    Status,
    Wipe,
}

/// What became of a request.
#[derive(Debug)]
pub enum Outcome {
    /// The answer stands in the response.
    Ready,
    /// It is to be given when this level holds.
    When(Level),
}

#[derive(Debug)]
pub struct Pages {
    gateway: Arc<Gateway>,
    line: Line,
    /// What a good answer means unless the request says.
    durability: Level,
    started_at: Timestamp,
    /// The settings as they may be shown.
    flags: Arc<[String]>,
}

/// Why a request is not gone into.
enum Unread {
    Problem(Kind, String),
    Field(&'static str, String),
}

impl Pages {
    pub fn new(
        gateway: Arc<Gateway>,
        line: Line,
        durability: Level,
        started_at: Timestamp,
        flags: Arc<[String]>,
    ) -> Self {
        Self { gateway, line, durability, started_at, flags }
    }

    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// What another thread must write, if the page is such a one.
    pub fn asked(page: &GatewayPage<'_>, headers: Headers<'_>) -> Option<Asked> {
        match page {
            GatewayPage::Pushed => {
                Some(Asked::Exposition { form: form(headers), gzipped: gzip::is_accepted(headers) })
            }
            GatewayPage::Groups => Some(Asked::Groups),
            GatewayPage::Push
            | GatewayPage::Group(_)
            | GatewayPage::Remove
            | GatewayPage::Healthy
            | GatewayPage::Ready
            | GatewayPage::Status
            | GatewayPage::Wipe => None,
        }
    }

    /// Has it written, unless too many wait. `later` makes the promise of the answer.
    pub fn ask(&self, asked: Asked, response: &mut Response, later: impl FnOnce() -> Promise) -> Answer {
        if self.line.ask(asked, later) {
            return Answer::Later;
        }
        problem::answer_later(response, Kind::QueriesFull, "too many scrapes are running", 1);
        Answer::Ready
    }

    /// Answers what needs no other thread.
    pub fn answer(
        &self,
        page: &GatewayPage<'_>,
        grant: &Grant,
        request: &Request<'_>,
        decompressor: &mut Decompressor,
        response: &mut Response,
    ) -> Outcome {
        match page {
            GatewayPage::Push => self.push(grant, request, decompressor, response),
            GatewayPage::Group(path) => self.group(path, grant, request, decompressor, response),
            GatewayPage::Remove => self.remove(request, response),
            GatewayPage::Wipe => self.wipe(request, response),
            GatewayPage::Status => {
                response.content_type = "application/json";
                response.body = listing::status(self.started_at, &self.flags).into_bytes();
                Outcome::Ready
            }
            GatewayPage::Healthy | GatewayPage::Ready | GatewayPage::Pushed | GatewayPage::Groups => {
                unreachable!("BUG: others answer these")
            }
        }
    }

    /// The level that the request asks for.
    fn level(&self, headers: Headers<'_>) -> Result<Level, Unread> {
        let Some(name) = headers.get("Durability") else { return Ok(self.durability) };
        Level::parse(name)
            .ok_or_else(|| Unread::Field("Durability", "must be one of memory, written, synced".to_owned()))
    }

    /// Makes the answer of a change that was made, which is given when `level` holds.
    fn done(level: Level, response: &mut Response) -> Outcome {
        response.header("Durability", level.name());
        if level == Level::Memory { Outcome::Ready } else { Outcome::When(level) }
    }

    /// `POST /metrics/push`
    fn push(
        &self,
        grant: &Grant,
        request: &Request<'_>,
        decompressor: &mut Decompressor,
        response: &mut Response,
    ) -> Outcome {
        let read = self.read_push(grant, request, decompressor);
        decompressor.release();
        let (level, key, pushed) = match read {
            Ok(read) => read,
            Err(unread) => {
                self.gateway.figures.refused(Reason::Invalid, 1);
                unread.answer(response);
                return Outcome::Ready;
            }
        };
        match self.gateway.push_sums(pushed, key) {
            Ok(summed) if summed.verdict.accepted == 0 => {
                problem::answer_invalid(response, "none of the metrics was taken", &summed.errors);
                Outcome::Ready
            }
            Ok(summed) => {
                verdict(&summed, response);
                Self::done(level, response)
            }
            Err(_log) => {
                problem::journal_unavailable(response, RETRY_S);
                Outcome::Ready
            }
        }
    }

    fn read_push(
        &self,
        grant: &Grant,
        request: &Request<'_>,
        decompressor: &mut Decompressor,
    ) -> Result<(Level, Option<keys::Key>, push::Pushed), Unread> {
        let headers = request.headers;
        let level = self.level(headers)?;
        // What navigator.sendBeacon and fetch send without asking first: plain text, or no type at all.
        if let Some(kind) = headers.get("Content-Type") {
            let name = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
            if !["application/json", "text/plain"]
                .iter()
                .any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
            {
                let detail = "the content type must be application/json, text/plain or none".to_owned();
                return Err(Unread::Problem(Kind::UnsupportedType, detail));
            }
        }
        let key = HeaderKey::read(headers).map_err(|_bad_key| {
            Unread::Field(
                HeaderKey::NAME,
                "must stand once and be 1 to 128 visible ASCII characters".to_owned(),
            )
        })?;
        let body = plain(headers, request.body, decompressor)?;
        let pushed = push::parse(body, grant.services.as_deref()).map_err(|bad| match bad {
            BadBody::TooMany => Unread::Problem(Kind::TooLarge, bad.to_string()),
            BadBody::NotUtf8
            | BadBody::Syntax { .. }
            | BadBody::Shape
            | BadBody::Unknown(_)
            | BadBody::Empty => Unread::Field("metrics", bad.to_string()),
        })?;
        Ok((level, key.map(|key| keys::hash(key.bytes())), pushed))
    }

    /// Pushgateway's PUT, POST and DELETE. Answers as it does: plain text, 200 for a push, 202 for a deletion.
    fn group(
        &self,
        path: &str,
        grant: &Grant,
        request: &Request<'_>,
        decompressor: &mut Decompressor,
        response: &mut Response,
    ) -> Outcome {
        let done = self.change_group(path, grant, request, decompressor, response);
        decompressor.release();
        match done {
            Ok(level) => Self::done(level, response),
            Err((status, why)) => {
                response.status = status;
                if status == 503 {
                    response.header("Retry-After", RETRY_S);
                }
                plain_text(response, &why);
                Outcome::Ready
            }
        }
    }

    fn change_group(
        &self,
        path: &str,
        grant: &Grant,
        request: &Request<'_>,
        decompressor: &mut Decompressor,
        response: &mut Response,
    ) -> Result<Level, (u16, String)> {
        let invalid = |why: String| {
            self.gateway.figures.refused(Reason::Invalid, 1);
            (400, why)
        };
        let headers = request.headers;
        let target = Target::parse(path).map_err(|bad| invalid(bad.to_string()))?;
        if grant.services.as_ref().is_some_and(|services| !holds(services, target.job())) {
            return Err((403, format!("the token is not for the job {:?}", target.job())));
        }
        let level = self.level(headers).map_err(|_bad_level| {
            (400, "the header Durability must be one of memory, written, synced".to_owned())
        })?;
        let forwarded = |method| {
            let text = |name| headers.get(name).map(|value| String::from_utf8_lossy(value).into_owned());
            Forwarded {
                method,
                path: request.path.to_owned(),
                content_type: text("Content-Type"),
                coding: text("Content-Encoding"),
                body: if method == "DELETE" { Vec::new() } else { request.body.to_vec() },
            }
        };
        let refused = |refused: Refused| match refused {
            Refused::LogUnavailable => (503, refused.to_string()),
            Refused::Flaw(_) | Refused::Conflict(_) => {
                (400, format!("pushed metrics are invalid or inconsistent with existing metrics: {refused}"))
            }
        };
        if request.method == Method::Delete {
            self.gateway.delete_group(&target, || forwarded("DELETE")).map_err(refused)?;
            response.status = 202;
            return Ok(level);
        }
        let body = plain(headers, request.body, decompressor).map_err(|unread| match unread {
            Unread::Problem(kind, why) => (kind.status(), why),
            Unread::Field(_, why) => (400, why),
        })?;
        let parsed = if is_protobuf(headers) {
            protobuf::parse(body).map_err(|bad| invalid(bad.to_string()))?
        } else {
            text::parse(body).map_err(|bad| invalid(bad.to_string()))?
        };
        let replace = request.method == Method::Put;
        let method = if replace { "PUT" } else { "POST" };
        self.gateway.push_group(target, parsed, replace, || forwarded(method)).map_err(refused)?;
        Ok(level)
    }

    /// `DELETE /metrics/pushed?name=NAME&LABEL=VALUE`
    fn remove(&self, request: &Request<'_>, response: &mut Response) -> Outcome {
        let mut wanted = Vec::new();
        for pair in request.query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Ok(name), Ok(value)) = (decode(name), decode(value)) else {
                Unread::Field("query", "its percent-encoding is not valid".to_owned()).answer(response);
                return Outcome::Ready;
            };
            wanted.push((name.into_owned(), value.into_owned()));
        }
        let at = wanted.iter().position(|(name, value)| name == "name" && !value.is_empty());
        let Some(at) = at else {
            Unread::Field("name", "is required: the metric whose series are to go".to_owned())
                .answer(response);
            return Outcome::Ready;
        };
        let (_, name) = wanted.swap_remove(at);
        self.change(
            request,
            response,
            |gateway| gateway.remove(&name, &wanted),
            |removed, response| {
                response.content_type = "application/json";
                response.body = format!("{{\"deleted\":{removed}}}").into_bytes();
            },
        )
    }

    fn wipe(&self, request: &Request<'_>, response: &mut Response) -> Outcome {
        self.change(request, response, Gateway::wipe, |(), response| response.status = 202)
    }

    /// Makes a change and has `say` write the answer. Nothing is changed for a request that is refused.
    fn change<T>(
        &self,
        request: &Request<'_>,
        response: &mut Response,
        make: impl FnOnce(&Gateway) -> Result<T, Refused>,
        say: impl FnOnce(T, &mut Response),
    ) -> Outcome {
        let level = match self.level(request.headers) {
            Ok(level) => level,
            Err(unread) => {
                unread.answer(response);
                return Outcome::Ready;
            }
        };
        match make(&self.gateway) {
            Ok(what) => {
                say(what, response);
                Self::done(level, response)
            }
            Err(_log) => {
                problem::journal_unavailable(response, RETRY_S);
                Outcome::Ready
            }
        }
    }
}

impl Unread {
    fn answer(self, response: &mut Response) {
        match self {
            Self::Problem(kind, detail) => {
                if kind == Kind::UnsupportedType {
                    response.header("Accept-Post", "application/json, text/plain");
                } else if kind == Kind::UnsupportedEncoding {
                    response.header("Accept-Encoding", "gzip, zstd, identity");
                }
                problem::answer(response, kind, &detail);
            }
            Self::Field(field, detail) => {
                let mut errors = Errors::default();
                errors.push(|| FieldError { index: None, field: field.into(), detail: detail.clone() });
                problem::answer_invalid(response, &detail, &errors);
            }
        }
    }
}

/// The body without its coding.
fn plain<'a>(
    headers: Headers<'_>,
    body: &'a [u8],
    decompressor: &'a mut Decompressor,
) -> Result<&'a [u8], Unread> {
    let coding = Coding::read(headers)
        .map_err(|refused| Unread::Problem(Kind::UnsupportedEncoding, refused.to_string()))?;
    decompressor.decode(coding, body).map_err(|bad| {
        let kind = if bad.is_too_large() { Kind::TooLarge } else { Kind::Invalid };
        Unread::Problem(kind, bad.to_string())
    })
}

fn is_protobuf(headers: Headers<'_>) -> bool {
    let Some(Ok(value)) = headers.get("Content-Type").map(str::from_utf8) else { return false };
    let mut parts = value.split(';').map(str::trim);
    if !parts.next().is_some_and(|name| name.eq_ignore_ascii_case("application/vnd.google.protobuf")) {
        return false;
    }
    let has = |wanted: &str, value: &str| {
        parts.clone().filter_map(|part| part.split_once('=')).any(|(name, found)| {
            name.trim().eq_ignore_ascii_case(wanted) && found.trim().trim_matches('"') == value
        })
    };
    has("encoding", "delimited") && has("proto", "io.prometheus.client.MetricFamily")
}

/// Which form a scrape gets. Text for whoever takes it, as Prometheus does: in `OpenMetrics` the bounds of buckets are
/// written otherwise (`1.0` for `1`), so that all histograms would be other series than they were with a Pushgateway.
fn form(headers: Headers<'_>) -> Form {
    const OFFERS: [&str; 2] = ["text/plain", "application/openmetrics-text"];
    let accept = headers.get("Accept").and_then(|accept| str::from_utf8(accept).ok()).unwrap_or("");
    let takes_text =
        accept.to_ascii_lowercase().contains("text/plain") && preferred(accept, &OFFERS[..1]).is_some();
    if !takes_text && preferred(accept, &OFFERS) == Some(1) { Form::OpenMetrics } else { Form::Text }
}

fn verdict(summed: &Summed, response: &mut Response) {
    let verdict = summed.verdict;
    response.status = 202;
    response.content_type = "application/json";
    let out = &mut response.body;
    out.extend_from_slice(
        format!("{{\"accepted\":{},\"rejected\":{},", verdict.accepted, verdict.rejected).as_bytes(),
    );
    if summed.repeated {
        out.extend_from_slice(b"\"repeated\":true,");
    }
    summed.errors.write_members(out);
    out.push(b'}');
}

/// What Go's servers answer with an error.
fn plain_text(response: &mut Response, text: &str) {
    response.content_type = "text/plain; charset=utf-8";
    response.body.extend_from_slice(text.as_bytes());
    response.body.push(b'\n');
}
