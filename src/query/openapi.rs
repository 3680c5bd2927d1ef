//! Declares the routes that read events, for the `OpenAPI` document.

use super::params::{LIMIT_MAX, METADATA_BYTES_MAX, SAMPLE_MAX, TEXT_BYTES_MAX};
use crate::event::SERVICE_BYTES_MAX;
use crate::http::openapi::PROBLEMS;
use crate::openapi::schema::{
    Named, Schema, all_of, any_of, array, constant, count, date_time, map_of, named, object, one_of,
    optional, pattern, required, text, uuid,
};
use crate::openapi::{Media, Operation, Parameter, Response};

const EVENTS: &str = "events";
const ERRORS: &[u16] = &[400, 503];

pub const SERVICE: Parameter = Parameter::query(
    "service",
    pattern("^[^\\u0000]*$").length(1, SERVICE_BYTES_MAX),
    "Only events of this service.",
)
.shared("service");

/// A time that the query parser accepts: see `params::parse_time`.
const TIME: Schema = any_of(&[date_time(), pattern("^[0-9]+([.][0-9]+)?$")]);

const FROM: Parameter = Parameter::query(
    "from",
    TIME,
    "Start of the time range, inclusive: RFC 3339 or epoch milliseconds. Default: one day before `to`.",
)
.shared("from");

const TO: Parameter =
    Parameter::query("to", TIME, "End of the time range, exclusive. Default: now.").shared("to");

const TEXT: Parameter = Parameter::query(
    "q",
    pattern("^[^\\u0000]*$").length(1, TEXT_BYTES_MAX),
    "Text that the message contains, in any case.",
)
.shared("q");

const METADATA: Parameter = Parameter::query(
    "metadata",
    map_of("^metadata[.][^\\u0000]+$", &pattern("^[^\\u0000]*$").length(0, METADATA_BYTES_MAX)),
    "`metadata.KEY=VALUE`: events whose metadata has this member; up to eight.",
)
.shared("metadata");

pub const EVENT: Schema = named(&Named {
    name: "Event",
    schema: object(&[
        required("event_id", uuid()),
        required("timestamp", date_time()),
        required("service", text()),
        required("message", text()),
        required("metadata", object(&[]).or_null()),
        required("ingested_at", date_time()),
    ]),
});

const PAGE: Schema = named(&Named {
    name: "Page",
    schema: object(&[
        required("events", array(&EVENT)),
        required(
            "page",
            object(&[
                required("limit", count()),
                required("next_cursor", text().or_null()),
                required("total", count().or_null()),
            ]),
        ),
    ]),
});

const RECEIPT: Schema = named(&Named {
    name: "Receipt",
    schema: any_of(&[
        all_of(&[EVENT, object(&[required("status", one_of(&["stored", "buffered"]))])]),
        object(&[
            required("event_id", uuid()),
            required("status", constant("dead")),
            required("reason", text()),
            required("sqlstate", text()),
        ]),
    ]),
});

const STATS: Schema = named(&Named {
    name: "Stats",
    schema: object(&[
        required("from", date_time()),
        required("to", date_time()),
        required("total", count()),
        optional(
            "hours",
            array(&object(&[
                required("hour", date_time()),
                required("service", text()),
                required("count", count()),
            ]))
            .description("With interval=hour."),
        ),
        optional(
            "minutes",
            array(&object(&[
                required("minute", date_time()),
                required("service", text()),
                required("count", count()),
            ]))
            .description("With interval=minute."),
        ),
    ]),
});

