//! Declares the routes that take events, for the `OpenAPI` document.

use crate::event::{KEY_BYTES_MAX, MESSAGE_BYTES_MAX, SERVICE_BYTES_MAX};
use crate::http::openapi::{
    CONTENT_ENCODING, ERROR_LIST, FORBIDDEN, INVALID, LENGTH_REQUIRED, PROBLEM_DOCUMENT, PROBLEMS, TOO_LARGE,
    TOO_MANY, TOO_SLOW, UNAUTHORIZED, UNAVAILABLE, UNSUPPORTED,
};
use crate::journal::openapi::{DURABILITY, DURABILITY_REACHED};
use crate::openapi::schema::{
    Named, Schema, any, any_of, array, boolean, closed_object, constant, count, date_time, filled_array,
    formatted, integer, named, number, object, one_of, optional, pattern, required, text, uuid,
};
use crate::openapi::{ErrorForm, ErrorResponse, Media, Operation, Parameter, Response};

const EVENTS: &str = "events";
const SENDERS: &str = "senders";
/// Beside the refusals of every request with a body.
const ERRORS: &[u16] = &[503];

/// Text that PostgreSQL can store.
const NO_NUL: &str = "^[^\\u0000]*$";

pub const IDEMPOTENCY_KEY: Parameter = Parameter::header(
    "Idempotency-Key",
    pattern("^[!-~]+$").length(1, KEY_BYTES_MAX),
    "Key of the whole request: if it is retried with the same key, each of its events is stored once.",
)
.shared("IdempotencyKey");

const NEW_EVENT: Schema = named(&Named {
    name: "NewEvent",
    schema: closed_object(&[
        required(
            "timestamp",
            any_of(&[date_time(), integer()]).description(
                "RFC 3339 with any offset, or epoch milliseconds. Not older than RETENTION_DAYS, not more than \
                 MAX_CLOCK_SKEW_MS ahead.",
            ),
        ),
        required(
            "service",
            pattern(NO_NUL).length(1, SERVICE_BYTES_MAX).description("The maximum is one of bytes of UTF-8."),
        ),
        required(
            "message",
            pattern(NO_NUL).length(1, MESSAGE_BYTES_MAX).description("The maximum is one of bytes of UTF-8."),
        ),
        optional("metadata", object(&[]).description("Up to 64 KiB, nested up to 64 levels.")),
        optional(
            "idempotency_key",
            pattern(NO_NUL).length(1, KEY_BYTES_MAX).description(
                "Events with the same service, timestamp (to the microsecond) and key are stored once; the first \
                 payload is the stored one. The maximum is one of bytes of UTF-8.",
            ),
        ),
    ]),
});

const ACCEPTED: Schema = named(&Named {
    name: "Accepted",
    schema: object(&[
        required("event_id", uuid()),
        required(
            "status",
            one_of(&["accepted", "duplicate"]).description(
                "`duplicate`: this server has accepted an event with this id before; it is stored once. Each acceptor \
                 knows its last 8,192 ids with a key at most, and none of other acceptors, of other servers or of \
                 before a restart, so `accepted` does not promise that the event is new.",
            ),
        ),
    ]),
});

const BATCH_ACCEPTED: Schema = named(&Named {
    name: "BatchAccepted",
    schema: object(&[
        required("accepted", count()),
        required("rejected", count()),
        required(
            "event_ids",
            array(&uuid()).description(
                "The ids of the accepted events, duplicates included, in the order of the body.",
            ),
        ),
        optional(
            "duplicates",
            array(&uuid()).description(
                "The ids of the events for which a single event's status would be `duplicate`; absent if there are \
                 none.",
            ),
        ),
        required("errors", ERROR_LIST),
    ]),
});

const CLOUD_EVENT: Schema = named(&Named {
    name: "CloudEvent",
    schema: object(&[
        required("specversion", constant("1.0")),
        required("id", text().not_empty()),
        required("source", text().not_empty()),
        required("type", text().not_empty()),
        optional("time", date_time()),
    ]),
});

const HEC_RESPONSE: Schema = named(&Named {
    name: "HecResponse",
    schema: object(&[required("text", text()), required("code", count()), optional("detail", text())]),
});

const fn mapping(name: &'static str, description: &'static str) -> Parameter {
    Parameter::query(name, text().length(1, super::input::FIELD_NAME_BYTES_MAX), description)
}

const DEDUP: Parameter = Parameter::query(
    "dedup",
    one_of(&["body", "none"]),
    "`body`: a body that is sent again is stored once: each event is identified by the BLAKE3 hash of the body and its \
     content.",
)
.shared("dedup");

const EXAMPLE: &str =
    r#"{"timestamp":"$NOW","service":"checkout","message":"payment accepted","metadata":{"order":4711}}"#;

