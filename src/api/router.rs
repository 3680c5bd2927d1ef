//! The table of routes: path, methods, route class, metric label and operation of each, declared
//! once in [`ROUTES`]. It owns all paths of the server and must not depend on the handlers.

use std::borrow::Cow;
use std::sync::LazyLock;

use crate::access::RouteClass;
use crate::console::{self, ConsolePage};
use crate::dead_letters;
use crate::dead_letters::routes::DeadRoute;
use crate::gateway;
use crate::gateway::handlers::GatewayRoute;
use crate::health;
use crate::http::percent::{decode, normalize};
use crate::http::{Method, Refusal};
use crate::ingest::{self, InputPath};
use crate::metrics;
use crate::openapi;
use crate::query;

/// An operation of this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// Events, in one of the formats of the path.
    Post(InputPath),
    ListEvents,
    /// The events that are admitted from now on.
    TailEvents,
    /// With the id in the path, percent-decoded.
    GetEvent(Cow<'a, str>),
    Stats,
    /// An operation on dead letters.
    Dead(DeadRoute),
    Live,
    Ready,
    Health,
    HealthBuffer,
    HealthBusiness,
    HealthDatabase,
    HealthDetailed,
    Metrics,
    MetricsPrometheus,
    /// An operation of the metrics gateway.
    Gateway(GatewayRoute<'a>),
    /// The page for browsers, the API documentation, or one of its files.
    Console(ConsolePage),
    /// The `OpenAPI` document.
    OpenApi,
    /// A file of the page, with its path below `/console/`.
    ConsoleAsset(Cow<'a, str>),
    /// The health of the HTTP Event Collector of Splunk.
    SplunkHealth,
    /// OPTIONS, with the value of `Allow`; answered with 204, on the paths of Splunk with 200.
    Options(&'static str),
}

/// The request paths of a route.
#[derive(Clone, Copy, Debug)]
enum Pattern {
    Exact(&'static str),
    /// The prefix, and one non-empty segment after it, which is the parameter.
    Segment(&'static str),
    /// The prefix, and a non-empty rest, which is the parameter.
    Rest(&'static str),
    /// `/metrics/job/…` or `/metrics/job@base64/…`; the parameter is the grouping key from `job`
    /// on.
    GroupingKey,
}

impl Pattern {
    /// The parameter in `path`, still percent-encoded; empty for a pattern without one. None if
    /// `path` does not match.
    fn parameter(self, path: &str) -> Option<&str> {
        match self {
            Self::Exact(exact) => (path == exact).then_some(""),
            Self::Segment(prefix) => {
                path.strip_prefix(prefix).filter(|segment| !segment.is_empty() && !segment.contains('/'))
            }
            Self::Rest(prefix) => path.strip_prefix(prefix).filter(|rest| !rest.is_empty()),
            Self::GroupingKey => path.strip_prefix("/metrics/").filter(|key| {
                let job = key.strip_prefix("job/").or_else(|| key.strip_prefix("job@base64/"));
                job.is_some_and(|job| !job.is_empty())
            }),
        }
    }
}

/// One method of a path. HEAD is served by the operation of GET; the HTTP engine omits the body.
struct Operation {
    method: Method,
    class: RouteClass,
    /// In the `OpenAPI` document; none: not in it, as the files of a page.
    declared: Option<&'static openapi::Operation>,
    /// Makes the route of the path's parameter, percent-decoded.
    route: MakeRoute,
}

type MakeRoute = for<'a> fn(Cow<'a, str>) -> Route<'a>;

/// One path with its operations.
struct RouteSpec {
    pattern: Pattern,
    /// The path in the `OpenAPI` document and the value of the label `route` in the HTTP metrics.
    label: &'static str,
    operations: &'static [Operation],
}

const fn path(path: &'static str, operations: &'static [Operation]) -> RouteSpec {
    RouteSpec { pattern: Pattern::Exact(path), label: path, operations }
}

/// Files that a page of the console loads. All assets share a metric label, and the `OpenAPI` document
/// omits them.
const fn assets(pattern: Pattern, operations: &'static [Operation]) -> RouteSpec {
    RouteSpec { pattern, label: "assets", operations }
}

/// Another path of the operations of `label`.
const fn alias(path: &'static str, label: &'static str, operations: &'static [Operation]) -> RouteSpec {
    RouteSpec { pattern: Pattern::Exact(path), label, operations }
}

const fn get(class: RouteClass, declared: &'static openapi::Operation, route: MakeRoute) -> Operation {
    operation(Method::Get, class, declared, route)
}

const fn operation(
    method: Method,
    class: RouteClass,
    declared: &'static openapi::Operation,
    route: MakeRoute,
) -> Operation {
    Operation { method, class, declared: Some(declared), route }
}

const fn get_asset(route: MakeRoute) -> Operation {
    Operation { method: Method::Get, class: RouteClass::Public, declared: None, route }
}

/// The paths of Splunk's HTTP Event Collector begin so.
pub(super) const SPLUNK: &str = "/services/collector";
const SPLUNK_EVENT: &str = "/services/collector/event";
const SPLUNK_RAW: &str = "/services/collector/raw";
const SPLUNK_HEALTH: &str = "/services/collector/health";

/// Every route, the hottest first: paths are compared in this order.
#[expect(clippy::redundant_closure, reason = "a variant is not general over the lifetime of its parameter")]
const ROUTES: &[RouteSpec] = {
    use GatewayRoute as Gateway;
    use Method::{Delete, Post, Put};
    use RouteClass::{Admin, AdminQuery, Health, HealthDetails, Ingest, Metrics, Probe, Public, Query};
    &[
        path(
            "/events",
            &[
                operation(Post, Ingest, &ingest::openapi::POST_EVENTS, |_| Route::Post(InputPath::Events)),
                get(Query, &query::openapi::LIST_EVENTS, |_| Route::ListEvents),
            ],
        ),
        path("/events/tail", &[get(Query, &query::openapi::TAIL_EVENTS, |_| Route::TailEvents)]),
        RouteSpec {
            pattern: Pattern::Segment("/events/"),
            label: "/events/{event_id}",
            operations: &[get(Query, &query::openapi::GET_EVENT, |id| Route::GetEvent(id))],
        },
        path(
            "/loki/api/v1/push",
            &[operation(Post, Ingest, &ingest::openapi::LOKI_PUSH, |_| Route::Post(InputPath::LokiPush))],
        ),
        path(
            SPLUNK_EVENT,
            &[operation(Post, Ingest, &ingest::openapi::SPLUNK_EVENT, |_| {
                Route::Post(InputPath::SplunkEvent)
            })],
        ),
        alias(
            SPLUNK,
            SPLUNK_EVENT,
            &[operation(Post, Ingest, &ingest::openapi::SPLUNK_EVENT, |_| {
                Route::Post(InputPath::SplunkEvent)
            })],
        ),
        alias(
            "/services/collector/event/1.0",
            SPLUNK_EVENT,
            &[operation(Post, Ingest, &ingest::openapi::SPLUNK_EVENT, |_| {
                Route::Post(InputPath::SplunkEvent)
            })],
        ),
        path(
            SPLUNK_RAW,
            &[operation(Post, Ingest, &ingest::openapi::SPLUNK_RAW, |_| Route::Post(InputPath::SplunkRaw))],
        ),
        alias(
            "/services/collector/raw/1.0",
            SPLUNK_RAW,
            &[operation(Post, Ingest, &ingest::openapi::SPLUNK_RAW, |_| Route::Post(InputPath::SplunkRaw))],
        ),
        path(SPLUNK_HEALTH, &[get(Probe, &ingest::openapi::SPLUNK_HEALTH, |_| Route::SplunkHealth)]),
        alias(
            "/services/collector/health/1.0",
            SPLUNK_HEALTH,
            &[get(Probe, &ingest::openapi::SPLUNK_HEALTH, |_| Route::SplunkHealth)],
        ),
        path(
            "/v1/logs",
            &[operation(Post, Ingest, &ingest::openapi::OTLP_LOGS, |_| Route::Post(InputPath::OtlpLogs))],
        ),
        path("/stats", &[get(Query, &query::openapi::STATS_OPERATION, |_| Route::Stats)]),
        path(
            "/dead",
            &[
                get(AdminQuery, &dead_letters::openapi::LIST, |_| Route::Dead(DeadRoute::List)),
                operation(Delete, AdminQuery, &dead_letters::openapi::PURGE, |_| {
                    Route::Dead(DeadRoute::Purge)
                }),
            ],
        ),
        path(
            "/dead/replay",
            &[operation(Post, AdminQuery, &dead_letters::openapi::REPLAY, |_| {
                Route::Dead(DeadRoute::Replay)
            })],
        ),
        path("/live", &[get(Probe, &health::openapi::LIVE, |_| Route::Live)]),
        path("/ready", &[get(Probe, &health::openapi::READY, |_| Route::Ready)]),
        path("/health", &[get(Health, &health::openapi::HEALTH, |_| Route::Health)]),
        path("/health/buffer", &[get(HealthDetails, &health::openapi::BUFFER, |_| Route::HealthBuffer)]),
        path(
            "/health/business",
            &[get(HealthDetails, &health::openapi::BUSINESS, |_| Route::HealthBusiness)],
        ),
        path(
            "/health/database",
            &[get(HealthDetails, &health::openapi::DATABASE, |_| Route::HealthDatabase)],
        ),
        path(
            "/health/detailed",
            &[get(HealthDetails, &health::openapi::DETAILED_OPERATION, |_| Route::HealthDetailed)],
        ),
        path("/metrics", &[get(Metrics, &metrics::openapi::METRICS, |_| Route::Metrics)]),
        path(
            "/metrics/prometheus",
            &[get(Metrics, &metrics::openapi::PROMETHEUS, |_| Route::MetricsPrometheus)],
        ),
        path(
            "/metrics/push",
            &[operation(Post, Ingest, &gateway::openapi::PUSH, |_| Route::Gateway(Gateway::Push))],
        ),
        RouteSpec {
            pattern: Pattern::GroupingKey,
            label: "/metrics/job/{job}",
            operations: &[
                operation(Put, Ingest, &gateway::openapi::PUT_GROUP, |key| {
                    Route::Gateway(Gateway::Group(key))
                }),
                operation(Post, Ingest, &gateway::openapi::POST_GROUP, |key| {
                    Route::Gateway(Gateway::Group(key))
                }),
                operation(Delete, Ingest, &gateway::openapi::DELETE_GROUP, |key| {
                    Route::Gateway(Gateway::Group(key))
                }),
            ],
        },
        path(
            "/metrics/pushed",
            &[
                get(Metrics, &gateway::openapi::SCRAPE, |_| Route::Gateway(Gateway::Scrape)),
                operation(Delete, Admin, &gateway::openapi::DELETE_SERIES, |_| {
                    Route::Gateway(Gateway::DeleteSeries)
                }),
            ],
        ),
        path("/-/healthy", &[get(Probe, &gateway::openapi::HEALTHY, |_| Route::Gateway(Gateway::Healthy))]),
        path("/-/ready", &[get(Probe, &gateway::openapi::READY, |_| Route::Gateway(Gateway::Ready))]),
        path(
            "/api/v1/metrics",
            &[get(Metrics, &gateway::openapi::GROUPS, |_| Route::Gateway(Gateway::Groups))],
        ),
        path(
            "/api/v1/status",
            &[get(Metrics, &gateway::openapi::STATUS, |_| Route::Gateway(Gateway::Status))],
        ),
        path(
            "/api/v1/groups",
            &[operation(Delete, Admin, &gateway::openapi::DELETE_GROUPS, |_| {
                Route::Gateway(Gateway::DeleteGroups)
            })],
        ),
        path(
            "/api/v1/admin/wipe",
            &[operation(Put, Admin, &gateway::openapi::WIPE, |_| Route::Gateway(Gateway::Wipe))],
        ),
        path("/", &[get(Public, &console::openapi::PAGE, |_| Route::Console(ConsolePage::Page))]),
        path("/docs", &[get(Public, &console::openapi::DOCS, |_| Route::Console(ConsolePage::Docs))]),
        path("/openapi.json", &[get(Public, &console::openapi::OPENAPI, |_| Route::OpenApi)]),
        assets(Pattern::Rest("/console/"), &[get_asset(|path| Route::ConsoleAsset(path))]),
        assets(Pattern::Exact("/docs/start.js"), &[get_asset(|_| Route::Console(ConsolePage::DocsStart))]),
        assets(
            Pattern::Exact("/docs/swagger-ui.css"),
            &[get_asset(|_| Route::Console(ConsolePage::DocsStyle))],
        ),
        assets(
            Pattern::Exact("/docs/swagger-ui-bundle.js"),
            &[get_asset(|_| Route::Console(ConsolePage::DocsScript))],
        ),
    ]
};

/// Index of the label of OPTIONS requests in [`LABELS`].
const OPTIONS: usize = ROUTES.len();
/// Index in [`LABELS`] of requests without a route.
pub const OTHER: usize = ROUTES.len() + 1;

/// Values of the label `route` in the HTTP metrics, a bounded set. A label that several routes share
/// is counted at its first index only.
pub const LABELS: [&str; ROUTES.len() + 2] = {
    let mut labels = ["options"; ROUTES.len() + 2];
    let mut nth = 0;
    while nth < ROUTES.len() {
        labels[nth] = ROUTES[nth].label;
        nth += 1;
    }
    labels[OTHER] = "other";
    labels
};

/// For each route, the first index of its label. A constant, since every request reads it.
const LABEL_INDEX: [usize; ROUTES.len()] = {
    let mut index = [0; ROUTES.len()];
    let mut nth = 0;
    while nth < ROUTES.len() {
        while !is_equal(ROUTES[index[nth]].label, ROUTES[nth].label) {
            index[nth] += 1;
        }
        nth += 1;
    }
    index
};

/// `==` of strings is not available in constants.
const fn is_equal(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

/// For each route, the value of `Allow`. Only OPTIONS and refusals read it.
static ALLOW: LazyLock<Vec<String>> = LazyLock::new(|| ROUTES.iter().map(RouteSpec::allow).collect());

impl RouteSpec {
    fn allow(&self) -> String {
        let mut methods = Vec::new();
        for method in [Method::Get, Method::Put, Method::Post, Method::Delete] {
            if self.operations.iter().any(|operation| operation.method == method) {
                methods.push(method.name());
                if method == Method::Get {
                    methods.push(Method::Head.name());
                }
            }
        }
        methods.push(Method::Options.name());
        methods.join(", ")
    }
}

/// A request's route with what the table declares for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchedRoute<'a> {
    pub route: Route<'a>,
    pub class: RouteClass,
    /// Index of its label in [`LABELS`].
    pub label: usize,
}

/// The index in [`ROUTES`] of the first pattern that matches `path`, with the parameter.
fn find(path: &str) -> Option<(usize, &str)> {
    ROUTES.iter().enumerate().find_map(|(nth, spec)| Some((nth, spec.pattern.parameter(path)?)))
}

/// Finds the route.
///
/// # Errors
/// 404 for an unknown path, 405 with `Allow` for a method without an operation, 400 for an invalid
/// percent-encoding.
pub fn route(method: Method, path: &str) -> Result<MatchedRoute<'_>, Refusal> {
    const NOT_FOUND: Refusal = Refusal::new(404, "there is nothing at this path");
    let options =
        |allow| Ok(MatchedRoute { route: Route::Options(allow), class: RouteClass::Public, label: OPTIONS });
    // The server as a whole (RFC 9112, 3.2.4): the methods of its main resource.
    if path == "*" {
        return options(ALLOW[0].as_str());
    }
    let (nth, parameter) = match find(path) {
        // An exact path has no escapes.
        Some((nth, "")) => (nth, Cow::Borrowed("")),
        found if !path.contains('%') => {
            let (nth, parameter) = found.ok_or(NOT_FOUND)?;
            (nth, Cow::Borrowed(parameter))
        }
        _ => {
            let normalized = normalize(path);
            let (nth, parameter) = find(&normalized).ok_or(NOT_FOUND)?;
            (nth, Cow::Owned(decode(parameter)?.into_owned()))
        }
    };
    let served = if method == Method::Head { Method::Get } else { method };
    let operation = ROUTES[nth].operations.iter().find(|operation| operation.method == served);
    match operation {
        Some(operation) => Ok(MatchedRoute {
            route: (operation.route)(parameter),
            class: operation.class,
            label: LABEL_INDEX[nth],
        }),
        None if method == Method::Options => options(ALLOW[nth].as_str()),
        None => Err(Refusal {
            status: 405,
            detail: "this path does not support the method",
            allow: ALLOW[nth].as_str(),
        }),
    }
}

/// What the `OpenAPI` document describes, in the order of the table. A path that others are aliases of
/// is described once.
pub fn declared_operations()
-> impl Iterator<Item = (&'static str, Method, RouteClass, &'static openapi::Operation)> {
    let described = ROUTES.iter().enumerate().filter(|(nth, _)| LABEL_INDEX[*nth] == *nth);
    described.flat_map(|(_, spec)| {
        spec.operations.iter().filter_map(|operation| {
            Some((spec.label, operation.method, operation.class, operation.declared?))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: &str = "GET, HEAD, OPTIONS";
    const READ_AND_POST: &str = "GET, HEAD, POST, OPTIONS";
    const CHANGE: &str = "PUT, POST, DELETE, OPTIONS";

    #[track_caller]
    fn check(method: Method, path: &str, expected: &Result<Route<'_>, (u16, &str)>) {
        let found = route(method, path).map(|matched| matched.route);
        let found = found.map_err(|refusal| (refusal.status, refusal.allow));
        assert_eq!(&found, expected, "{method:?} {path}");
    }

    #[test]
    fn paths_and_methods_lead_to_routes_or_refusals() {
        use Method::{Delete, Get, Head, Options, Other, Post, Put};
        check(Post, "/events", &Ok(Route::Post(InputPath::Events)));
        check(Get, "/events", &Ok(Route::ListEvents));
        check(Head, "/events", &Ok(Route::ListEvents));
        check(Options, "/events", &Ok(Route::Options(READ_AND_POST)));
        check(Put, "/events", &Err((405, READ_AND_POST)));
        check(Get, "/events/abc", &Ok(Route::GetEvent("abc".into())));
        check(Get, "/events/tail", &Ok(Route::TailEvents));
        check(Get, "/events/a%2Db%20", &Ok(Route::GetEvent("a-b ".into())));
        check(Post, "/%65vents", &Ok(Route::Post(InputPath::Events)));
        check(Get, "/events%2Fabc", &Err((404, "")));
        check(Get, "/%65vents/a%2fb", &Ok(Route::GetEvent("a/b".into())));
        check(Get, "/health/%64atabase", &Ok(Route::HealthDatabase));
        check(Get, "/%2565vents", &Err((404, "")));
        check(Get, "/events/%ff", &Err((400, "")));
        check(Get, "/events/%2", &Err((400, "")));
        check(Get, "/events/%zz", &Err((400, "")));
        check(Post, "/events/abc", &Err((405, READ)));
        check(Get, "/events/", &Err((404, "")));
        check(Get, "/events/a/b", &Err((404, "")));
        check(Get, "/eventsx", &Err((404, "")));
        check(Head, "/dead", &Ok(Route::Dead(DeadRoute::List)));
        check(Delete, "/dead", &Ok(Route::Dead(DeadRoute::Purge)));
        check(Post, "/dead/replay", &Ok(Route::Dead(DeadRoute::Replay)));
        check(Get, "/dead/replay", &Err((405, "POST, OPTIONS")));
        check(Get, "/", &Ok(Route::Console(ConsolePage::Page)));
        check(Get, "/console/1a2b/page.js", &Ok(Route::ConsoleAsset("1a2b/page.js".into())));
        check(Get, "/console/", &Err((404, "")));
        check(Head, "/docs", &Ok(Route::Console(ConsolePage::Docs)));
        check(Delete, "/live", &Err((405, READ)));
        check(Other, "/metrics", &Err((405, READ)));
        check(Other, "/nothing", &Err((404, "")));
        check(Options, "/nothing", &Err((404, "")));
        check(Options, "/health/database", &Ok(Route::Options(READ)));
        check(Options, "*", &Ok(Route::Options(READ_AND_POST)));
    }

    #[test]
    fn paths_of_other_formats_lead_to_their_inputs() {
        use Method::{Get, Post};
        check(Post, "/loki/api/v1/push", &Ok(Route::Post(InputPath::LokiPush)));
        for path in ["", "/event", "/event/1.0"] {
            check(Post, &format!("/services/collector{path}"), &Ok(Route::Post(InputPath::SplunkEvent)));
        }
        check(Post, "/services/collector/raw", &Ok(Route::Post(InputPath::SplunkRaw)));
        check(Get, "/services/collector/health", &Ok(Route::SplunkHealth));
        check(Get, "/services/collector/event", &Err((405, "POST, OPTIONS")));
        check(Post, "/services/collector/ack", &Err((404, "")));
        let label = |path| LABELS[route(Post, path).unwrap().label];
        assert_eq!(label("/services/collector"), label("/services/collector/event"));
    }

    #[test]
    fn gateway_paths_lead_to_its_routes_or_refusals() {
        use Method::{Delete, Get, Head, Options, Patch, Post, Put};
        let group = |key: &'static str| Ok(Route::Gateway(GatewayRoute::Group(key.into())));
        check(Post, "/metrics/push", &Ok(Route::Gateway(GatewayRoute::Push)));
        check(Get, "/metrics/push", &Err((405, "POST, OPTIONS")));
        check(Put, "/metrics/job/a", &group("job/a"));
        check(Post, "/metrics/job/a/b/c", &group("job/a/b/c"));
        check(Delete, "/metrics/job@base64/YQ", &group("job@base64/YQ"));
        check(Put, "/metrics/job/a%2Fb", &group("job/a/b"));
        check(Put, "/metrics/%6Ab/a", &Err((404, "")));
        check(Put, "/metrics/j%6Fb/%61/%62/c", &group("job/a/b/c"));
        check(Post, "/%6Detrics/%70ush", &Ok(Route::Gateway(GatewayRoute::Push)));
        check(Get, "/metrics/job/a", &Err((405, CHANGE)));
        check(Options, "/metrics/job/a", &Ok(Route::Options(CHANGE)));
        check(Put, "/metrics/job/", &Err((404, "")));
        check(Put, "/metrics/job", &Err((404, "")));
        check(Put, "/metrics/other/a", &Err((404, "")));
        check(Head, "/metrics/pushed", &Ok(Route::Gateway(GatewayRoute::Scrape)));
        check(Delete, "/metrics/pushed", &Ok(Route::Gateway(GatewayRoute::DeleteSeries)));
        check(Patch, "/metrics/pushed", &Err((405, "GET, HEAD, DELETE, OPTIONS")));
        check(Put, "/api/v1/admin/wipe", &Ok(Route::Gateway(GatewayRoute::Wipe)));
        check(Post, "/api/v1/admin/wipe", &Err((405, "PUT, OPTIONS")));
        check(Get, "/-/ready", &Ok(Route::Gateway(GatewayRoute::Ready)));
    }

    #[test]
    fn every_operation_has_the_class_that_this_list_gives_it() {
        const EXPECTED: &[&str] = &[
            "POST /events Ingest",
            "GET /events Query",
            "GET /events/tail Query",
            "GET /events/{event_id} Query",
            "POST /loki/api/v1/push Ingest",
            "POST /services/collector/event Ingest",
            "POST /services/collector/event Ingest",
            "POST /services/collector/event Ingest",
            "POST /services/collector/raw Ingest",
            "POST /services/collector/raw Ingest",
            "GET /services/collector/health Probe",
            "GET /services/collector/health Probe",
            "POST /v1/logs Ingest",
            "GET /stats Query",
            "GET /dead AdminQuery",
            "DELETE /dead AdminQuery",
            "POST /dead/replay AdminQuery",
            "GET /live Probe",
            "GET /ready Probe",
            "GET /health Health",
            "GET /health/buffer HealthDetails",
            "GET /health/business HealthDetails",
            "GET /health/database HealthDetails",
            "GET /health/detailed HealthDetails",
            "GET /metrics Metrics",
            "GET /metrics/prometheus Metrics",
            "POST /metrics/push Ingest",
            "PUT /metrics/job/{job} Ingest",
            "POST /metrics/job/{job} Ingest",
            "DELETE /metrics/job/{job} Ingest",
            "GET /metrics/pushed Metrics",
            "DELETE /metrics/pushed Admin",
            "GET /-/healthy Probe",
            "GET /-/ready Probe",
            "GET /api/v1/metrics Metrics",
            "GET /api/v1/status Metrics",
            "DELETE /api/v1/groups Admin",
            "PUT /api/v1/admin/wipe Admin",
            "GET / Public",
            "GET /docs Public",
            "GET /openapi.json Public",
        ];
        let of_spec = |spec: &RouteSpec| {
            let line = |operation: &Operation| {
                format!("{} {} {:?}", operation.method.name(), spec.label, operation.class)
            };
            spec.operations.iter().map(line).collect::<Vec<_>>()
        };
        let found: Vec<String> = ROUTES.iter().flat_map(of_spec).collect();
        let (described, assets) = found.split_at(EXPECTED.len().min(found.len()));
        assert_eq!(described, EXPECTED);
        assert!(assets.iter().all(|line| line == "GET assets Public"), "{assets:?}");
    }

    #[test]
    fn a_route_has_the_label_and_class_of_its_row() {
        #[track_caller]
        fn check(method: Method, path: &str, label: &str, class: RouteClass) {
            let matched = route(method, path).unwrap();
            assert_eq!((LABELS[matched.label], matched.class), (label, class), "{method:?} {path}");
        }
        check(Method::Post, "/events", "/events", RouteClass::Ingest);
        check(Method::Get, "/events", "/events", RouteClass::Query);
        check(Method::Get, "/events/x", "/events/{event_id}", RouteClass::Query);
        check(Method::Get, "/stats", "/stats", RouteClass::Query);
        check(Method::Get, "/ready", "/ready", RouteClass::Probe);
        check(Method::Get, "/health", "/health", RouteClass::Health);
        check(Method::Get, "/health/detailed", "/health/detailed", RouteClass::HealthDetails);
        check(Method::Get, "/metrics/prometheus", "/metrics/prometheus", RouteClass::Metrics);
        check(Method::Put, "/metrics/job/a", "/metrics/job/{job}", RouteClass::Ingest);
        check(Method::Delete, "/metrics/pushed", "/metrics/pushed", RouteClass::Admin);
        check(Method::Put, "/api/v1/admin/wipe", "/api/v1/admin/wipe", RouteClass::Admin);
        check(Method::Get, "/docs/start.js", "assets", RouteClass::Public);
        check(Method::Get, "/console/1a2b/page.css", "assets", RouteClass::Public);
        check(Method::Options, "*", "options", RouteClass::Public);
        assert_eq!(LABELS[OTHER], "other");
        let (css, js) = (route(Method::Get, "/console/1a2b/page.css"), route(Method::Get, "/docs/start.js"));
        assert_eq!(css.unwrap().label, js.unwrap().label, "a label is counted once");
    }
}
