-- Runs every form of statement that the server sends, in one transaction that is rolled back. If this script succeeds,
-- a server works with the cluster. It also runs on plain PostgreSQL, which verifies the statements themselves.
\set ON_ERROR_STOP on
BEGIN;
SET LOCAL lock_timeout = '2s';

\echo 'a batch, straight'
COPY events (event_id, timestamp, ingested_at, id, service, message, metadata) FROM STDIN;
0000000003e8700080000000000000aa	1970-01-01 00:00:01+00	1970-01-01 00:00:01+00	1000000000	check	first	{"k": 1}
\.
WITH new AS (
    SELECT service COLLATE "C" AS service, minute, count
    FROM unnest(ARRAY['check'], ARRAY['1970-01-01 00:00Z'::timestamptz], ARRAY[1::bigint]) AS new (service, minute, count)),
counted AS (
    INSERT INTO event_counts AS c (service, hour, count)
    SELECT service, date_trunc('hour', minute, 'UTC') AS hour, sum(count)::bigint FROM new GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT (service, hour) DO UPDATE SET count = c.count + excluded.count),
minutes AS (
    INSERT INTO event_minutes AS m (service, minute, count)
    SELECT coalesce(service, '') AS service, minute, sum(count)::bigint FROM new
    GROUP BY GROUPING SETS ((service, minute), (minute)) ORDER BY 1, 2
    ON CONFLICT (service, minute) DO UPDATE SET count = m.count + excluded.count)
SELECT 1;

\echo 'a batch of which some is stored'
CREATE TEMPORARY TABLE aurore_stage (event_id uuid, timestamp timestamptz, ingested_at timestamptz, id bigint, service text,
    message text, metadata jsonb) ON COMMIT DROP;
COPY aurore_stage (event_id, timestamp, ingested_at, id, service, message, metadata) FROM STDIN;
0000000003e8700080000000000000aa	1970-01-01 00:00:01+00	1970-01-01 00:00:01+00	1000000000	check	first	{"k": 1}
0000000003e9700080000000000000ab	1970-01-01 00:00:01+00	1970-01-01 00:00:01+00	1000000000	check	second	\N
\.
WITH stored AS (
    INSERT INTO events (event_id, timestamp, ingested_at, id, service, message, metadata)
    SELECT event_id, timestamp, ingested_at, id, service, message, metadata FROM aurore_stage ORDER BY event_id
    ON CONFLICT (event_id) DO NOTHING RETURNING service, timestamp)
SELECT service, date_trunc('minute', timestamp, 'UTC') AS minute, count(*) = 1 AS one_is_new FROM stored GROUP BY 1, 2;
WITH new AS (
    SELECT service COLLATE "C" AS service, minute, count
    FROM unnest(ARRAY['check'], ARRAY['1970-01-01 00:00Z'::timestamptz], ARRAY[1::bigint]) AS new (service, minute, count)),
counted AS (
    INSERT INTO event_counts AS c (service, hour, count)
    SELECT service, date_trunc('hour', minute, 'UTC') AS hour, sum(count)::bigint FROM new GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT (service, hour) DO UPDATE SET count = c.count + excluded.count),
minutes AS (
    INSERT INTO event_minutes AS m (service, minute, count)
    SELECT coalesce(service, '') AS service, minute, sum(count)::bigint FROM new
    GROUP BY GROUPING SETS ((service, minute), (minute)) ORDER BY 1, 2
    ON CONFLICT (service, minute) DO UPDATE SET count = m.count + excluded.count)
SELECT 1;

\echo 'a trial insert'
SAVEPOINT trial;
COPY events (event_id, timestamp, ingested_at, id, service, message, metadata) FROM STDIN;
0000000003e8800080000000000000ff	1970-01-01 00:00:01+00	1970-01-01 00:00:01+00	1000000000	check	trial	\N
\.
SET CONSTRAINTS ALL IMMEDIATE;
ROLLBACK TO SAVEPOINT trial;
SELECT service FROM event_counts WHERE count > 0 AND hour > (SELECT max(hour) FROM event_counts) - interval '1 day'
    GROUP BY service ORDER BY max(hour) DESC LIMIT 8;

