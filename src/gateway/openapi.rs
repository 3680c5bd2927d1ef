//! Declares the routes of the metrics gateway, for the `OpenAPI` document.

use super::validate::NAME_BYTES_MAX;
use crate::http::openapi::{
    CONTENT_ENCODING, ERROR_LIST, FORBIDDEN, INVALID, LENGTH_REQUIRED, PROBLEM_DOCUMENT, PROBLEMS, TOO_LARGE,
    TOO_MANY, TOO_SLOW, UNAUTHORIZED, UNAVAILABLE, UNSUPPORTED,
};
use crate::ingest::openapi::IDEMPOTENCY_KEY;
use crate::journal::openapi::{DURABILITY, DURABILITY_REACHED};
use crate::openapi::schema::{
    Named, Schema, any, array, boolean, closed_object, count, filled_array, integer, map, named, number,
    object, one_of, optional, required, text,
};
use crate::openapi::{ErrorForm, Media, Operation, Parameter, Response};

const GATEWAY: &str = "gateway";
const TEXT: &[Media] = &[Media::new("text/plain", text())];
const DELETED: &[Media] = &[Media::json(object(&[required("deleted", count())]))];
const TEXT_OR_PROBLEM: &[Media] = &[Media::new("text/plain", text()), PROBLEM_DOCUMENT];

const NEW_METRIC: Schema = named(&Named {
    name: "NewMetric",
    schema: closed_object(&[
        required("name", text().length(1, NAME_BYTES_MAX)),
        required("type", one_of(&["counter", "gauge", "histogram"])),
        optional(
            "value",
            number().description(
                "The increment of a counter, the value of a gauge, or one observation of a histogram.",
            ),
        ),
        optional("labels", map(&text())),
        optional("help", text()),
        optional(
            "buckets",
            map(&integer())
                .description("Cumulative counts by upper bound, with sum and count, instead of a value."),
        ),
        optional("sum", number()),
        optional("count", integer()),
        optional(
            "bounds",
            array(&number())
                .description("The upper bounds of the buckets of a new histogram, for a pushed observation."),
        ),
    ]),
});

pub const PUSH: Operation = Operation::new(
    GATEWAY,
    "pushMetrics",
    "Push metrics: counters are summed, gauges keep the last value, histograms are merged",
    PROBLEMS,
)
.description(
    "Valid metrics are accepted, invalid ones are listed in the response. With an Idempotency-Key, a repeated push is \
     counted once.",
)
.parameters(&[DURABILITY, IDEMPOTENCY_KEY, CONTENT_ENCODING])
.body(&[
    Media::json(object(&[required("metrics", filled_array(&NEW_METRIC))])).json_example(
        r#"{"metrics":[{"name":"clicks_total","type":"counter","value":1,"labels":{"page":"/"},"help":"Clicks."}]}"#,
    ),
    Media::new("text/plain", text().description("As application/json, for navigator.sendBeacon.")).text_example(
        r#"{"metrics":[{"name":"clicks_total","type":"counter","value":1}]}"#,
    ),
])
.responses(&[Response::new(
    202,
    "Accepted.",
    &[Media::json(object(&[
        required("accepted", count()),
        required("rejected", count()),
        optional(
            "repeated",
            boolean().description("The key was already used: the push was not counted again."),
        ),
        required("errors", ERROR_LIST),
    ]))],
)
.headers(DURABILITY_REACHED)])
.errors(&[503]);

/// Refusals by Pushgateway's protocol are plain text, those of the access rules problem documents.
const GROUP_ERRORS: &ErrorForm = &[
    INVALID.with_content("GroupInvalid", TEXT),
    UNAUTHORIZED,
    FORBIDDEN.with_content("GroupForbidden", TEXT_OR_PROBLEM),
    TOO_SLOW,
    LENGTH_REQUIRED,
    TOO_LARGE.with_content("GroupTooLarge", TEXT_OR_PROBLEM),
    UNSUPPORTED.with_content("GroupUnsupported", TEXT),
    TOO_MANY,
    UNAVAILABLE.with_content("GroupUnavailable", TEXT_OR_PROBLEM),
];

const JOB: Parameter = Parameter::path(
    "job",
    text().not_empty(),
    "The job. Further labels may follow as /LABEL/VALUE; a name with the suffix @base64 has a base64-encoded value.",
)
.shared("job");