pub const LIST_EVENTS: Operation =
    Operation::new(EVENTS, "listEvents", "Query stored events, by page or as an export", PROBLEMS)
        .description(
            "Newest first by default. `metadata.KEY=VALUE` filters by a member of the metadata; up to eight such \
             filters. With `Accept: application/x-ndjson` (or `application/ndjson`, `application/jsonl`) or \
             `text/csv`, all matching events are streamed instead of a page: `count` is not supported, and `limit` may \
             be any number, unlimited by default. An export that is aborted has no last chunk.",
        )
        .parameters(&[
            SERVICE,
            FROM,
            TO,
            Parameter::query(
                "limit",
                count().between(1, LIMIT_MAX as u64).default("100"),
                "Maximum number of events. A page also ends at `QUERY_RESPONSE_MAX_BYTES` (8 MiB), so it may have \
                 fewer events and a `next_cursor`.",
            ),
            Parameter::query("cursor", text().not_empty(), "`next_cursor` of the previous page."),
            Parameter::query(
                "order",
                one_of(&["desc", "asc"]).default("\"desc\""),
                "Order by time. Events of equal timestamp are in the order in which they were sent, or in the reverse: \
                 those of one request always, those of several requests to one server by arrival.",
            ),
            Parameter::query(
                "count",
                one_of(&["exact", "none"]).default("\"exact\""),
                "Whether `total` is counted.",
            ),
            TEXT,
            METADATA,
        ])
        .responses(&[Response::new(
            200,
            "A page of events, or an export.",
            &[
                Media::json(PAGE),
                Media::new(
                    "application/x-ndjson",
                    text().description("One event per line, in the format of a page."),
                ),
                Media::new("application/ndjson", text().description("As application/x-ndjson.")),
                Media::new("application/jsonl", text().description("As application/x-ndjson.")),
                Media::new(
                    "text/csv",
                    text().description(
                        "RFC 4180 with a header line: event_id,timestamp,service,message,metadata,ingested_at.",
                    ),
                ),
            ],
        )])
        .errors(ERRORS);

pub const TAIL_EVENTS: Operation =
    Operation::new(EVENTS, "tailEvents", "Follow events as they are admitted", PROBLEMS)
        .description(
            "Server-sent events: each event that this server admits from now on and that matches, before it is stored, \
             also while the database is unavailable. `id` is the id of the event, `data` its JSON as in a page. The \
             first event, of the type `tail`, names this server, the factor of the sample and whether missed events \
             follow: `{\"instance\":\"host:3000\",\"sample\":1,\"resumed\":false}`. After a `Last-Event-ID` an event of \
             the type `gap` says why missed events may be missing: `{\"reason\":\"too-many\"}` (or \
             `database-unavailable`, `journal-unavailable`, `unknown-id`, `queries-full`). An event of the type \
             `skipped` has the number of events, of any service, that were not examined since the client reads too \
             slowly or too many arrive: `{\"events\":n}`. A comment is sent every 15 s when there is nothing else. The \
             stream ends after an hour, and when the server stops.",
        )
        .parameters(&[
            SERVICE,
            TEXT,
            METADATA,
            Parameter::query(
                "sample",
                count().between(1, SAMPLE_MAX).default("1"),
                "One of this many matching events is shown.",
            ),
            Parameter::header(
                "Last-Event-ID",
                uuid(),
                "The id of the last event that the client has. Events that arrived since, stored or not, are sent \
                 first. Those of the second before it may be repeated.",
            ),
        ])
        .responses(&[Response::new(200, "A stream of events.", &[Media::new("text/event-stream", text())])])
        .errors(ERRORS);

pub const GET_EVENT: Operation = Operation::new(EVENTS, "getEvent", "Get one event, or its status", PROBLEMS)
    .parameters(&[Parameter::path("event_id", uuid(), "The id of the event.")])
    .responses(&[Response::new(200, "The event.", &[Media::json(RECEIPT)])])
    .errors(&[400, 404, 503]);

pub const STATS_OPERATION: Operation =
    Operation::new(EVENTS, "getStats", "Event counts by service and hour or minute", PROBLEMS)
        .description(
            "Counts of all intervals that overlap the time range, 10,000 at most. The counts are maintained as events \
             are stored. By minute, events that were stored by a server without minute counts are missing.",
        )
        .parameters(&[
            SERVICE,
            FROM,
            TO,
            Parameter::query(
                "interval",
                one_of(&["hour", "minute"]).default("\"hour\""),
                "The length of the intervals.",
            ),
        ])
        .responses(&[Response::new(200, "Counts by interval and service.", &[Media::json(STATS)])])
        .errors(ERRORS);