\echo 'a dead letter'
-- With RETURNING, since without it Citus reports the number of rows sent, not of rows inserted.
WITH buried AS (
    INSERT INTO dead_events (event_id, timestamp, service, row, sqlstate, reason)
    SELECT * FROM unnest(ARRAY['0000000003ea700080000000000000ac', '0000000003ea700080000000000000ad']::uuid[], ARRAY[now(), now()],
        ARRAY['check', 'check'], ARRAY['\x00', '\x00']::bytea[], ARRAY['22000', '22000'], ARRAY['r', 'r'])
        AS new (event_id, timestamp, service, row, sqlstate, reason) ORDER BY 1
    ON CONFLICT (event_id) DO NOTHING RETURNING event_id)
SELECT count(*) = 2 AS both_are_new FROM buried;
SELECT event_id, row FROM dead_events WHERE event_id = ANY (ARRAY['0000000003ea700080000000000000ac']::uuid[]) ORDER BY event_id;
UPDATE dead_events SET sqlstate = '22001', reason = 's' WHERE event_id = '0000000003ea700080000000000000ac';
DELETE FROM dead_events WHERE event_id = ANY (ARRAY['0000000003ea700080000000000000ac']::uuid[]) RETURNING event_id;
DELETE FROM dead_events WHERE event_id = ANY (ARRAY(
    SELECT event_id FROM dead_events WHERE died_at < '1970-01-01 00:00Z' ORDER BY died_at LIMIT 1000));

\echo 'pages, totals, one event, stats'
SELECT event_id FROM events WHERE event_id >= '0000000003e800000000000000000000' AND event_id < '0000000007d000000000000000000000'
    AND timestamp >= '1970-01-01 00:00Z' AND timestamp < '1970-01-01 00:01Z' ORDER BY event_id DESC OFFSET 1 - 1 LIMIT 1;
SELECT event_id, timestamp, metadata::text FROM events
    WHERE event_id >= '0000000003e800000000000000000000' AND event_id < '0000000007d000000000000000000000' AND service = 'check'
    AND (timestamp, id, event_id) < ('1970-01-01 00:00:01Z', 1000000001, '0000000003e9700080000000000000ab')
    AND metadata @> ANY (ARRAY['{"k":1}']::jsonb[]) AND message ILIKE '%FIRST%' ESCAPE '!'
    ORDER BY timestamp DESC, id DESC, event_id DESC LIMIT 101;
SELECT 0 + (SELECT coalesce(sum(count), 0)::bigint FROM event_counts WHERE hour >= '1970-01-01 00:00Z' AND hour < '1970-01-01 01:00Z')
    - (SELECT count(*) FROM events WHERE event_id >= '0000000007d000000000000000000000' AND event_id < '0000000008d000000000000000000000') AS total;
SELECT CASE WHEN first.whole = first.counted AND last.whole = last.counted THEN last.part - first.part
    + (SELECT coalesce(sum(count), 0)::bigint FROM event_counts WHERE hour >= '1970-01-01 00:00Z' AND hour < '1970-01-01 00:00Z')
    + CASE WHEN now() < '1970-01-01 00:01Z' THEN 0 ELSE 0
        + (SELECT count(*) FROM events WHERE event_id >= '0000000003e800000000000000000000' AND event_id < '0000000007d000000000000000000000') END
    END = 2 AS both_are_counted
FROM (SELECT coalesce(sum(count), 0)::bigint AS whole,
        coalesce(sum(count) FILTER (WHERE minute < '1970-01-01 00:00Z'), 0)::bigint AS part,
        (SELECT coalesce(sum(count), 0)::bigint FROM event_counts WHERE hour = '1970-01-01 00:00Z') AS counted
        FROM event_minutes WHERE service = '' AND minute >= '1970-01-01 00:00Z' AND minute < '1970-01-01 01:00Z') AS first,
    (SELECT coalesce(sum(count), 0)::bigint AS whole,
        coalesce(sum(count) FILTER (WHERE minute < '1970-01-01 00:00Z'), 0)::bigint AS part,
        (SELECT coalesce(sum(count), 0)::bigint FROM event_counts WHERE hour = '1970-01-01 00:00Z') AS counted
        FROM event_minutes WHERE service = '' AND minute >= '1970-01-01 00:00Z' AND minute < '1970-01-01 01:00Z') AS last;
