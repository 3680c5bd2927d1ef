//! Declares the routes of the server's own metrics, for the `OpenAPI` document.

use crate::http::openapi::PROBLEMS;
use crate::openapi::schema::{
    Named, Schema, count, date_time, named, number, object, one_of, required, text,
};
use crate::openapi::{Media, Operation, Response};

const METRICS_TAG: &str = "metrics";

pub const CONDITION: Schema =
    named(&Named { name: "Condition", schema: one_of(&["healthy", "degraded", "critical"]) });

pub const LEDGER: Schema = named(&Named {
    name: "Ledger",
    schema: object(&[
        required("received", count()),
        required("stored", count()),
        required("duplicate", count()),
        required("dead", count()),
        required("lost", count()),
        required("buffered", count()),
    ]),
});

/// The members of [`super::json`].
const SERVER_METRICS: Schema = named(&Named {
    name: "ServerMetrics",
    schema: object(&[
        required("size", count()),
        required("capacity", count()),
        required("bytes", count()),
        required("bytesCapacity", count()),
        required("spilledEvents", count()),
        required("spilledBytes", count()),
        required("spillCapacityBytes", count()),
        required("utilizationPercent", number()),
        required("totalEnqueued", count()),
        required("totalDropped", count()),
        required("dropRatePercent", number()),
        required("throughputPerSecond", number()),
        required("totalBatchesProcessed", count()),
        required("totalEventsProcessed", count()),
        required("totalInsertTimeMs", number()),
        required("totalProcessingTimeMs", number()),
        required("averageBatchProcessingTimeMs", number()),
        required("averageInsertTimeMs", number()),
        required("totalRetries", count()),
        required("healthStatus", CONDITION),
        required("lastEnqueueTime", date_time().or_null()),
        required("lastDrainTime", date_time().or_null()),
        required("timeSinceLastEnqueueMs", number().or_null()),
        required("timeSinceLastDrainMs", number().or_null()),
        required("ledger", LEDGER),
    ]),
});

pub const METRICS: Operation =
    Operation::new(METRICS_TAG, "getMetrics", "Metrics", PROBLEMS).responses(&[Response::new(
        200,
        "Metrics of the buffer and the writer as JSON; all metrics in Prometheus text format or OpenMetrics if \
         `Accept` prefers it.",
        &[
            Media::json(SERVER_METRICS),
            Media::new("text/plain", text()),
            Media::new("application/openmetrics-text", text()),
        ],
    )]);

pub const PROMETHEUS: Operation =
    Operation::new(METRICS_TAG, "getPrometheusMetrics", "All metrics, for Prometheus", PROBLEMS)
        .responses(&[Response::new(200, "Text format 0.0.4.", &[Media::new("text/plain", text())])]);
