-- What each sweep removed. The numbers grow with every step, in its transaction: those of a sweep that was interrupted
-- (finished_at is null) are true too. The server keeps the latest thousand.
CREATE TABLE retention_runs (
    id                 bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    started_at         timestamptz NOT NULL DEFAULT now(),
    finished_at        timestamptz,
    -- Events before this time were to go.
    edge               timestamptz NOT NULL,
    partitions_dropped bigint      NOT NULL DEFAULT 0,
    -- In those partitions, as event_counts had it.
    events_dropped     bigint      NOT NULL DEFAULT 0,
    -- Row by row.
    events_deleted     bigint      NOT NULL DEFAULT 0,
    dead_deleted       bigint      NOT NULL DEFAULT 0,
    error              text
);

CREATE INDEX dead_events_died_at_idx ON dead_events (died_at);
