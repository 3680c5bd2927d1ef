//! Declares the routes of dead letters, for the `OpenAPI` document.

use super::DAYS_MAX;
use super::params::LIMIT_MAX;
use crate::http::openapi::PROBLEMS;
use crate::openapi::schema::{
    Named, Schema, array, boolean, count, date_time, named, object, pattern, required, text, uuid,
};
use crate::openapi::{Media, Operation, Parameter, Response};
use crate::query::openapi::{EVENT, SERVICE};

const EVENTS: &str = "events";
const ERRORS: &[u16] = &[400, 503];

const SQLSTATE: Parameter = Parameter::query(
    "sqlstate",
    pattern("^[0-9A-Z]{5}$"),
    "Dead letters that PostgreSQL refused with this SQLSTATE.",
)
.shared("sqlstate");

const EVENT_ID: Parameter =
    Parameter::query("event_id", uuid(), "The dead letter with this id.").shared("dead_event_id");

const OLDER_THAN_DAYS: Parameter = Parameter::query(
    "older_than_days",
    count().between(0, DAYS_MAX as u64),
    "Events dead-lettered at least this many days ago.",
)
.shared("older_than_days");

const CURSOR: Parameter = Parameter::query(
    "cursor",
    text().not_empty(),
    "`next_cursor` of the response before, with the same filters.",
)
.shared("dead_cursor");

const fn limit(default: &'static str) -> Parameter {
    Parameter::query("limit", count().between(1, LIMIT_MAX as u64).default(default), "Dead letters at most.")
}

const DEAD_PAGE: Schema = named(&Named {
    name: "DeadPage",
    schema: object(&[
        required(
            "dead",
            array(&object(&[
                required("event_id", uuid()),
                required("timestamp", date_time()),
                required("service", text()),
                required("sqlstate", text()),
                required("reason", text().description("PostgreSQL's message, up to 4096 characters.")),
                required("died_at", date_time()),
                required(
                    "event",
                    EVENT.or_null().description("The event in the row; null if the row is damaged."),
                ),
            ])),
        ),
        required(
            "page",
            object(&[
                required("limit", count()),
                required("next_cursor", text().or_null()),
                required("total", count().description("All dead letters that match the filters.")),
            ]),
        ),
    ]),
});

pub const LIST: Operation = Operation::new(EVENTS, "listDead", "List dead letters, newest first", PROBLEMS)
    .description(
        "The events that PostgreSQL refused, with the reason. Needs the scope `admin`; a token with services must name \
         one of them.",
    )
    .parameters(&[SERVICE, SQLSTATE, EVENT_ID, OLDER_THAN_DAYS, limit("100"), CURSOR])
    .responses(&[Response::new(200, "A page of dead letters.", &[Media::json(DEAD_PAGE)])])
    .errors(ERRORS);

pub const PURGE: Operation = Operation::new(EVENTS, "purgeDead", "Delete dead letters permanently", PROBLEMS)
    .description(
        "Needs a filter or `all=true`. Without `confirm=true` nothing is deleted, and the 400 gives the number that \
         matches.",
    )
    .parameters(&[
        SERVICE,
        SQLSTATE,
        EVENT_ID,
        OLDER_THAN_DAYS,
        Parameter::query("all", boolean(), "`true` to select all dead letters."),
        Parameter::query("confirm", boolean(), "`true` to delete."),
    ])
    .responses(&[Response::new(
        200,
        "The number of deleted dead letters.",
        &[Media::json(object(&[required("purged", count())]))],
    )])
    .errors(ERRORS);

pub const REPLAY: Operation = Operation::new(EVENTS, "replayDead", "Store dead letters again", PROBLEMS)
    .description(
        "Replays the matching dead letters in order of id, `limit` of them or as many as 10 s allow. Each is stored \
         once, with its counts, and leaves the dead letters; one that PostgreSQL refuses again stays, with the new \
         reason. Repeat with `next_cursor` until it is null. Every transaction is whole: a request that fails has \
         replayed some of them, and may be repeated.",
    )
    .parameters(&[SERVICE, SQLSTATE, EVENT_ID, OLDER_THAN_DAYS, limit("1000"), CURSOR])
    .responses(&[Response::new(
        200,
        "The counts.",
        &[Media::json(object(&[
            required("stored", count()),
            required("duplicate", count().description("Stored already.")),
            required("refused", count().description("Refused again.")),
            required("unreadable", count().description("The row in `dead_events` is damaged.")),
            required("next_cursor", uuid().or_null()),
        ]))],
    )])
    .errors(ERRORS);
