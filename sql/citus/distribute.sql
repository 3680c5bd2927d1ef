-- Distributes the tables over the workers of a Citus cluster. Run it once, on the coordinator, in the database that
-- `aurore-events migrate` has prepared, before any server stores events:
--
--   aurore-events migrate && psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -v shards=32 -f sql/citus/distribute.sql
--   psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f sql/citus/check.sql
--
-- docs/storage.md gives the reasons for this distribution and the rejected alternatives.

CREATE EXTENSION IF NOT EXISTS citus;

-- Distributed by hash of the id, with each daily partition: a day is still one table to drop, and its shards lie on all
-- workers. A worker enforces the primary key alone, since equal ids map to the same shard.
SELECT create_distributed_table('events', 'event_id', colocate_with => 'none', shard_count => :shards);

-- Colocated with events: a replay moves rows within a worker.
SELECT create_distributed_table('dead_events', 'event_id', colocate_with => 'events');

-- A batch changes the counts of a few services. Distributed by service, the load is as even as that of the services, and
-- a worker enforces the unique key (service, hour) alone.
SELECT create_distributed_table('event_counts', 'service', colocate_with => 'none', shard_count => :shards);
SELECT create_distributed_table('event_minutes', 'service', colocate_with => 'event_counts');

-- A batch writes to all shards. With one connection per worker, which a session keeps, 32 shards cost a ninth of the CPU
-- of one connection per shard, since Citus closes all but one of those after each transaction. Applies to new sessions.
SELECT format('ALTER DATABASE %I SET citus.max_adaptive_executor_pool_size = 1', current_database()) \gexec

-- retention_runs and refinery_schema_history hold a few rows and stay on the coordinator.
