//! The paths of the metrics gateway, Pushgateway's among them.

use super::{NOT_FOUND, READ, Route, not_allowed};
use crate::gateway::pages::GatewayPage;
use crate::http::percent::decode;
use crate::http::{Method, Refusal};

/// Their labels, in the order of the pages.
pub(super) const LABELS: [&str; 8] = [
    "/metrics/push",
    "/metrics/job/{job}",
    "/metrics/pushed",
    "/-/healthy",
    "/-/ready",
    "/api/v1/metrics",
    "/api/v1/status",
    "/api/v1/admin/wipe",
];

/// The place of a page's label in [`LABELS`].
pub(super) fn index(page: &GatewayPage<'_>) -> usize {
    match page {
        GatewayPage::Push => 0,
        GatewayPage::Group(_) => 1,
        GatewayPage::Pushed | GatewayPage::Remove => 2,
        GatewayPage::Healthy => 3,
        GatewayPage::Ready => 4,
        GatewayPage::Groups => 5,
        GatewayPage::Status => 6,
        GatewayPage::Wipe => 7,
    }
}

const POST: &str = "POST, OPTIONS";
const PUT: &str = "PUT, OPTIONS";
const CHANGE: &str = "PUT, POST, DELETE, OPTIONS";
const READ_AND_DELETE: &str = "GET, HEAD, DELETE, OPTIONS";

/// The page of the gateway at a path, if it has one there.
pub(super) fn route(method: Method, path: &str) -> Result<Route<'_>, Refusal> {
    use Method::{Delete, Get, Head, Post, Put};
    let read = |page| (matches!(method, Get | Head), page, READ);
    let (allowed, page, allow) = match path {
        "/metrics/push" => (method == Post, GatewayPage::Push, POST),
        "/metrics/pushed" if method == Delete => (true, GatewayPage::Remove, READ_AND_DELETE),
        "/metrics/pushed" => (matches!(method, Get | Head), GatewayPage::Pushed, READ_AND_DELETE),
        "/-/healthy" => read(GatewayPage::Healthy),
        "/-/ready" => read(GatewayPage::Ready),
        "/api/v1/metrics" => read(GatewayPage::Groups),
        "/api/v1/status" => read(GatewayPage::Status),
        "/api/v1/admin/wipe" => (method == Put, GatewayPage::Wipe, PUT),
        _ => {
            let group = path.strip_prefix("/metrics/").filter(|group| {
                let job = group.strip_prefix("job/").or_else(|| group.strip_prefix("job@base64/"));
                job.is_some_and(|job| !job.is_empty())
            });
            let group = group.ok_or(NOT_FOUND)?;
            (matches!(method, Put | Post | Delete), GatewayPage::Group(decode(group)?), CHANGE)
        }
    };
    match method {
        _ if allowed => Ok(Route::Gateway(page)),
        Method::Options => Ok(Route::Options(allow)),
        Get | Head | Post | Put | Delete | Method::Patch | Method::Other => Err(not_allowed(allow)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: Method, path: &str, expected: Result<GatewayPage<'_>, u16>) {
        let found = super::super::route(method, path).map_err(|refusal| refusal.status);
        assert_eq!(found, expected.map(Route::Gateway), "{method:?} {path}");
    }

    #[test]
    fn paths_of_pushgateway_and_our_own_lead_to_pages() {
        use Method::{Delete, Get, Options, Post, Put};
        check(Post, "/metrics/push", Ok(GatewayPage::Push));
        check(Get, "/metrics/push", Err(405));
        check(Put, "/metrics/job/a%20b/c/d", Ok(GatewayPage::Group("job/a b/c/d".into())));
        check(Delete, "/metrics/job@base64/YQ", Ok(GatewayPage::Group("job@base64/YQ".into())));
        check(Post, "/metrics/job/a/", Ok(GatewayPage::Group("job/a/".into())));
        check(Get, "/metrics/job/a", Err(405));
        check(Put, "/metrics/job/", Err(404));
        check(Put, "/metrics/job", Err(404));
        check(Put, "/metrics/jobs/a", Err(404));
        check(Put, "/metrics/job/%zz", Err(400));
        check(Get, "/metrics/pushed", Ok(GatewayPage::Pushed));
        check(Delete, "/metrics/pushed", Ok(GatewayPage::Remove));
        check(Put, "/api/v1/admin/wipe", Ok(GatewayPage::Wipe));
        check(Get, "/-/healthy", Ok(GatewayPage::Healthy));
        let options = super::super::route(Options, "/metrics/push");
        assert_eq!(options.ok(), Some(Route::Options(POST)));
    }
}
