-- The table of the peers and of the bare COPY: the form of the server's first migration, with the
-- partitions of yesterday, today and tomorrow. A frozen copy, so that the baseline does not move
-- with the server's schema.
CREATE SCHEMA peer;
CREATE SEQUENCE peer.events_id_seq CACHE 1000;
CREATE TABLE peer.events (
    id          bigint      NOT NULL DEFAULT nextval('peer.events_id_seq'),
    event_id    uuid        NOT NULL,
    timestamp   timestamptz NOT NULL,
    ingested_at timestamptz NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    service     text        COLLATE "C" NOT NULL,
    message     text        NOT NULL,
    metadata    jsonb,
    PRIMARY KEY (event_id)
) PARTITION BY RANGE (event_id);
CREATE INDEX ON peer.events (service, timestamp);
CREATE TABLE peer.events_default PARTITION OF peer.events DEFAULT;
DO $$
DECLARE
    day timestamp;
    bound text[];
BEGIN
    FOR day IN SELECT generate_series(-1, 1) * interval '1 day' + date_trunc('day', now() AT TIME ZONE 'UTC') LOOP
        SELECT array_agg((lpad(to_hex(floor(extract(epoch FROM edge) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid)
        INTO bound FROM unnest(ARRAY[day, day + interval '1 day']) AS edge;
        EXECUTE format('CREATE TABLE peer.events_%s PARTITION OF peer.events FOR VALUES FROM (%L) TO (%L)',
            to_char(day, 'YYYYMMDD'), bound[1], bound[2]);
    END LOOP;
END $$;
