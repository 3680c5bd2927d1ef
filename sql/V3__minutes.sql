-- How many events of a service lie in a minute (UTC), and of all services under the name '', which no service has. It makes
-- totals quick whose time begins or ends within a busy hour, and nothing rests on it: where the minutes of an hour do
-- not add up to event_counts, as in hours from before this table, the events themselves are counted.
-- So a table of that name that is left over does no harm.
CREATE TABLE IF NOT EXISTS event_minutes (
    service text        COLLATE "C" NOT NULL,
    minute  timestamptz NOT NULL,
    count   bigint      NOT NULL,
    PRIMARY KEY (service, minute)
) WITH (fillfactor = 50);

-- For retention.
CREATE INDEX IF NOT EXISTS event_minutes_minute_idx ON event_minutes (minute);