const GROUP_BODY: &[Media] = &[
    Media::new("text/plain", text()).text_example("# TYPE rows_total counter\nrows_total 42\n"),
    Media::new(
        "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
        any().description("Delimited MetricFamily messages."),
    ),
];
const GROUP_PUSHED: &[Response] = &[Response::new(200, "Accepted.", &[]).headers(DURABILITY_REACHED)];

const fn push_group(id: &'static str, summary: &'static str) -> Operation {
    Operation::new(GATEWAY, id, summary, GROUP_ERRORS)
        .description("Pushgateway's protocol. Errors are plain text.")
        .parameters(&[JOB, DURABILITY, CONTENT_ENCODING])
        .optional_body(GROUP_BODY)
        .responses(GROUP_PUSHED)
        .errors(&[503])
}

pub const PUT_GROUP: Operation = push_group("putGroup", "Replace all metrics of a group");
pub const POST_GROUP: Operation = push_group("postGroup", "Replace the metrics with these names in a group");

pub const DELETE_GROUP: Operation = Operation::new(GATEWAY, "deleteGroup", "Delete a group", GROUP_ERRORS)
    .description("Pushgateway's protocol. Errors are plain text.")
    .parameters(&[JOB, DURABILITY])
    .responses(&[Response::new(202, "Accepted.", &[]).headers(DURABILITY_REACHED)])
    .errors(&[400, 503]);

pub const SCRAPE: Operation = Operation::new(
    GATEWAY,
    "getPushedMetrics",
    "All pushed metrics, for Prometheus",
    PROBLEMS,
)
.responses(&[Response::new(
    200,
    "Text format 0.0.4; OpenMetrics if `Accept` lists it and does not accept text; protobuf, with native \
             histograms, if `Accept` prefers it. `escaping` in `Accept` selects the form of UTF-8 names.",
    &[
        Media::new("text/plain", text()),
        Media::new("application/openmetrics-text", text()),
        Media::new("application/vnd.google.protobuf", any()),
    ],
)])
.errors(&[503]);

pub const DELETE_SERIES: Operation =
    Operation::new(GATEWAY, "deleteSeries", "Delete aggregated series", PROBLEMS)
        .parameters(&[
            Parameter::query(
                "name",
                text().not_empty(),
                "The metric's name. Further parameters are labels that a series must have.",
            )
            .required(),
            DURABILITY,
        ])
        .responses(
            &[Response::new(200, "The number of deleted series.", DELETED).headers(DURABILITY_REACHED)],
        )
        .errors(&[400, 503]);

pub const DELETE_GROUPS: Operation =
    Operation::new(GATEWAY, "deleteGroups", "Delete the groups that have these labels", PROBLEMS)
        .description(
            "Each query parameter is a label and its value, and at least one value is not empty. Not part of \
             Pushgateway's protocol.",
        )
        .parameters(&[
            Parameter::query(
                "job",
                text().not_empty(),
                "The job. Further parameters are labels that a group must have.",
            ),
            DURABILITY,
        ])
        .responses(
            &[Response::new(200, "The number of deleted groups.", DELETED).headers(DURABILITY_REACHED)],
        )
        .errors(&[400, 503]);

pub const HEALTHY: Operation =
    Operation::new(GATEWAY, "getHealthy", "Liveness, compatible with Pushgateway", PROBLEMS)
        .responses(&[Response::new(200, "OK", TEXT)]);

pub const READY: Operation =
    Operation::new(GATEWAY, "getGatewayReady", "Readiness, compatible with Pushgateway", PROBLEMS).responses(
        &[Response::new(200, "OK", TEXT), Response::new(503, "Not ready.", &[Media::json(object(&[]))])],
    );

pub const GROUPS: Operation = Operation::new(
    GATEWAY,
    "listGroups",
    "All groups with their metrics, compatible with Pushgateway",
    PROBLEMS,
)
.responses(&[Response::new(200, "The groups.", &[Media::json(object(&[]))])])
.errors(&[503]);

pub const STATUS: Operation = Operation::new(
    GATEWAY,
    "getGatewayStatus",
    "Version, settings and start time, compatible with Pushgateway",
    PROBLEMS,
)
.responses(&[Response::new(200, "The status.", &[Media::json(object(&[]))])]);

pub const WIPE: Operation = Operation::new(GATEWAY, "wipeMetrics", "Delete all pushed metrics", PROBLEMS)
    .parameters(&[DURABILITY])
    .responses(&[Response::new(202, "Deleted.", &[]).headers(DURABILITY_REACHED)])
    .errors(&[400, 503]);
