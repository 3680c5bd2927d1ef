//! The start: errors are reported at once, and without a database the server runs an embedded
//! cluster.

use std::net::TcpListener;

use crate::harness::events::{id_of, ids_of};
use crate::harness::process::is_alive;
use crate::harness::server::{embedded_postmaster, run};
use crate::harness::{Postgres, Server, event, until, wait_for_drain};

#[test]
fn invalid_settings_are_reported_together_with_exit_code_2() {
    let ended = run(
        &[("BATCH_SIZE", "0"), ("BUFFER_MAX_SIZE", "many"), ("HTTP_ENGINE", "steam"), ("PORT", "70000")],
        &[],
    );
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    let messages = ended.stderr.to_ascii_uppercase().replace('-', "_");
    for name in ["BATCH_SIZE", "BUFFER_MAX_SIZE", "HTTP_ENGINE", "PORT"] {
        assert!(messages.contains(name), "{name} is not named in:\n{}", ended.stderr);
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
fn a_port_in_use_fails_the_start_with_a_reason() {
    let postgres = Postgres::start();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let ended = run(&[("DATABASE_URL", &postgres.url()), ("PORT", &port)], &["serve"]);
    assert!(matches!(ended.code, Some(1 | 2)), "{:?}: {}", ended.code, ended.stderr);
    assert!(ended.stderr.contains(&port), "{}", ended.stderr);
    // Two servers must not share a port, although the acceptors of one server do (SO_REUSEPORT).
    let first = Server::start_on(&postgres, &[]);
    let port = first.address().port().to_string();
    let ended = run(&[("DATABASE_URL", &postgres.url()), ("PORT", &port)], &["serve"]);
    assert!(matches!(ended.code, Some(1 | 2)), "{:?}: {}", ended.code, ended.stderr);
}

#[test]
fn an_unusable_certificate_fails_the_start_and_is_named() {
    let url = ("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none");
    let ended = run(&[url, ("TLS_CERT", "/nowhere/cert.pem"), ("TLS_KEY", "/nowhere/key.pem")], &["serve"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("TLS_CERT /nowhere/cert.pem"), "{}", ended.stderr);
    let ended = run(&[url, ("TLS_KEY", "/nowhere/key.pem")], &["serve"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("TLS_CERT is not"), "{}", ended.stderr);
}

#[test]
fn check_config_and_serve_refuse_the_same_settings_with_the_same_message() {
    let url = "postgres://u:hunter2@127.0.0.1:1/none";
    let with = |query: &str| format!("{url}?{query}");
    for (settings, message) in [
        (vec![("DATABASE_URL", with("pgbouncer=true"))], "pgbouncer is a parameter of another driver"),
        (vec![("DATABASE_URL", with("schema=public"))], "options=-csearch_path"),
        (vec![("DATABASE_URL", with("gssencmode=require"))], "gssencmode must be"),
        (vec![("DATABASE_URL", with("sslcert=x"))], "sslcert is not supported"),
        (vec![("DATABASE_URL", with("colour=hunter2"))], "parameter 1 is unknown"),
        (vec![("DATABASE_URL", with("sslmode=maybe"))], "sslmode must be"),
        (vec![("DATABASE_URL", with("sslmode=verify-full&sslrootcert=/nowhere/ca.pem"))], "/nowhere/ca.pem"),
        (vec![("DATABASE_URL", "mysql://hunter2@db/x".to_owned())], "neither"),
        (
            vec![("DATABASE_URL", url.to_owned()), ("AUTH_TOKENS_FILE", "/nowhere/tokens".to_owned())],
            "/nowhere/tokens",
        ),
        (
            vec![
                ("DATABASE_URL", url.to_owned()),
                ("TLS_CERT", "/nowhere/cert.pem".to_owned()),
                ("TLS_KEY", "/nowhere/key.pem".to_owned()),
            ],
            "TLS_CERT /nowhere/cert.pem",
        ),
        (
            vec![
                ("DATABASE_URL", with("schema=public")),
                ("AUTH_TOKENS_FILE", "/nowhere/tokens".to_owned()),
                ("LOG_FORMAT", "logfmt".to_owned()),
            ],
            "/nowhere/tokens",
        ),
    ] {
        let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        for command in ["check-config", "serve"] {
            let ended = run(&settings, &[command]);
            assert_eq!(ended.code, Some(2), "{command} with {settings:?}: {}", ended.stderr);
            assert!(ended.stderr.contains(message), "{command} with {settings:?}: {}", ended.stderr);
            assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
            assert!(!ended.stdout.ends_with("\nok\n"), "{}", ended.stdout);
            if settings.len() == 3 && settings[1].0 == "AUTH_TOKENS_FILE" {
                assert!(ended.stderr.contains("schema"), "all errors together: {}", ended.stderr);
            }
        }
    }
}

#[test]
fn check_config_and_serve_accept_the_same_database_url() {
    let postgres = Postgres::start();
    let url = format!(
        "{}?sslmode=allow&gssencmode=prefer&channel_binding=prefer&application_name=mine&connect_timeout=7\
         &target_session_attrs=primary&options=-cwork_mem%3D5MB&keepalives_count=4&tcp_user_timeout=9000&krbsrvname=x",
        postgres.url()
    );
    let checked = run(&[("DATABASE_URL", &url)], &["check-config"]);
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);
    assert!(checked.stdout.ends_with("\nok\n"), "{}", checked.stdout);
    let server = Server::start(&[("DATABASE_URL", &url)]);
    id_of(&server.client().post_json(event("s", "m")));
    wait_for_drain(&server);
    for warning in ["sslmode=allow is treated as prefer", "krbsrvname has no effect"] {
        assert!(checked.stderr.contains(warning), "{}", checked.stderr);
        assert!(server.log().contains(warning), "{}", server.log());
    }
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mine'";
    assert!(postgres.value::<i64>(sessions) > 0);
}

#[test]
fn a_database_that_is_not_utf8_is_named_and_no_event_is_lost() {
    let postgres = Postgres::start();
    let url = format!("postgresql://aurore@127.0.0.1:{}/other", postgres.port());
    for encoding in ["LATIN1", "SQL_ASCII"] {
        postgres.execute(&format!(
            "CREATE DATABASE other OWNER aurore ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
        ));
        let named = format!("is {encoding}; it must be UTF8");
        let migrated = run(&[("DATABASE_URL", &url)], &["migrate"]);
        assert_eq!(migrated.code, Some(1), "{}", migrated.stderr);
        assert!(migrated.stderr.contains(&named), "{}", migrated.stderr);

        let server = Server::start(&[
            ("DATABASE_URL", &url),
            ("CIRCUIT_BREAKER_TIMEOUT_MS", "100"),
            ("DRAIN_INTERVAL", "50"),
        ]);
        until("the encoding is named", || server.log().contains(&named));
        id_of(&server.client().post_json(event("s", "日本")));
        id_of(&server.client().post_json(event("s", "m").replace('}', r#","metadata":{"k":"\u65e5"}}"#)));
        // The operator replaces the database.
        postgres.execute("DROP DATABASE other WITH (FORCE)");
        postgres.execute("CREATE DATABASE other OWNER aurore ENCODING 'UTF8' TEMPLATE template0");
        until("both events are stored", || server.metric("events_stored_total") == 2);
        assert_eq!(server.metric("events_dead_total"), 0);
        drop(server);
        postgres.execute("DROP DATABASE other WITH (FORCE)");
    }
}

#[test]
fn events_accepted_before_the_database_is_up_are_stored() {
    let mut postgres = Postgres::start();
    postgres.stop_fast();
    let server =
        Server::start_on(&postgres, &[("CIRCUIT_BREAKER_TIMEOUT_MS", "100"), ("DRAIN_INTERVAL", "50")]);
    let batch: Vec<String> = (0..100).map(|_| event("s", "early")).collect();
    ids_of(&server.client().post_ndjson(&batch));
    postgres.restart();
    wait_for_drain(&server);
    assert_eq!(postgres.stored(), 100);
}

#[test]
fn without_database_url_the_server_runs_an_embedded_cluster() {
    let mut server = Server::start(&[]);
    let id = id_of(&server.client().post_json(event("s", "kept")));
    wait_for_drain(&server);
    let pid = embedded_postmaster(server.data_dir()).expect("the cluster is in DATA_DIR/postgres");
    assert!(is_alive(pid));
    server.stop();
    assert!(!is_alive(pid), "no process is left running");

    // The data survives a kill that gave the cluster no time to stop.
    server.restart();
    until("it is found", || server.client().get(&format!("/events/{id}")).status == 200);
    server.kill();
    server.restart();
    until("it is found", || server.client().get(&format!("/events/{id}")).status == 200);
    let pid = embedded_postmaster(server.data_dir()).expect("the cluster runs");
    server.stop();
    assert!(!is_alive(pid), "no process is left running");
}
