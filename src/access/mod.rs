//! Who may ask for what, and how often: tokens with scopes, limits per client, trusted proxies, CORS. Stands between
//! `http` and `api`: it knows headers and what kind of page is asked for, and nothing of events.
//!
//! Where nothing of it is set a request pays for one look at a table.

pub mod cors;
pub mod limiter;
pub mod proxy;
pub mod tokens;

use std::fmt::Write as _;
use std::sync::Arc;

use sonic_rs::JsonValueTrait;

pub use cors::Origins;
pub use limiter::{Limiter, Rate};
pub use proxy::Proxies;
pub use tokens::{NewToken, Scope, Services, TokenFile};

use crate::clock::Moment;
use crate::http::problem::{self, Errors, FieldError, Kind};
use crate::http::{Headers, Request, Response};
use limiter::{Client, Taken};
use tokens::{Token, TokenView};

/// A kind of page, by what it takes to be shown it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// Whether the process lives and is ready. Always open and never limited: whoever supervises the process must not
    /// be starved by others, nor need a secret.
    Probe,
    /// What everybody may see, and what is no page at all.
    Public,
    /// One word on how it is; more for those who may see the figures.
    Health,
    HealthDetails,
    Ingest,
    Query,
    Metrics,
    /// What takes away what others have brought.
    Admin,
}

impl Area {
    const ALL: [Self; 8] = [
        Self::Probe,
        Self::Public,
        Self::Health,
        Self::HealthDetails,
        Self::Ingest,
        Self::Query,
        Self::Metrics,
        Self::Admin,
    ];

    /// What a token must allow to be let in.
    fn scope(self) -> Option<Scope> {
        match self {
            Self::Probe | Self::Public | Self::Health => None,
            Self::HealthDetails | Self::Metrics => Some(Scope::Metrics),
            Self::Ingest => Some(Scope::Ingest),
            Self::Query => Some(Scope::Query),
            Self::Admin => Some(Scope::Admin),
        }
    }
}

/// Requests per second and client; none where there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// On everything but probes.
    pub global: Option<Rate>,
    pub query: Option<Rate>,
    pub health: Option<Rate>,
}

impl Rates {
    /// The limits of an area, each with the name that its header has and its number in the table.
    fn of(self, area: Area) -> impl Iterator<Item = (u8, &'static str, Rate)> {
        let own = match area {
            Area::Probe | Area::Public | Area::Ingest | Area::Metrics | Area::Admin => None,
            Area::Health | Area::HealthDetails => self.health.map(|rate| (1, "health", rate)),
            Area::Query => self.query.map(|rate| (2, "query", rate)),
        };
        let global = self.global.filter(|_| area != Area::Probe).map(|rate| (0, "global", rate));
        global.into_iter().chain(own)
    }
}

/// The rules, the same for all acceptors.
#[derive(Debug)]
pub struct Policy {
    pub tokens: Option<Arc<TokenFile>>,
    pub rates: Rates,
    pub limiter: Limiter,
    pub proxies: Proxies,
    pub origins: Origins,
}

/// What a request that is let in may do beyond that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The services whose events it may write and read. None: all.
    pub services: Option<Services>,
    /// Whether it may see figures.
    pub metrics: bool,
    /// The answer says that the page which asked may read it.
    pub cors: bool,
}

impl Grant {
    const ALL: Self = Self { services: None, metrics: true, cors: false };
}

/// One acceptor's doorkeeper.
#[derive(Debug)]
pub struct Gate {
    policy: Arc<Policy>,
    tokens: Option<TokenView>,
    /// By area: there is nothing to look at.
    free: [bool; Area::ALL.len()],
}

/// Whose a request is, as far as it says.
enum Bearer<'a> {
    /// No tokens are asked for.
    Open,
    Nobody,
    /// It has something, and that is no token of ours.
    Stranger,
    Known(&'a Token),
}

impl Gate {
    pub fn new(policy: Arc<Policy>) -> Self {
        let tokens = policy.tokens.as_ref().map(TokenFile::view);
        let free = Area::ALL.map(|area| {
            let asks = tokens.is_some() && (area.scope().is_some() || area == Area::Health);
            !asks && policy.origins.is_none() && policy.rates.of(area).next().is_none()
        });
        Self { policy, tokens, free }
    }

    /// Lets a request in, or writes why not. What it adds to the answer's headers is for every answer.
    #[inline]
    pub fn enter(
        &mut self,
        area: Area,
        request: &Request<'_>,
        now: Moment,
        response: &mut Response,
    ) -> Option<Grant> {
        if self.free[area as usize] {
            return Some(Grant::ALL);
        }
        self.examine(area, request, now, response)
    }

    /// Adds to an answer that the engine gives whether its page may read it.
    pub fn mark(&self, headers: Headers<'_>, response: &mut Response) {
        self.policy.origins.mark(headers, response);
    }

