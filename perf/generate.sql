-- Inserts :rows events, evenly over the :days days up to now, of 20 services, in the form that the
-- server stores: an id begins with the milliseconds of its event, and event_counts agrees. The
-- partitions must exist. One statement per piece (:piece of :pieces, from 0) bounds the size of a
-- transaction.
SET synchronous_commit = off;
SET jit = off;
INSERT INTO events (event_id, timestamp, ingested_at, service, message, metadata)
SELECT (lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(chance, 14, 3) || substr(chance, 17))::uuid,
       at,
       at + interval '3 ms',
       'service-' || n % 20,
       'payment accepted in ' || n % 400 || ' ms for order ' || lpad((n * 7 % 1000)::text, 3, '0') || ' of shop ' || n % 50,
       jsonb_build_object(
           'region', (ARRAY['eu-west-1', 'eu-north-1', 'us-east-1', 'ap-south-1'])[1 + (n / 20) % 4],
           'attempt', 1 + n % 3,
           'customer', (n * 13 / 20) % 1000,
           'trace', substr(chance, 1, 32))
FROM (
    SELECT n,
           :'until'::timestamptz - make_interval(secs => (:rows - n) * (:days * 86400.0 / :rows)) AS at,
           replace(gen_random_uuid()::text, '-', '') AS chance
    FROM generate_series(:rows::bigint * :piece / :pieces, :rows::bigint * (:piece + 1) / :pieces - 1) AS n
) AS made;
