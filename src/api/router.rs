//! Which page a request asks for. The one place that knows the paths; it knows nothing of what answers them.

mod gateway;

use std::borrow::Cow;

use crate::console::Page;
use crate::gateway::pages::GatewayPage;
use crate::http::percent::decode;
use crate::http::{Method, Refusal};

/// A page of this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    PostEvents,
    ListEvents,
    /// With what stands for the id in the path, percent-decoded.
    GetEvent(Cow<'a, str>),
    Stats,
    Live,
    Ready,
    Health,
    HealthBuffer,
    HealthBusiness,
    HealthDatabase,
    HealthDetailed,
    Metrics,
    MetricsPrometheus,
    /// The metrics gateway's.
    Gateway(GatewayPage<'a>),
    /// For people.
    Console(Page),
    /// OPTIONS, with the methods of the path: 204 and `Allow`.
    Options(&'static str),
}

/// The pages as they stand in the documentation: a label of bounded range. The last is for what is no page.
pub const LABELS: [&str; 26] = [
    "/events",
    "/events/{event_id}",
    "/stats",
    "/live",
    "/ready",
    "/health",
    "/health/buffer",
    "/health/business",
    "/health/database",
    "/health/detailed",
    "/metrics",
    "/metrics/prometheus",
    gateway::LABELS[0],
    gateway::LABELS[1],
    gateway::LABELS[2],
    gateway::LABELS[3],
    gateway::LABELS[4],
    gateway::LABELS[5],
    gateway::LABELS[6],
    gateway::LABELS[7],
    "/",
    "/docs",
    "/openapi.json",
    "assets",
    "options",
    "other",
];
/// The place of the label for requests that no page answers.
pub const OTHER: usize = LABELS.len() - 1;

impl Route<'_> {
    /// The place of its label in [`LABELS`].
    pub fn index(&self) -> usize {
        match self {
            Self::PostEvents | Self::ListEvents => 0,
            Self::GetEvent(_) => 1,
            Self::Stats => 2,
            Self::Live => 3,
            Self::Ready => 4,
            Self::Health => 5,
            Self::HealthBuffer => 6,
            Self::HealthBusiness => 7,
            Self::HealthDatabase => 8,
            Self::HealthDetailed => 9,
            Self::Metrics => 10,
            Self::MetricsPrometheus => 11,
            Self::Gateway(page) => 12 + gateway::index(page),
            Self::Console(Page::Live) => 20,
            Self::Console(Page::Docs) => 21,
            Self::Console(Page::OpenApi) => 22,
            Self::Console(
                Page::LiveStyle | Page::LiveScript | Page::DocsStart | Page::DocsStyle | Page::DocsScript,
            ) => 23,
            Self::Options(_) => 24,
        }
    }
}

const NOT_FOUND: Refusal = Refusal::new(404, "there is nothing at this path");
const READ: &str = "GET, HEAD, OPTIONS";
const READ_AND_POST: &str = "GET, HEAD, POST, OPTIONS";

/// Finds the page. HEAD is routed as GET; the engine leaves the body out.
pub fn route(method: Method, path: &str) -> Result<Route<'_>, Refusal> {
    let page = match path {
        "/events" => return events(method),
        "/stats" => Route::Stats,
        "/live" => Route::Live,
        "/ready" => Route::Ready,
        "/health" => Route::Health,
        "/health/buffer" => Route::HealthBuffer,
        "/health/business" => Route::HealthBusiness,
        "/health/database" => Route::HealthDatabase,
        "/health/detailed" => Route::HealthDetailed,
        "/metrics" => Route::Metrics,
        "/metrics/prometheus" => Route::MetricsPrometheus,
        "/" => Route::Console(Page::Live),
        "/console/page.css" => Route::Console(Page::LiveStyle),
        "/console/page.js" => Route::Console(Page::LiveScript),
        "/docs" => Route::Console(Page::Docs),
        "/docs/start.js" => Route::Console(Page::DocsStart),
        "/docs/swagger-ui.css" => Route::Console(Page::DocsStyle),
        "/docs/swagger-ui-bundle.js" => Route::Console(Page::DocsScript),
        "/openapi.json" => Route::Console(Page::OpenApi),
        // The server as a whole.
        "*" => return Ok(Route::Options(READ_AND_POST)),
        _ => match path.strip_prefix("/events/") {
            Some(id) if !id.is_empty() && !id.contains('/') => Route::GetEvent(decode(id)?),
            Some(_) => return Err(NOT_FOUND),
            None => return gateway::route(method, path),
        },
    };
    match method {
        Method::Get | Method::Head => Ok(page),
        Method::Options => Ok(Route::Options(READ)),
        Method::Post | Method::Put | Method::Delete | Method::Patch | Method::Other => Err(not_allowed(READ)),
    }
}