SELECT event_id FROM events WHERE event_id = '0000000003e8700080000000000000aa';
WITH sums AS (SELECT service, sum(count)::bigint AS events FROM event_counts GROUP BY service)
SELECT service, events, (SELECT sum(events)::bigint FROM sums) FROM sums ORDER BY events DESC, service LIMIT 50;

\echo 'the counts of an hour are put right'
UPDATE event_counts SET count = count + 7 WHERE service = 'check' AND hour = '1970-01-01 00:00Z';
WITH stored AS (
    SELECT service, count(*) AS events FROM events WHERE event_id >= '00000000000000000000000000000000'
    AND event_id < '00000036ee8000000000000000000000' AND timestamp >= '1970-01-01 00:00Z' AND timestamp < '1970-01-01 01:00Z' GROUP BY service),
counted AS (SELECT service, sum(count)::bigint AS count FROM event_counts
    WHERE hour >= '1970-01-01 00:00Z' AND hour < '1970-01-01 01:00Z' GROUP BY service),
different AS (
    SELECT service, coalesce(events, 0) AS events, coalesce(count, 0) AS count
    FROM stored FULL JOIN counted USING (service) WHERE coalesce(events, 0) <> coalesce(count, 0)),
mended AS (
    INSERT INTO event_counts AS c (service, hour, count)
    SELECT service, '1970-01-01 00:00Z'::timestamptz, events - count FROM different ORDER BY service
    ON CONFLICT (service, hour) DO UPDATE SET count = c.count + excluded.count)
SELECT service, events, count FROM different ORDER BY service;

\echo 'a look into the default partition'
SELECT (SELECT event_id FROM events_default ORDER BY event_id LIMIT 1),
    (SELECT count(*) FROM (SELECT event_id FROM events_default LIMIT 100000) AS found);

\echo 'a partition is made, filled from the default one, attached, taken out and dropped'
SELECT pg_advisory_xact_lock(1);
LOCK TABLE events IN SHARE UPDATE EXCLUSIVE MODE;
LOCK TABLE events_default IN ACCESS EXCLUSIVE MODE;
CREATE TABLE events_19700101 (LIKE events INCLUDING CONSTRAINTS INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING STORAGE);
WITH moved AS (DELETE FROM events_default WHERE event_id >= '00000000-0000-0000-0000-000000000000' AND event_id < '00000526-5c00-0000-0000-000000000000'
    RETURNING id, event_id, timestamp, ingested_at, created_at, service, message, metadata)
INSERT INTO events_19700101 (id, event_id, timestamp, ingested_at, created_at, service, message, metadata)
SELECT id, event_id, timestamp, ingested_at, created_at, service, message, metadata FROM moved;
ALTER TABLE events ATTACH PARTITION events_19700101
    FOR VALUES FROM ('00000000-0000-0000-0000-000000000000') TO ('00000526-5c00-0000-0000-000000000000');
WITH gone AS (DELETE FROM events WHERE event_id > '00000000-0000-0000-0000-000000000000' AND event_id <= '0000000003e8700080000000000000aa' RETURNING service, timestamp),
lowered AS (
    INSERT INTO event_counts AS c (service, hour, count)
    SELECT service, date_trunc('hour', timestamp, 'UTC') AS hour, -count(*) FROM gone GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT (service, hour) DO UPDATE SET count = c.count + excluded.count)
SELECT count(*) = 1 AS one_is_gone FROM gone;
LOCK TABLE ONLY events_19700101 IN ACCESS EXCLUSIVE MODE;
WITH gone AS (DELETE FROM event_counts WHERE hour >= '1970-01-01 00:00Z' AND hour < '1970-01-02 00:00Z' RETURNING count)
SELECT coalesce(sum(count), 0)::bigint AS dropped FROM gone;
DELETE FROM event_minutes WHERE minute < least(date_trunc('hour', '1970-01-02 00:00Z'::timestamptz, 'UTC'),
    date_trunc('hour', (SELECT min(minute) FROM event_minutes), 'UTC') + interval '1 hour');
-- One statement per message: Citus forwards the whole message to the workers for each statement that changes a table.
ALTER TABLE events DETACH PARTITION events_19700101;
ALTER TABLE events_19700101 RENAME TO events_19700101_retired;
DROP TABLE events_19700101_retired;
ROLLBACK;
\echo 'all of it works'