pub const POST_EVENTS: Operation = Operation::new(EVENTS, "postEvents", "Store events", PROBLEMS)
    .description(
        "One event, an array of events, or NDJSON. The response is sent as soon as the requested durability is \
         reached; it never waits for the database. Valid events of a batch are accepted, invalid ones are listed in \
         the response; a batch that does not fit the buffer is refused as a whole. With `Idempotency-Key`, send the \
         same body again after a timeout, a 429 or a 503, and the corrected batch, or only its corrected events, after \
         a 202 with `rejected`: each event is identified by its content (service, timestamp, message, text of the \
         metadata), and equal events of one request are separate events. An event with an `idempotency_key` of its own \
         is identified by it instead. With one of the mapping parameters, JSON objects of any fields are mapped to \
         events (docs/senders/mapping.md). CloudEvents 1.0 are taken in binary, structured and batch mode \
         (docs/senders/cloudevents.md).",
    )
    .parameters(&[
        DURABILITY,
        IDEMPOTENCY_KEY,
        CONTENT_ENCODING,
        Parameter::query(
            "ids",
            constant("keep"),
            "`keep`: events may have `event_id` and `ingested_at`, as in an NDJSON export. The id is kept, so that an \
             export can be posted back and is stored once; `ingested_at` is ignored. Needs the scope `admin` too.",
        ),
        mapping(
            "time_field",
            "Mapping: the field with the time: RFC 3339, or seconds to nanoseconds since 1970. A name `a.b` is a \
             member of that name, or the member `b` of the object `a`.",
        ),
        mapping("message_field", "Mapping: the field with the message."),
        mapping("service_field", "Mapping: the field with the service."),
        Parameter::query(
            "service",
            text().not_empty(),
            "Mapping: the service of records without that field.",
        ),
        Parameter::query(
            "extra",
            constant("metadata"),
            "Mapping: `metadata` keeps the other fields as metadata; without it they are refused.",
        ),
        Parameter::query(
            "dedup",
            text(),
            "`body` with a mapping or a CloudEvent: a body that is sent again is stored once, since each event is \
             identified by the BLAKE3 hash of the body and its content. `none`: not so. Ignored for the server's own \
             format.",
        ),
    ])
    .body(&[
        Media::json(any_of(&[NEW_EVENT, filled_array(&NEW_EVENT)])).json_example(EXAMPLE),
        Media::new("text/plain", text().description("As application/json, for navigator.sendBeacon."))
            .text_example(EXAMPLE),
        Media::new("application/x-ndjson", text().description("One event per line.")).text_example(EXAMPLE),
        Media::new("application/ndjson", text().description("As application/x-ndjson.")).text_example(EXAMPLE),
        Media::new("application/jsonl", text().description("As application/x-ndjson.")).text_example(EXAMPLE),
        Media::new("application/json-lines", text().description("One object per line, with a mapping parameter.")),
        Media::new(
            "application/stream+json",
            text().description("Objects one after the other, with a mapping parameter."),
        ),
        Media::new("application/cloudevents+json", CLOUD_EVENT).json_example(
            r#"{"specversion":"1.0","id":"1","source":"/checkout","type":"payment.accepted","time":"$NOW","data":{"order":4711}}"#,
        ),
        Media::new("application/cloudevents-batch+json", filled_array(&CLOUD_EVENT)),
    ])
    .responses(&[Response::new(202, "Accepted.", &[Media::json(any_of(&[ACCEPTED, BATCH_ACCEPTED]))])
        .headers(DURABILITY_REACHED)])
    .errors(ERRORS);

const fn binary(description: &'static str) -> Media {
    Media::new("application/x-protobuf", formatted("binary").description(description))
}

/// In the encoding of the request; a problem document if that is not known.
const OTLP_STATUS: &[Media] = &[
    binary("google.rpc.Status"),
    Media::json(named(&Named {
        name: "Status",
        schema: object(&[optional("code", integer()), optional("message", text())]),
    })),
    PROBLEM_DOCUMENT,
];

/// Refusals by the handler are a `google.rpc.Status`.
const OTLP_ERRORS: &ErrorForm = &[
    INVALID.with_content("OtlpInvalid", OTLP_STATUS),
    UNAUTHORIZED.with_content("OtlpUnauthorized", OTLP_STATUS),
    FORBIDDEN.with_content("OtlpForbidden", OTLP_STATUS),
    TOO_SLOW,
    LENGTH_REQUIRED,
    TOO_LARGE.with_content("OtlpTooLarge", OTLP_STATUS),
    UNSUPPORTED.with_content("OtlpUnsupported", OTLP_STATUS),
    TOO_MANY.with_content("OtlpTooMany", OTLP_STATUS),
    UNAVAILABLE.with_content("OtlpUnavailable", OTLP_STATUS),
];

