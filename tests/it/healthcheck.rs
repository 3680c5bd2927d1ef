//! `aurore-events healthcheck`: the exit code says whether the server of these settings lives.

use std::fs;
use std::net::TcpListener;

use crate::harness::server::{ProgramOutput, run};
use crate::harness::temp::temp_dir;
use crate::harness::{Server, until};

/// No database answers there: the server lives, and is not ready.
const NO_DATABASE: (&str, &str) = ("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none");

fn check(settings: &[(&str, &str)], arguments: &[&str]) -> ProgramOutput {
    run(settings, &[&["healthcheck"], arguments].concat())
}

#[test]
fn healthcheck_exits_0_while_the_server_lives_and_1_when_it_is_gone() {
    let mut server = Server::start_unready(&[NO_DATABASE]);
    let port = server.address().port().to_string();
    // A proxy is for other machines.
    let settings =
        [("PORT", port.as_str()), ("HTTP_PROXY", "http://127.0.0.1:1"), ("http_proxy", "http://127.0.0.1:1")];
    let lives = check(&settings, &[]);
    assert_eq!(
        (lives.code, lives.stdout.as_str()),
        (Some(0), "{\"status\":\"alive\"}\n"),
        "{}",
        lives.stderr
    );
    server.kill();
    let gone = check(&settings, &[]);
    assert_eq!((gone.code, gone.stdout.as_str()), (Some(1), ""), "{}", gone.stderr);
    assert!(gone.stderr.contains(&format!("http://127.0.0.1:{port}/live")), "{}", gone.stderr);
}

#[test]
fn healthcheck_ready_exits_1_until_the_server_is_ready_and_names_the_reason() {
    let server = Server::start_unready(&[NO_DATABASE, ("BUFFER_MAX_SIZE", "1"), ("SPILL_MAX_BYTES", "0")]);
    let port = server.address().port().to_string();
    let settings = [("PORT", port.as_str())];
    until("the server is ready", || server.client().get("/ready").status == 200);
    assert_eq!(check(&settings, &["--ready"]).code, Some(0));
    server.client().post_json(crate::harness::event("s", "the only one"));
    until("the buffer is full", || server.client().get("/ready").status == 503);
    let full = check(&settings, &["--ready"]);
    assert_eq!(full.code, Some(1), "{}", full.stdout);
    assert!(full.stderr.contains("status 503") && full.stderr.contains("not ready"), "{}", full.stderr);
    assert_eq!(check(&settings, &[]).code, Some(0), "it lives");
}

#[test]
fn healthcheck_uses_tls_when_the_server_does() {
    let directory = temp_dir();
    let (certificate, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    let made = rcgen::generate_simple_self_signed(vec!["events.example".to_owned()]).unwrap();
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let tls = [("TLS_CERT", certificate.to_str().unwrap()), ("TLS_KEY", key.to_str().unwrap())];
    let server = Server::start_unready(&[NO_DATABASE, tls[0], tls[1]]);
    let port = server.address().port().to_string();
    let lives = check(&[("PORT", &port), tls[0], tls[1]], &[]);
    assert_eq!(lives.code, Some(0), "{}", lives.stderr);
    let plaintext = check(&[("PORT", &port)], &[]);
    assert_eq!(plaintext.code, Some(1), "a plaintext request to a TLS port is refused");
}

#[test]
fn healthcheck_exits_1_when_nothing_answers_or_the_port_is_unknown() {
    // It accepts connections into its backlog and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port().to_string();
    let unanswered = check(&[("PORT", &port)], &[]);
    assert_eq!(unanswered.code, Some(1), "{}", unanswered.stderr);
    let unknown = check(&[("PORT", "0")], &[]);
    assert_eq!(unknown.code, Some(1), "{}", unknown.stderr);
    assert!(unknown.stderr.contains("PORT is 0"), "{}", unknown.stderr);
}
