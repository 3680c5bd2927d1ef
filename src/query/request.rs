//! The query string of a request with what its token may read: parses it once and authorizes it.

use super::params::Query;
use crate::access::{allows_service, forbid_service};
use crate::event::Timestamp;
use crate::http::Response;
use crate::http::problem::{self, FieldErrors};

/// A request for stored events.
#[derive(Clone, Copy, Debug)]
pub struct QueryRequest<'a> {
    pub query: &'a str,
    /// The wall clock: the default range is relative to it.
    pub now: Timestamp,
    /// The services that the token may read; None is all.
    pub services: Option<&'a [Box<str>]>,
}

impl QueryRequest<'_> {
    /// Parses the query string with `parse`. Writes 400 if it is not valid, 403 if the token may not
    /// read the service that it selects, and returns None in both cases.
    pub(crate) fn parse<T>(
        self,
        parse: impl FnOnce(&str, Timestamp) -> Result<T, FieldErrors>,
        service: impl FnOnce(&T) -> Option<&str>,
        response: &mut Response,
    ) -> Option<T> {
        let query = match parse(self.query, self.now) {
            Ok(query) => query,
            Err(errors) => {
                problem::write_invalid(response, "the query is not valid", &errors);
                return None;
            }
        };
        let service = service(&query);
        if let Some(services) = self.services
            && !service.is_some_and(|service| allows_service(services, service))
        {
            forbid_service(service, services, response);
            return None;
        }
        Some(query)
    }

    pub(super) fn parse_list(self, response: &mut Response) -> Option<Query> {
        self.parse(Query::parse, |query| query.filter.service.as_deref(), response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_is_refused_unless_the_token_may_read_its_service() {
        #[track_caller]
        fn check(query: &str, services: Option<&[&str]>, status: u16) {
            let services: Option<Vec<Box<str>>> =
                services.map(|names| names.iter().map(|name| Box::from(*name)).collect());
            let request = QueryRequest {
                query,
                now: Timestamp::from_millis(90_000_000),
                services: services.as_deref(),
            };
            let mut response = Response::default();
            let parsed = request.parse_list(&mut response);
            assert_eq!((response.status, parsed.is_some()), (status, status == 200), "{query}");
            if status == 403 {
                let readable = sonic_rs::to_string(services.as_deref().unwrap_or_default()).unwrap();
                let body = String::from_utf8(response.body).unwrap();
                assert!(body.ends_with(&format!(",\"services\":{readable}}}")), "{body}");
            }
        }
        check("service=shop", None, 200);
        check("", None, 200);
        check("service=shop", Some(&["audit", "shop"]), 200);
        check("service=shop", Some(&["audit"]), 403);
        check("", Some(&["audit"]), 403);
        check("service=shop", Some(&[]), 403);
        check("limit=0", None, 400);
        check("limit=0&service=shop", Some(&["audit"]), 400);
    }
}
