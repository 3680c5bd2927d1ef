//! The `OpenAPI` document of the route table.

use std::sync::LazyLock;

use super::router;
use crate::access::RouteClass;
use crate::event::Timestamp;
use crate::http::Method;
use crate::openapi::{DescribedOperation, Document, Info, Operation};

const INFO: Info = Info {
    version: env!("CARGO_PKG_VERSION"),
    description: "Accepts events over HTTP and stores every acknowledged event in PostgreSQL exactly once. Failed \
                  requests are answered with RFC 9457 problem documents. Every path that supports GET supports HEAD; \
                  every path supports OPTIONS. A server on a loopback address without tokens answers a request for \
                  another host with 421.",
    tags: &["events", "senders", "health", "metrics", "gateway", "pages"],
    security_schemes: r#"{"token":{"type":"http","scheme":"bearer","description":"Required if AUTH_TOKENS_FILE is set: scope ingest for POST /events, query for reading events, metrics for metrics."},"basic":{"type":"http","scheme":"basic","description":"The token as the password, with any user name."}}"#,
    security: r#"[{},{"token":[]},{"basic":[]}]"#,
};

/// Examples have the time of the last full hour, so that clients may keep the document for as long. No
/// server refuses events of that age: see `RETENTION_DAYS`.
const HOUR_S: i64 = 3600;

static DOCUMENT: LazyLock<Document> = LazyLock::new(|| Document::new(&INFO, &paths()));

/// The document with examples that are valid now.
pub(super) fn document(now: Timestamp) -> String {
    let hour = now.millis() / 1000 / HOUR_S * HOUR_S;
    DOCUMENT.at(hour, &Timestamp::from_millis(hour * 1000).to_string())
}

fn paths() -> Vec<(&'static str, Vec<DescribedOperation>)> {
    let described = |(path, method, class, operation): (_, Method, RouteClass, _)| {
        let operation = DescribedOperation {
            method: method.name(),
            operation,
            implied_errors: implied_errors(class, operation),
            is_public: matches!(class, RouteClass::Probe | RouteClass::Public | RouteClass::Health),
        };
        (path, vec![operation])
    };
    let mut paths: Vec<_> = router::declared_operations().map(described).collect();
    paths.dedup_by(|(path, operations), (last, before)| {
        let is_same = path == last;
        if is_same {
            before.append(operations);
        }
        is_same
    });
    paths
}

/// The statuses of the refusals by the access rules of a class, and of those of a body.
fn implied_errors(class: RouteClass, operation: &Operation) -> Vec<u16> {
    let mut statuses = match class {
        RouteClass::Probe => vec![],
        RouteClass::Public | RouteClass::Health => vec![429],
        RouteClass::HealthDetails
        | RouteClass::Ingest
        | RouteClass::Query
        | RouteClass::Metrics
        | RouteClass::Admin
        | RouteClass::AdminQuery => vec![401, 403, 429],
    };
    if operation.has_body() {
        statuses.extend([400, 408, 411, 413, 415]);
    }
    statuses
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::http::gzip::ACCEPTOR_GZIP_BYTES_MAX;

    const NOW: Timestamp = Timestamp::from_millis(1_795_435_200_000 + 1_234_567);

    fn parsed() -> Value {
        serde_json::from_str(&document(NOW)).unwrap()
    }

    /// Calls `visit` with each object of the document, and its path.
    fn walk(value: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
        match value {
            Value::Object(members) => {
                visit(path, value);
                members.iter().for_each(|(name, value)| walk(value, &format!("{path}/{name}"), visit));
            }
            Value::Array(elements) => elements.iter().for_each(|value| walk(value, path, visit)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn the_document_is_small_enough_to_be_compressed_by_an_acceptor() {
        let length = document(NOW).len();
        assert!(length <= ACCEPTOR_GZIP_BYTES_MAX, "{length} bytes");
    }

    #[test]
    fn every_path_of_the_document_leads_to_its_route() {
        let document = parsed();
        for (template, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                let path = template.replace(['{', '}'], "");
                let found = router::route(Method::parse(&method.to_uppercase()), &path);
                assert!(found.is_ok(), "{method} {path}: {found:?}");
                let parameters = operation["parameters"].as_array().map_or(&[][..], Vec::as_slice);
                let in_path = parameters.iter().filter(|parameter| {
                    parameter["in"] == "path" || parameter["$ref"] == "#/components/parameters/job"
                });
                assert_eq!(in_path.count(), template.matches('{').count(), "{method} {path}");
            }
        }
    }

    #[test]
    fn every_reference_leads_to_a_component_and_ids_are_unique() {
        let document = parsed();
        let (mut ids, mut references) = (Vec::new(), 0);
        walk(&document, "", &mut |path, object| {
            if let Some(reference) = object.get("$ref").and_then(Value::as_str) {
                references += 1;
                let target = document.pointer(reference.strip_prefix('#').unwrap());
                assert!(target.is_some(), "{path} refers to {reference}");
            }
            ids.extend(object.get("operationId").and_then(Value::as_str).map(str::to_owned));
        });
        assert!(references > 200, "{references}");
        assert_eq!(ids.len(), ids.iter().collect::<BTreeSet<_>>().len(), "{ids:?}");
    }

    #[test]
    fn examples_have_the_last_hour() {
        let text = document(NOW);
        assert!(text.contains("2026-11-23T12:00:00.000000Z") && !text.contains("$NOW"), "{text}");
        assert!(text.contains("1795435200000000000"));
    }

    #[test]
    fn operations_with_a_body_have_an_example_of_it() {
        for (path, operations) in paths() {
            for described in operations {
                assert!(
                    !described.operation.has_body() || described.operation.has_example(),
                    "{} {path}",
                    described.method
                );
            }
        }
    }
}