fn events(method: Method) -> Result<Route<'static>, Refusal> {
    match method {
        Method::Post => Ok(Route::PostEvents),
        Method::Get | Method::Head => Ok(Route::ListEvents),
        Method::Options => Ok(Route::Options(READ_AND_POST)),
        Method::Put | Method::Delete | Method::Patch | Method::Other => Err(not_allowed(READ_AND_POST)),
    }
}

fn not_allowed(allow: &'static str) -> Refusal {
    Refusal { status: 405, detail: "this path does not know that method", allow }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: Method, path: &str, expected: &Result<Route<'_>, (u16, &str)>) {
        let found = route(method, path).map_err(|refusal| (refusal.status, refusal.allow));
        assert_eq!(&found, expected, "{method:?} {path}");
    }

    #[test]
    fn paths_and_methods_lead_to_pages_or_refusals() {
        use Method::{Delete, Get, Head, Options, Other, Post, Put};
        check(Post, "/events", &Ok(Route::PostEvents));
        check(Get, "/events", &Ok(Route::ListEvents));
        check(Head, "/events", &Ok(Route::ListEvents));
        check(Options, "/events", &Ok(Route::Options(READ_AND_POST)));
        check(Put, "/events", &Err((405, READ_AND_POST)));
        check(Get, "/events/abc", &Ok(Route::GetEvent("abc".into())));
        check(Get, "/events/a%2Db%20", &Ok(Route::GetEvent("a-b ".into())));
        check(Get, "/events/%ff", &Err((400, "")));
        check(Get, "/events/%2", &Err((400, "")));
        check(Get, "/events/%zz", &Err((400, "")));
        check(Post, "/events/abc", &Err((405, READ)));
        check(Get, "/events/", &Err((404, "")));
        check(Get, "/events/a/b", &Err((404, "")));
        check(Get, "/eventsx", &Err((404, "")));
        check(Get, "/", &Ok(Route::Console(Page::Live)));
        check(Head, "/docs", &Ok(Route::Console(Page::Docs)));
        check(Delete, "/live", &Err((405, READ)));
        check(Other, "/metrics", &Err((405, READ)));
        check(Other, "/nothing", &Err((404, "")));
        check(Options, "/nothing", &Err((404, "")));
        check(Options, "/health/database", &Ok(Route::Options(READ)));
        check(Options, "*", &Ok(Route::Options(READ_AND_POST)));
    }

    #[test]
    fn every_page_is_labelled_with_its_own_path() {
        for path in [
            "/events",
            "/stats",
            "/live",
            "/ready",
            "/health",
            "/health/buffer",
            "/health/business",
            "/health/database",
            "/health/detailed",
            "/metrics",
            "/metrics/prometheus",
            "/",
            "/docs",
            "/openapi.json",
        ] {
            assert_eq!(LABELS[route(Method::Get, path).unwrap().index()], path);
        }
        for path in ["/metrics/pushed", "/-/healthy", "/-/ready", "/api/v1/metrics", "/api/v1/status"] {
            assert_eq!(LABELS[route(Method::Get, path).unwrap().index()], path);
        }
        assert_eq!(LABELS[route(Method::Put, "/metrics/job/a").unwrap().index()], "/metrics/job/{job}");
        assert_eq!(LABELS[route(Method::Post, "/metrics/push").unwrap().index()], "/metrics/push");
        assert_eq!(LABELS[route(Method::Put, "/api/v1/admin/wipe").unwrap().index()], "/api/v1/admin/wipe");
        assert_eq!(LABELS[route(Method::Get, "/events/x").unwrap().index()], "/events/{event_id}");
        assert_eq!(LABELS[route(Method::Options, "*").unwrap().index()], "options");
        assert_eq!(LABELS[OTHER], "other");
    }
}
