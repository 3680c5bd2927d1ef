//! The dashboard of the stored events: each of its queries runs as Grafana's role against the tables
//! of a real server. The test expands Grafana's macros and variables.

use std::fs;
use std::path::Path;

use sonic_rs::{JsonValueTrait, Value};

use crate::harness::events::{list, text};
use crate::harness::{Postgres, Server, event, until};

const DASHBOARD: &str = include_str!("../../docker/grafana/dashboards/aurore-stored-events.json");
/// The role as the compose file creates it, but for the line of psql that reads the password.
const ROLE: &str = include_str!("../../docker/postgres/grafana.sql");
const PROVISIONED: &str = include_str!("../../docker/grafana/provisioning/datasources/postgresql.yaml");

/// `$__timeFilter(COLUMN)` becomes a range of two hours, the variables their values.
fn expand(sql: &str) -> String {
    let mut expanded =
        sql.replace("${service:sqlstring}", "'shop','other'").replace("${search:sqlstring}", "'sold'");
    while let Some((before, rest)) = expanded.split_once("$__timeFilter(") {
        let (column, after) = rest.split_once(')').expect("a closing bracket");
        expanded =
            format!("{before}{column} BETWEEN now() - interval '2 h' AND now() + interval '1 h'{after}");
    }
    assert!(!expanded.contains('$'), "a macro or a variable that this test does not know: {expanded}");
    expanded
}

#[test]
fn every_query_of_the_dashboard_runs_as_its_role_and_finds_the_events() {
    let postgres = Postgres::start();
    let (read_password, role) = ROLE.split_once("CREATE ROLE").expect("the role is created");
    assert!(read_password.contains("\\getenv password GRAFANA_DATABASE_PASSWORD\n"));
    postgres.execute(&format!("CREATE ROLE{}", role.replace(":'password'", "'secret'")));
    let server = Server::start_on(&postgres, &[]);
    for (service, message) in [("shop", "a book is sold"), ("shop", "nothing"), ("unselected", "sold")] {
        server.client().post_json(event(service, message));
    }
    until("the events are stored", || server.metric("events_stored_total") == 3);
    postgres.execute(
        "INSERT INTO dead_events (event_id, timestamp, service, row, sqlstate, reason) \
         VALUES (gen_random_uuid(), now(), 'shop', '', '23514', 'a constraint')",
    );

    let dashboard: Value = sonic_rs::from_str(DASHBOARD).expect("the dashboard is JSON");
    let mut client = postgres.client();
    client.batch_execute("SET ROLE grafana").expect("the role is there");
    assert!(client.batch_execute("DELETE FROM events").is_err(), "the role only reads");
    let mut found = Vec::new();
    for panel in list(&dashboard["panels"]) {
        for target in list(&panel["targets"]) {
            assert_eq!(target["datasource"]["uid"].as_str(), Some("postgresql"));
            let sql = text(&target["rawSql"]);
            let rows = client.query(&expand(&sql), &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
            assert!(!rows.is_empty(), "{sql} finds nothing");
            if target["format"].as_str() == Some("time_series") {
                let columns: Vec<_> = rows[0].columns().iter().map(postgres::Column::name).collect();
                assert_eq!(columns, ["time", "metric", "value"], "Grafana names the series by `metric`");
            }
            found.push((text(&panel["title"]), rows));
        }
    }
    let rows = |title: &str| &found.iter().find(|(name, _)| name == title).expect("a panel").1;
    assert!((rows("Events")[0].get::<_, f64>(0) - 2.0).abs() < f64::EPSILON, "of the selected service");
    assert_eq!(rows("Latest Events").len(), 1, "with the text");
    assert_eq!(rows("Latest Events")[0].get::<_, String>("message"), "a book is sold");
    assert_eq!(rows("Latest Dead Letters").len(), 1);
    for variable in list(&dashboard["templating"]["list"]) {
        if variable["type"].as_str() == Some("query") {
            let sql = expand(&text(&variable["query"]));
            assert_eq!(client.query(&sql, &[]).expect("it runs").len(), 2, "two services");
        }
    }
}

#[test]
fn the_data_sources_of_the_dashboards_are_provisioned() {
    assert!(PROVISIONED.contains("\n    uid: postgresql\n") && PROVISIONED.contains("\n    user: grafana\n"));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docker/grafana/dashboards");
    let mut uids = Vec::new();
    for entry in fs::read_dir(folder).expect("it is there") {
        let file = fs::read_to_string(entry.expect("it can be read").path()).expect("it is text");
        let dashboard: Value = sonic_rs::from_str(&file).expect("a dashboard is JSON");
        uids.push(text(&dashboard["uid"]));
        for panel in list(&dashboard["panels"]).iter().filter(|panel| panel["type"].as_str() != Some("row")) {
            let source = (text(&panel["datasource"]["type"]), text(&panel["datasource"]["uid"]));
            let is_known = [("prometheus", "prometheus"), ("grafana-postgresql-datasource", "postgresql")]
                .contains(&(source.0.as_str(), source.1.as_str()));
            assert!(is_known, "{source:?}");
        }
    }
    uids.sort_unstable();
    assert_eq!(uids, ["aurore-events", "aurore-stored-events"]);
}
