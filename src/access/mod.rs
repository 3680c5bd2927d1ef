//! Authorization, rate limits, trusted proxies and CORS. It sits between `http` and `api`: its
//! inputs are headers, the peer address and the [`RouteClass`]; it must not depend on events or
//! storage.
//!
//! With no policy configured, the cost per request is one array look-up.

pub mod browser;
pub mod cors;
pub mod limiter;
pub mod proxy;
pub mod tokens;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

pub use cors::Origins;
pub use limiter::{Limiter, Rate};
pub use proxy::Proxies;
pub use tokens::{NewToken, Scope, Services, TokenFile};

use crate::clock::Moment;
use crate::http::problem::{self, FieldError, FieldErrors, ProblemKind};
use crate::http::{Headers, Request, Response};
use browser::{BrowserFields, is_loopback_host};
use limiter::{ClientKey, RateDecision};
use tokens::{Token, TokenView};

/// The access class of a route: it determines the required scope and the rate limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteClass {
    /// Liveness and readiness. Needs no token and has no rate limit, since a supervisor must not be
    /// refused because of other clients' load and should need no secret.
    Probe,
    /// Pages that need no token, and requests without a route.
    Public,
    /// `/health`: the status alone, or with its checks for the scope `metrics`.
    Health,
    HealthDetails,
    Ingest,
    Query,
    Metrics,
    /// Operations that delete pushed metrics.
    Admin,
    /// Operations on dead letters: for administrators, with the rate limit of queries.
    AdminQuery,
}

impl RouteClass {
    const ALL: [Self; 9] = [
        Self::Probe,
        Self::Public,
        Self::Health,
        Self::HealthDetails,
        Self::Ingest,
        Self::Query,
        Self::Metrics,
        Self::Admin,
        Self::AdminQuery,
    ];

    /// The scope that a token must have, if the class needs a token.
    fn scope(self) -> Option<Scope> {
        match self {
            Self::Probe | Self::Public | Self::Health => None,
            Self::HealthDetails | Self::Metrics => Some(Scope::Metrics),
            Self::Ingest => Some(Scope::Ingest),
            Self::Query => Some(Scope::Query),
            Self::Admin | Self::AdminQuery => Some(Scope::Admin),
        }
    }
}

/// Rate limits per client; none: unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// On every class but [`RouteClass::Probe`].
    pub global: Option<Rate>,
    pub query: Option<Rate>,
    pub health: Option<Rate>,
}

impl RateLimits {
    /// The limits of a class, each with its number in the limiter's table and its name in the
    /// response headers.
    fn for_class(self, class: RouteClass) -> impl Iterator<Item = (u8, &'static str, Rate)> {
        let own = match class {
            RouteClass::Probe
            | RouteClass::Public
            | RouteClass::Ingest
            | RouteClass::Metrics
            | RouteClass::Admin => None,
            RouteClass::Health | RouteClass::HealthDetails => self.health.map(|rate| (1, "health", rate)),
            RouteClass::Query | RouteClass::AdminQuery => self.query.map(|rate| (2, "query", rate)),
        };
        let global = self.global.filter(|_| class != RouteClass::Probe).map(|rate| (0, "global", rate));
        global.into_iter().chain(own)
    }
}

/// The access policy, shared by all acceptors.
#[derive(Debug)]
pub struct Policy {
    pub tokens: Option<Arc<TokenFile>>,
    pub rates: RateLimits,
    pub limiter: Limiter,
    pub proxies: Proxies,
    pub origins: Origins,
    /// Whether `Host` must name this machine: the server listens on a loopback address and needs no
    /// token.
    pub loopback_only: bool,
}

/// The permissions of an authorized request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The services whose events the request may write and read; none: all.
    pub services: Option<Services>,
    /// The identity of the token, if the request has one.
    pub token: Option<u64>,
    /// Whether the request may read metrics.
    pub metrics: bool,
    /// Whether the request may do the work of an administrator.
    pub admin: bool,
    /// Whether the request's origin may read the response (CORS).
    pub cors: bool,
}

impl Grant {
    const ALL: Self = Self { services: None, token: None, metrics: true, admin: true, cors: false };
}

/// Applies the access policy to the requests of one acceptor.
#[derive(Debug)]
pub struct Gate {
    policy: Arc<Policy>,
    tokens: Option<TokenView>,
    /// By class: no rule applies, so requests need no check.
    unrestricted: [bool; RouteClass::ALL.len()],
    /// The last `Host` of this machine. Clients of one acceptor mostly send the same.
    known_host: Vec<u8>,
}

/// The credentials of a request.
enum Credentials<'a> {
    /// No tokens are configured.
    NotRequired,
    Missing,
    /// `Authorization` is present and holds no valid token.
    InvalidToken,
    Valid(&'a Token),
}