pub const OTLP_LOGS: Operation = Operation::new(SENDERS, "postOtlpLogs", "Store OTLP log records", OTLP_ERRORS)
    .description(
        "OTLP logs over HTTP, in protobuf or JSON (docs/senders/opentelemetry.md). Equal bodies are one request, so \
         that an exporter's retry is stored once; a record with the attribute `log.record.uid` is identified by it. A \
         bad record is reported in `partial_success` and costs no other. Refusals are a `google.rpc.Status` in the \
         encoding of the request.",
    )
    .parameters(&[
        DURABILITY,
        IDEMPOTENCY_KEY,
        CONTENT_ENCODING,
        Parameter::query(
            "otlp_dedup",
            one_of(&["body", "none"]).default("\"body\""),
            "`none`: equal bodies are separate requests. `dedup` is taken too, as in the other formats, but not beside \
             it.",
        ),
    ])
    .body(&[
        binary("ExportLogsServiceRequest"),
        Media::json(object(&[])).json_example(
            r#"{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}}]},"scopeLogs":[{"logRecords":[{"timeUnixNano":"$NOW_NANOS","severityText":"INFO","body":{"stringValue":"order placed"}}]}]}]}"#,
        ),
    ])
    .responses(&[Response::new(
        200,
        "All records are taken, or those that `partialSuccess` does not count. In the encoding of the request.",
        &[
            binary("ExportLogsServiceResponse"),
            Media::json(object(&[optional(
                "partialSuccess",
                object(&[optional("rejectedLogRecords", text()), optional("errorMessage", text())]),
            )])),
        ],
    )])
    .errors(ERRORS);

pub const LOKI_PUSH: Operation = Operation::new(
    SENDERS,
    "postLokiPush",
    "Store entries of Loki streams",
    PROBLEMS,
)
.description(
    "Loki's push API (docs/senders/loki.md). An entry that is sent again with the same time, labels and line \
             is stored once.",
)
.parameters(&[DURABILITY, IDEMPOTENCY_KEY, CONTENT_ENCODING, DEDUP])
.body(&[
    binary("PushRequest, compressed in Snappy's block format."),
    Media::json(object(&[]))
        .json_example(r#"{"streams":[{"stream":{"job":"nginx"},"values":[["$NOW_NANOS","GET / 200"]]}]}"#),
])
.responses(&[Response::new(204, "Every entry is taken.", &[]).headers(DURABILITY_REACHED)])
.errors(ERRORS);

const HEC: &[Media] = &[Media::json(HEC_RESPONSE)];

const fn hec(status: u16, component: &'static str, description: &'static str) -> ErrorResponse {
    ErrorResponse { component, response: Response::new(status, description, HEC) }
}

/// Splunk's codes. A client of Splunk sends again what was refused with 503 alone, so that there is no
/// 429.
const HEC_ERRORS: &ErrorForm = &[
    hec(400, "HecInvalid", "No event is valid: code 5, 6, 12 or 13."),
    hec(401, "HecUnauthorized", "The token is missing: code 2."),
    hec(403, "HecForbidden", "The token is not valid or does not allow this: code 4."),
    TOO_SLOW,
    hec(411, "HecLengthRequired", "The length of the body is required: code 6."),
    hec(413, "HecTooLarge", "The body is too large: code 6."),
    hec(415, "HecUnsupported", "The content encoding is not supported: code 6."),
    UNAVAILABLE.with_content("HecUnavailable", HEC),
];

const HEC_TAKEN: &[Response] = &[Response::new(
    200,
    "At least one event is taken: code 0. `rejected` and `errors` name the others.",
    HEC,
)
.headers(DURABILITY_REACHED)];

pub const SPLUNK_EVENT: Operation =
    Operation::new(SENDERS, "postSplunkEvent", "Store events of Splunk's HTTP Event Collector", HEC_ERRORS)
        .description(
            "JSON objects one after the other, of any content type (docs/senders/splunk.md). Also on \
             `/services/collector` and `/services/collector/event/1.0`.",
        )
        .parameters(&[DURABILITY, IDEMPOTENCY_KEY, CONTENT_ENCODING, DEDUP])
        .body(&[Media::json(object(&[required(
            "event",
            any_of(&[text().not_empty(), number(), boolean(), object(&[]), array(&any())]),
        )]))
        .json_example(r#"{"time":$NOW_SECONDS.5,"source":"checkout","event":"order placed"}"#)])
        .responses(HEC_TAKEN)
        .errors(ERRORS);

const fn raw_field(name: &'static str) -> Parameter {
    Parameter::query(
        name,
        text(),
        "Becomes metadata; the first of source, sourcetype and host is the service.",
    )
}

pub const SPLUNK_RAW: Operation = Operation::new(SENDERS, "postSplunkRaw", "Store lines of text", HEC_ERRORS)
    .description(
        "Splunk's HTTP Event Collector, raw: one event per line. Also on `/services/collector/raw/1.0`.",
    )
    .parameters(&[
        DURABILITY,
        IDEMPOTENCY_KEY,
        CONTENT_ENCODING,
        DEDUP,
        raw_field("host"),
        raw_field("source"),
        raw_field("sourcetype"),
        raw_field("index"),
    ])
    .body(&[Media::new("text/plain", pattern("\\S")).text_example("order placed\norder paid\n")])
    .responses(HEC_TAKEN)
    .errors(ERRORS);

pub const SPLUNK_HEALTH: Operation =
    Operation::new(SENDERS, "getSplunkHealth", "Health of the HTTP Event Collector", HEC_ERRORS)
        .description("Also on `/services/collector/health/1.0`.")
        .responses(&[
            Response::new(200, "Code 17.", HEC),
            Response::new(503, "The buffer is full: code 18. The server is shutting down: code 23.", HEC),
        ]);
