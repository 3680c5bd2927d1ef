//! Starting: what is wrong is said at once, and a machine without a database gets one.

use std::net::TcpListener;

use crate::harness::events::{id_of, ids_of};
use crate::harness::process::alive;
use crate::harness::server::{embedded_postmaster, run};
use crate::harness::{Postgres, Server, event, settle, until};

#[test]
fn wrong_settings_are_reported_together_and_end_the_start_with_2() {
    let ended = run(
        &[("BATCH_SIZE", "0"), ("BUFFER_MAX_SIZE", "many"), ("HTTP_ENGINE", "steam"), ("PORT", "70000")],
        &[],
    );
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    let said = ended.stderr.to_ascii_uppercase().replace('-', "_");
    for name in ["BATCH_SIZE", "BUFFER_MAX_SIZE", "HTTP_ENGINE", "PORT"] {
        assert!(said.contains(name), "{name} is not named in:\n{}", ended.stderr);
    }
    for arguments in [&["--no-such-flag"][..], &["no-such-command"], &["--batch-size", "-1"]] {
        let ended = run(&[], arguments);
        assert_eq!(ended.code, Some(2), "{arguments:?}: {}", ended.stderr);
    }
}

#[test]
fn help_documents_each_setting() {
    let ended = run(&[], &["--help"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for name in [
        "HOST",
        "PORT",
        "DATABASE_URL",
        "DATA_DIR",
        "HTTP_ENGINE",
        "BUFFER_MAX_SIZE",
        "BUFFER_MAX_BYTES",
        "BATCH_SIZE",
        "DRAIN_INTERVAL",
        "MAX_BODY_BYTES",
        "MAX_CONNECTIONS",
        "MAX_CLOCK_SKEW_MS",
        "RETENTION_DAYS",
        "DB_POOL_MAX",
        "CIRCUIT_BREAKER_FAILURE_THRESHOLD",
        "CIRCUIT_BREAKER_SUCCESS_THRESHOLD",
        "CIRCUIT_BREAKER_TIMEOUT_MS",
        "SHUTDOWN_TIMEOUT_MS",
    ] {
        let flag = format!("--{}", name.to_ascii_lowercase().replace('_', "-"));
        assert!(ended.stdout.contains(name), "{name} is not in:\n{}", ended.stdout);
        assert!(ended.stdout.contains(&flag), "{flag} is not in:\n{}", ended.stdout);
    }
}

#[test]
fn a_port_in_use_is_said_and_ends_the_start() {
    let postgres = Postgres::start();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let ended = run(&[("DATABASE_URL", &postgres.url()), ("PORT", &port)], &["serve"]);
    assert!(matches!(ended.code, Some(1 | 2)), "{:?}: {}", ended.code, ended.stderr);
    assert!(ended.stderr.contains(&port), "{}", ended.stderr);
    // Two servers do not share a port unawares either, though acceptors share theirs.
    let first = Server::on(&postgres, &[]);
    let port = first.address().port().to_string();
    let ended = run(&[("DATABASE_URL", &postgres.url()), ("PORT", &port)], &["serve"]);
    assert!(matches!(ended.code, Some(1 | 2)), "{:?}: {}", ended.code, ended.stderr);
}

#[test]
fn a_certificate_that_cannot_be_used_ends_the_start_with_a_line_that_names_it() {
    let url = ("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none");
    let ended = run(&[url, ("TLS_CERT", "/nowhere/cert.pem"), ("TLS_KEY", "/nowhere/key.pem")], &["serve"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("TLS_CERT /nowhere/cert.pem"), "{}", ended.stderr);
    let ended = run(&[url, ("TLS_KEY", "/nowhere/key.pem")], &["serve"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("TLS_CERT is not"), "{}", ended.stderr);
}

#[test]
fn a_database_that_comes_later_gets_what_was_taken_before() {
    let mut postgres = Postgres::start();
    postgres.stop_fast();
    let server = Server::on(&postgres, &[("CIRCUIT_BREAKER_TIMEOUT_MS", "100"), ("DRAIN_INTERVAL", "50")]);
    let batch: Vec<String> = (0..100).map(|_| event("s", "early")).collect();
    ids_of(&server.client().post_ndjson(&batch));
    postgres.start_again();
    settle(&server);
    assert_eq!(postgres.stored(), 100);
}

#[test]
fn without_a_database_url_the_server_keeps_a_cluster_of_its_own() {
    let mut server = Server::start(&[]);
    let id = id_of(&server.client().post_json(event("s", "kept")));
    settle(&server);
    let pid = embedded_postmaster(server.data_dir()).expect("the cluster lies in DATA_DIR/postgres");
    assert!(alive(pid));
    server.stop();
    assert!(!alive(pid), "nothing is left running");

    // Data stays, even after a kill that left the cluster no time to stop.
    server.start_again();
    until("it is found", || server.client().get(&format!("/events/{id}")).status == 200);
    server.kill();
    server.start_again();
    until("it is found", || server.client().get(&format!("/events/{id}")).status == 200);
    let pid = embedded_postmaster(server.data_dir()).expect("the cluster runs");
    server.stop();
    assert!(!alive(pid), "nothing is left running");
}
