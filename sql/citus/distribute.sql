-- Spreads the tables over the workers of a Citus cluster. Run once, on the coordinator, in the database that
-- `aurore-events migrate` has prepared, before servers store into it:
--
--   aurore-events migrate && psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -v shards=32 -f sql/citus/distribute.sql
--   psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f sql/citus/check.sql
--
-- docs/storage.md says why the tables are spread as they are, and what was tried.

CREATE EXTENSION IF NOT EXISTS citus;

-- By hash of the id, and each day's partition with it: a day is still one table to drop, and its shards are
-- spread over all workers. The primary key holds on a worker alone, since equal ids have equal shards.
SELECT create_distributed_table('events', 'event_id', colocate_with => 'none', shard_count => :shards);

-- Beside the events they might have been: what is replayed moves within a worker.
SELECT create_distributed_table('dead_events', 'event_id', colocate_with => 'events');

-- A batch changes the counts of a few services: by service they are spread as evenly as services are, and the one
-- unique key, (service, hour), holds on a worker alone.
SELECT create_distributed_table('event_counts', 'service', colocate_with => 'none', shard_count => :shards);
SELECT create_distributed_table('event_minutes', 'service', colocate_with => 'event_counts');

-- A batch goes to all shards. Over one connection a worker, which a session keeps, 32 of them take a ninth of the CPU that
-- they take over a connection each, all but one of which Citus closes after each transaction. For sessions that begin later.
SELECT format('ALTER DATABASE %I SET citus.max_adaptive_executor_pool_size = 1', current_database()) \gexec

-- retention_runs and refinery_schema_history are a few rows, which only the coordinator has.
