-- The role of Grafana's data source: it reads the tables that the server creates, and nothing else.
-- The image of PostgreSQL runs this in a new volume only; in an older one run it by hand, and
-- GRANT SELECT ON ALL TABLES IN SCHEMA public TO grafana.
\getenv password GRAFANA_DATABASE_PASSWORD
CREATE ROLE grafana LOGIN PASSWORD :'password';
-- A query of a panel may scan the events of its time: it ends instead of loading the database.
ALTER ROLE grafana SET statement_timeout = '15s';
ALTER DEFAULT PRIVILEGES FOR ROLE aurore IN SCHEMA public GRANT SELECT ON TABLES TO grafana;
