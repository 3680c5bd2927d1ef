//! Declares the routes of health, for the `OpenAPI` document. The schemas are those of the structures
//! of [`super::status`] and [`super::database`].

use crate::http::openapi::PROBLEMS;
use crate::metrics::openapi::{CONDITION, LEDGER};
use crate::openapi::schema::{
    Named, Schema, array, boolean, constant, count, date_time, integer, map, named, number, object, one_of,
    optional, required, text,
};
use crate::openapi::{Media, Operation, Response};

const fn health(id: &'static str, summary: &'static str) -> Operation {
    Operation::new("health", id, summary, PROBLEMS)
}

const READY_BODY: &[Media] = &[Media::json(named(&Named {
    name: "Ready",
    schema: object(&[
        required("status", one_of(&["ready", "not ready"])),
        required("reasons", array(&text())),
        optional(
            "warnings",
            array(&text()).description("Trouble that is no reason to send events to another server."),
        ),
    ]),
}))];

const HEALTH_BODY: &[Media] = &[Media::json(named(&Named {
    name: "Health",
    schema: object(&[
        required("status", CONDITION),
        optional(
            "checks",
            object(&[
                required("buffer", CONDITION),
                required("database", CONDITION),
                required("journal", CONDITION),
                required("gateway", CONDITION),
            ]),
        ),
    ]),
}))];

const BUFFER_HEALTH: Schema = named(&Named {
    name: "BufferHealth",
    schema: object(&[
        required("status", CONDITION),
        required("size", count()),
        required("capacity", count()),
        required("bytes", count()),
        required("bytes_capacity", count()),
        required("spilled_events", count()),
        required("spilled_bytes", count()),
        required("spill_capacity_bytes", count()),
        required("utilization_percent", number()),
        required("drop_rate_percent", number()),
        required("throughput_per_second", number()),
        required(
            "stalled_seconds",
            number().description("How long events have waited while the database is up and none was stored."),
        ),
    ]),
});

const STANDBY: Schema = object(&[
    required("status", CONDITION.description("Degraded while queries read from the primary.")),
    required("connected", boolean()),
    required("serves_queries", boolean().description("Whether queries read from the standby.")),
    required(
        "lag_seconds",
        number()
            .or_null()
            .description("Age of the oldest change that the standby has not replayed; null if unknown."),
    ),
    required(
        "lag_bytes",
        integer()
            .or_null()
            .description("Bytes of the write-ahead log that the standby has not replayed; null if unknown."),
    ),
]);

const WAL_POSITION: Schema = named(&Named {
    name: "WalPosition",
    schema: object(&[required("system", text()), required("timeline", integer()), required("lsn", text())]),
});

const FAILOVER: Schema = named(&Named {
    name: "Failover",
    schema: object(&[
        required("noticed_at", date_time()),
        required("from", WAL_POSITION),
        required("to", WAL_POSITION),
        required("events_restored", count()),
        required("segments_pending", count()),
        required("is_replayed", boolean()),
        required(
            "lost",
            object(&[required("from", date_time().or_null()), required("to", date_time())]).or_null(),
        ),
    ]),
});

const DATABASE_HEALTH: Schema = named(&Named {
    name: "DatabaseHealth",
    schema: object(&[
        required("status", CONDITION),
        required("connected", boolean()),
        required(
            "down_since",
            date_time().or_null().description("Start of the outage that lasts, to the second."),
        ),
        required("circuit_breaker", one_of(&["closed", "half-open", "open"])),
        required("failovers", count()),
        required("last_failover", FAILOVER.or_null()),
        optional(
            "standby",
            STANDBY.description("The standby that serves queries; present with DATABASE_READ_URL."),
        ),
    ]),
});

const DETAILED: Schema = named(&Named {
    name: "Detailed",
    schema: object(&[
        required("status", CONDITION),
        required("phase", text()),
        required("uptime_seconds", count()),
        required("version", text()),
        required("buffer", BUFFER_HEALTH),
        required("database", DATABASE_HEALTH),
        required(
            "journal",
            object(&[
                required("status", CONDITION),
                required("recovering", boolean()),
                required("segments", count()),
                required("bytes", count()),
                required("disk_free_bytes", count()),
            ]),
        ),
        required(
            "writer",
            object(&[
                required("batches", count()),
                required("events", count()),
                required("retries", count()),
                required("average_batch_ms", number()),
            ]),
        ),
        required("gateway", object(&[required("status", CONDITION)])),
        required("ledger", LEDGER),
    ]),
});

const BUSINESS_HEALTH: Schema = named(&Named {
    name: "BusinessHealth",
    schema: object(&[
        required("status", CONDITION),
        required("as_of", date_time().or_null()),
        required("total_events", count().or_null()),
        required("events_last_24h", count().or_null()),
        required("events_last_hour", count().or_null()),
        required("average_events_per_minute", number().or_null()),
        required("events_by_service", map(&count())),
        required("top_services", array(&object(&[required("service", text()), required("events", count())]))),
        required(
            "events_per_hour",
            array(&object(&[required("hour", date_time()), required("events", count())])),
        ),
    ]),
});

/// 200, or 503 if it is critical.
const fn by_status(content: &'static [Media]) -> [Response; 2] {
    [Response::new(200, "Healthy or degraded.", content), Response::new(503, "Critical.", content)]
}

pub const LIVE: Operation = health("getLive", "Liveness").responses(&[Response::new(
    200,
    "The process is alive.",
    &[Media::json(object(&[required("status", constant("alive"))]))],
)]);

pub const READY: Operation = health("getReady", "Readiness").responses(&[
    Response::new(200, "Ready.", READY_BODY),
    Response::new(503, "Not ready; `reasons` lists why.", READY_BODY),
]);

pub const HEALTH: Operation = health("getHealth", "Status and checks")
    .description(
        "If tokens are configured, the checks need the scope `metrics`; without it the response has the status only.",
    )
    .responses(&by_status(HEALTH_BODY));

pub const BUFFER: Operation =
    health("getBufferHealth", "Buffer").responses(&by_status(&[Media::json(BUFFER_HEALTH)]));

pub const DATABASE: Operation = health("getDatabaseHealth", "PostgreSQL and the circuit breaker")
    .responses(&by_status(&[Media::json(DATABASE_HEALTH)]));

pub const BUSINESS: Operation = health("getBusinessHealth", "Statistics of the stored events")
    .responses(&[Response::new(200, "Healthy or degraded.", &[Media::json(BUSINESS_HEALTH)])]);

pub const DETAILED_OPERATION: Operation =
    health("getDetailedHealth", "All components in detail").responses(&by_status(&[Media::json(DETAILED)]));