    fn examine(
        &mut self,
        area: Area,
        request: &Request<'_>,
        now: Moment,
        response: &mut Response,
    ) -> Option<Grant> {
        let Self { policy, tokens, .. } = self;
        let headers = request.headers;
        let cors = policy.origins.mark(headers, response);
        let bearer = match tokens {
            Some(view) => identify(headers, view),
            None => Bearer::Open,
        };
        // Whoever has a token is known by it, wherever it comes from. Whoever guesses at tokens is known by its address.
        let client = || match &bearer {
            Bearer::Known(token) => Client::Token(token.key()),
            Bearer::Open | Bearer::Nobody | Bearer::Stranger => {
                Client::at(policy.proxies.client(request.peer, headers))
            }
        };
        if !policy.within_rates(area, client, now, response) {
            return None;
        }
        let grant = match &bearer {
            Bearer::Open => Grant { cors, ..Grant::ALL },
            Bearer::Known(token) => {
                if let Some(scope) = area.scope().filter(|scope| !token.scopes.allow(*scope)) {
                    forbid_scope(scope, response);
                    return None;
                }
                Grant { services: token.services.clone(), metrics: token.scopes.allow(Scope::Metrics), cors }
            }
            Bearer::Nobody | Bearer::Stranger if area.scope().is_some() => {
                ask_for_token(matches!(bearer, Bearer::Stranger), response);
                return None;
            }
            Bearer::Nobody | Bearer::Stranger => Grant { services: None, metrics: false, cors },
        };
        Some(grant)
    }
}

impl Policy {
    /// Whether the client may ask now. Writes what is left, or that it is too much.
    fn within_rates(
        &self,
        area: Area,
        client: impl FnOnce() -> Client,
        now: Moment,
        response: &mut Response,
    ) -> bool {
        let mut limits = self.rates.of(area).peekable();
        if limits.peek().is_none() {
            return true;
        }
        let client = client();
        let (mut policies, mut states) = (String::new(), String::new());
        let mut refused: Option<(&str, Rate, Taken)> = None;
        for (number, name, rate) in limits {
            let taken = self.limiter.take(number, rate, client, now);
            let comma = if policies.is_empty() { "" } else { ", " };
            write!(policies, "{comma}\"{name}\";q={};w=1", rate.count()).expect("a string takes all");
            write!(states, "{comma}\"{name}\";r={};t={}", taken.remaining, taken.wait_seconds())
                .expect("a string takes all");
            if !taken.allowed {
                refused = Some((name, rate, taken));
                break;
            }
        }
        response.header("RateLimit-Policy", policies);
        response.header("RateLimit", states);
        let Some((name, rate, taken)) = refused else { return true };
        let detail = format!("the limit {name:?} allows {} requests per second", rate.count());
        problem::answer_later(response, Kind::RateLimited, &detail, taken.wait_seconds());
        false
    }
}

/// Reads `Authorization: Bearer TOKEN`. Two of them are nobody's.
fn identify<'a>(headers: Headers<'_>, view: &'a mut TokenView) -> Bearer<'a> {
    let mut values = headers.all("Authorization");
    let Some(value) = values.next() else { return Bearer::Nobody };
    let token = value
        .split_at_checked(7)
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer ") && values.next().is_none())
        .map(|(_, token)| token.trim_ascii_start());
    token.and_then(|token| view.tokens().find(token)).map_or(Bearer::Stranger, Bearer::Known)
}

#[cold]
fn ask_for_token(stranger: bool, response: &mut Response) {
    let (challenge, detail) = if stranger {
        (r#"Bearer realm="aurore-events", error="invalid_token""#, "the token is not known here")
    } else {
        (r#"Bearer realm="aurore-events""#, "a token is required: Authorization: Bearer TOKEN")
    };
    response.header("WWW-Authenticate", challenge);
    problem::answer(response, Kind::Unauthorized, detail);
}

#[cold]
fn forbid_scope(scope: Scope, response: &mut Response) {
    let name = scope.name();
    response.header(
        "WWW-Authenticate",
        format_args!("Bearer realm=\"aurore-events\", error=\"insufficient_scope\", scope=\"{name}\""),
    );
    problem::answer(response, Kind::Forbidden, &format!("the token does not have the scope {name}"));
}

/// Whether a token for `services` is for this one.
pub fn holds(services: &[Box<str>], service: &str) -> bool {
    services.binary_search_by(|known| (**known).cmp(service)).is_ok()
}

/// Takes back the answer about a single event unless it is of these services: to others it is as if there were none.
/// What does not say its service, as the receipt of a dead event, is not shown either.
#[cold]
pub fn conceal(services: &[Box<str>], response: &mut Response) {
    if response.status != 200 {
        return;
    }
    let service = sonic_rs::get(response.body.as_slice(), &["service"]).ok();
    if !service.as_ref().and_then(|service| service.as_str()).is_some_and(|service| holds(services, service))
    {
        problem::answer(response, Kind::NotFound, "there is no event of this id");
    }
}

/// Writes that a token may not read `service`, or not all services at once.
#[cold]
pub fn forbid_service(service: Option<&str>, response: &mut Response) {
    let detail = match service {
        Some(service) => format!("the token may not read the service {service:?}"),
        None => "the token is for some services only: the query must name one of them".to_owned(),
    };
    let mut errors = Errors::default();
    errors.push(|| FieldError { index: None, field: "service".into(), detail: detail.clone() });
    problem::answer_forbidden(response, &detail, &errors);
}

#[cfg(test)]
mod tests;
