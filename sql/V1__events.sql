-- The tables. Sizes and forms are checked at the edge; a constraint here would only check each event a second time.

-- Sequence and default instead of an identity: PostgreSQL 14 to 16 have no identity columns on partitioned tables.
-- A session takes a thousand numbers at once, so that neither the sequence's lock nor its WAL is paid for by row.
CREATE SEQUENCE events_id_seq CACHE 1000;

-- Collation C for the service: the index compares bytes, whatever the locale of the database.
CREATE TABLE events (
    id          bigint      NOT NULL DEFAULT nextval('events_id_seq'),
    event_id    uuid        NOT NULL,
    timestamp   timestamptz NOT NULL,
    ingested_at timestamptz NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    service     text        COLLATE "C" NOT NULL,
    message     text        NOT NULL,
    metadata    jsonb,
    PRIMARY KEY (event_id)
) PARTITION BY RANGE (event_id);

ALTER SEQUENCE events_id_seq OWNED BY events.id;

CREATE INDEX events_service_timestamp_idx ON events (service, timestamp);

-- Catches what has no partition of its own yet. The server empties it.
CREATE TABLE events_default PARTITION OF events DEFAULT;

-- How many events of a service lie in an hour (UTC), kept by the transaction that stores them.
-- Pages are left half empty because rows are updated in place, over and over.
CREATE TABLE event_counts (
    service text        COLLATE "C" NOT NULL,
    hour    timestamptz NOT NULL,
    count   bigint      NOT NULL,
    PRIMARY KEY (service, hour)
) WITH (fillfactor = 50);

CREATE INDEX event_counts_hour_idx ON event_counts (hour);

-- Events that were refused, with the encoded row, so that they can be sent again once the cause is gone.
CREATE TABLE dead_events (
    event_id  uuid        PRIMARY KEY,
    timestamp timestamptz NOT NULL,
    service   text        NOT NULL,
    row       bytea       NOT NULL,
    sqlstate  text        NOT NULL,
    reason    text        NOT NULL,
    died_at   timestamptz NOT NULL DEFAULT now()
);