impl Gate {
    pub fn new(policy: Arc<Policy>) -> Self {
        let tokens = policy.tokens.as_ref().map(TokenFile::view);
        let unrestricted = RouteClass::ALL.map(|class| {
            let needs_token = tokens.is_some() && (class.scope().is_some() || class == RouteClass::Health);
            !needs_token && policy.origins.is_none() && policy.rates.for_class(class).next().is_none()
        });
        Self { policy, tokens, unrestricted, known_host: Vec::new() }
    }

    /// Authorizes a request, or writes a refusal and returns none. The headers that it adds to the
    /// response (CORS, rate limits) belong to every response to the request.
    #[inline]
    pub fn authorize(
        &mut self,
        class: RouteClass,
        request: &Request<'_>,
        now: Moment,
        response: &mut Response,
    ) -> Option<Grant> {
        if !self.check_browser(class, request, response) {
            return None;
        }
        if self.unrestricted[class as usize] {
            return Some(Grant::ALL);
        }
        self.authorize_checked(class, request, now, response)
    }

    /// Refuses a request that a page of another site makes a browser send.
    fn check_browser(&mut self, class: RouteClass, request: &Request<'_>, response: &mut Response) -> bool {
        let fields = BrowserFields::read(request.headers);
        if self.policy.loopback_only
            && class != RouteClass::Probe
            && let Some(host) = fields.host().filter(|host| *host != self.known_host)
        {
            // A trusted proxy passes on the host name that its clients know. `CORS_ORIGINS=*`
            // allows every page anyway.
            if is_loopback_host(host) {
                self.known_host.clear();
                self.known_host.extend_from_slice(host);
            } else if !self.policy.origins.allows_any()
                && !self.policy.proxies.trusts(request.peer.to_canonical())
            {
                refuse_host(response);
                return false;
            }
        }
        if fields.is_cross_origin_change(request.method, &self.policy.origins) {
            refuse_origin(response);
            return false;
        }
        true
    }

    /// The requests of one client that are allowed per minute, if there is a limit.
    pub fn requests_per_minute(&self) -> Option<u64> {
        self.policy.rates.global.map(|rate| u64::from(rate.count()) * 60)
    }

    /// Adds the CORS headers to a response that the HTTP engine writes without a handler.
    pub fn apply_cors(&self, headers: Headers<'_>, response: &mut Response) {
        self.policy.origins.apply_cors(headers, response);
    }

    fn authorize_checked(
        &mut self,
        class: RouteClass,
        request: &Request<'_>,
        now: Moment,
        response: &mut Response,
    ) -> Option<Grant> {
        let Self { policy, tokens, .. } = self;
        let headers = request.headers;
        let cors = policy.origins.apply_cors(headers, response);
        let credentials = match tokens {
            Some(view) => identify(headers, view),
            None => Credentials::NotRequired,
        };
        if class == RouteClass::Health && !matches!(credentials, Credentials::NotRequired) {
            // The other classes refuse a request without a token, and a shared cache reuses no
            // response to a request with one (RFC 9111, 3.5).
            response.vary("Authorization");
        }
        // A valid token is one client at all addresses. Requests without one share the limit of
        // their address, which bounds the rate of guesses.
        let client = || match &credentials {
            Credentials::Valid(token) => ClientKey::Token(token.identity()),
            Credentials::NotRequired | Credentials::Missing | Credentials::InvalidToken => {
                ClientKey::from_address(policy.proxies.client(request.peer, headers))
            }
        };
        if !policy.check_rate_limits(class, client, now, response) {
            return None;
        }
        let grant = match &credentials {
            Credentials::NotRequired => Grant { cors, ..Grant::ALL },
            Credentials::Valid(token) => {
                if let Some(scope) = class.scope().filter(|scope| !token.scopes.allow(*scope)) {
                    forbid_scope(scope, response);
                    return None;
                }
                Grant {
                    services: token.services.clone(),
                    token: Some(token.identity()),
                    metrics: token.scopes.allow(Scope::Metrics),
                    admin: token.scopes.allow(Scope::Admin),
                    cors,
                }
            }
            Credentials::Missing | Credentials::InvalidToken if class.scope().is_some() => {
                require_token(matches!(credentials, Credentials::InvalidToken), response);
                return None;
            }
            Credentials::Missing | Credentials::InvalidToken => {
                Grant { services: None, token: None, metrics: false, admin: false, cors }
            }
        };
        Some(grant)
    }
}

impl Policy {
    /// Whether all limits of the class allow the request. Writes the `RateLimit` headers, and 429
    /// if one is exceeded.
    fn check_rate_limits(
        &self,
        class: RouteClass,
        client: impl FnOnce() -> ClientKey,
        now: Moment,
        response: &mut Response,
    ) -> bool {
        let mut limits = self.rates.for_class(class).peekable();
        if limits.peek().is_none() {
            return true;
        }
        let client = client();
        let (mut policies, mut states) = (String::new(), String::new());
        let mut exceeded: Option<(&str, Rate, RateDecision)> = None;
        for (number, name, rate) in limits {
            let decision = self.limiter.take(number, rate, client, now);
            let comma = if policies.is_empty() { "" } else { ", " };
            write!(policies, "{comma}\"{name}\";q={};w=1", rate.count()).expect("a string takes all");
            write!(states, "{comma}\"{name}\";r={};t={}", decision.remaining, decision.wait_seconds())
                .expect("a string takes all");
            if !decision.allowed {
                exceeded = Some((name, rate, decision));
                break;
            }
        }
        response.header("RateLimit-Policy", policies);
        response.header("RateLimit", states);
        let Some((name, rate, decision)) = exceeded else { return true };
        let detail = format!("the limit {name:?} allows {} requests per second", rate.count());
        problem::write_retryable(response, ProblemKind::RateLimited, &detail, decision.wait_seconds());
        false
    }
}

/// Reads the token of `Authorization`: `Bearer TOKEN`, `Splunk TOKEN`, or `Basic` with the token as
/// the password of any user. A repeated header is invalid.
fn identify<'a>(headers: Headers<'_>, view: &'a mut TokenView) -> Credentials<'a> {
    let mut values = headers.all("Authorization");
    let Some(value) = values.next() else { return Credentials::Missing };
    let token = value.split_at_checked(7).filter(|_| values.next().is_none()).and_then(|(scheme, token)| {
        if scheme.eq_ignore_ascii_case(b"Bearer ") || scheme.eq_ignore_ascii_case(b"Splunk ") {
            return Some(Cow::Borrowed(token.trim_ascii_start()));
        }
        basic_password(value).map(Cow::Owned)
    });
    token.and_then(|token| view.tokens().find(&token)).map_or(Credentials::InvalidToken, Credentials::Valid)
}

/// The password of `Basic` credentials (RFC 7617). A name has no colon.
#[cold]
fn basic_password(value: &[u8]) -> Option<Vec<u8>> {
    let (scheme, encoded) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"Basic ") {
        return None;
    }
    let mut decoded = STANDARD.decode(encoded.trim_ascii()).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    Some(decoded.split_off(colon + 1))
}

#[cold]
fn refuse_host(response: &mut Response) {
    let detail = "without tokens, a server on a loopback address answers requests for localhost and loopback \
                  addresses only; a proxy with another host name must be listed in TRUSTED_PROXIES";
    problem::write(response, ProblemKind::Misdirected, detail);
}

#[cold]
fn refuse_origin(response: &mut Response) {
    let detail = "the request comes from a web page whose origin is not in CORS_ORIGINS";
    response.vary("Origin");
    problem::write(response, ProblemKind::ForeignOrigin, detail);
}

#[cold]
fn require_token(invalid: bool, response: &mut Response) {
    let (challenge, detail) = if invalid {
        (r#"Bearer realm="aurore-events", error="invalid_token""#, "the token is not valid")
    } else {
        (r#"Bearer realm="aurore-events""#, "a token is required: Authorization: Bearer TOKEN")
    };
    response.header("WWW-Authenticate", challenge);
    problem::write(response, ProblemKind::Unauthorized, detail);
}

#[cold]
fn forbid_scope(scope: Scope, response: &mut Response) {
    let name = scope.name();
    response.header(
        "WWW-Authenticate",
        format_args!("Bearer realm=\"aurore-events\", error=\"insufficient_scope\", scope=\"{name}\""),
    );
    problem::write(response, ProblemKind::Forbidden, &format!("the token does not have the scope {name}"));
}

/// Whether the sorted list `services` has `service`.
pub fn allows_service(services: &[Box<str>], service: &str) -> bool {
    services.binary_search_by(|known| (**known).cmp(service)).is_ok()
}

/// Writes 403: the token may not read `service`, or the query names no service and the token is
/// restricted to some. The member `services` lists those that it may read.
#[cold]
pub fn forbid_service(service: Option<&str>, readable: &[Box<str>], response: &mut Response) {
    let detail = match service {
        Some(service) => format!("the token may not read the service {service:?}"),
        None => "the token is restricted to services: the query must name one of them".to_owned(),
    };
    let mut errors = FieldErrors::default();
    errors.push(|| FieldError { index: None, field: "service".into(), detail: detail.clone() });
    problem::write_forbidden(response, &detail, &errors);
    problem::add_list(response, "services", readable);
}

#[cfg(test)]
mod tests;
