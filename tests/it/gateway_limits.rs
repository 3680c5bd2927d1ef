//! A push of one client costs the others little: long ones occupy no acceptor, keys and deletions
//! belong to the token.

use std::fmt::Write as _;
use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::harness::client::{JSON, request};
use crate::harness::temp::temp_dir;
use crate::harness::{Client, TestServer, create_token};

/// 3 MB of text that compresses about as well as real pages.
fn long_text() -> Vec<u8> {
    let mut text = String::new();
    for nth in 0_u64..10_000 {
        let noise = nth.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        writeln!(text, "long_family{{nth=\"{nth}\",noise=\"{noise:016x}\",pad=\"{:0240}\"}} {nth}", 0)
            .expect("it fits");
    }
    text.into_bytes()
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).expect("a vector takes all");
    encoder.finish().expect("a vector takes all")
}

#[test]
fn a_long_push_delays_no_other_request_and_is_durable() {
    let mut test = TestServer::start(&[("ACCEPTORS", "1")]);
    let body = long_text();
    assert!(body.len() > 2_900_000);
    let headers = [("Content-Encoding", "gzip"), ("Durability", "synced")];
    let body = gzip(&body);
    let (mut long, mut short) = (test.server.client(), test.server.client());
    for method in ["PUT", "PUT", "POST"] {
        long.send(&request(method, "/metrics/job/long", &headers, &body));
        // All bytes are sent, so that the only acceptor has the request, or gets it together with
        // this one.
        assert_eq!(short.get("/live").status, 200);
        let metric = r#"{"metrics":[{"name":"short_total","type":"counter","value":1}]}"#;
        let push = request("POST", "/metrics/push", &[("Content-Type", JSON)], metric.as_bytes());
        assert_eq!(short.get("/live").status, 200);
        assert!(!long.has_answered(), "the long push was handled before the short requests");
        let reply = long.reply();
        assert_eq!((reply.status, reply.header("Durability")), (200, Some("synced")), "{}", reply.text());
        assert_eq!(short.exchange(&push).status, 202);
    }
    test.server.kill();
    test.server.restart();
    let page = test.server.client().get("/metrics/pushed").text();
    assert_eq!(page.lines().filter(|line| line.starts_with("long_family{")).count(), 10_000);
    // Errors of long pushes are those of short ones.
    let mut client = test.server.client();
    let refused = client.exchange(&request("PUT", "/metrics/job/long", &headers, &gzip(b"a x\n")));
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("expected float as value"), "{}", refused.text());
    let labels = (0..40_000).fold(String::new(), |labels, nth| labels + &format!("l{nth}=\"\","));
    let refused =
        client.exchange(&request("PUT", "/metrics/job/a", &[], format!("a{{{labels}}} 1\n").as_bytes()));
    assert!(refused.text().contains("more than 64 labels of metric \"a\""), "{}", refused.text());
    let unknown = (0..40_000).fold(String::new(), |fields, nth| fields + &format!("\"u{nth}\":1,"));
    let push = format!("{{\"metrics\":[{{{unknown}\"name\":\"a\"}}]}}");
    let refused =
        client.exchange(&request("POST", "/metrics/push", &[("Content-Type", JSON)], push.as_bytes()));
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains(r#""field":"u0","detail":"is not a field of a metric""#));
    test.server.stop();
}

/// A server with these tokens: name, scopes, services. Returns the tokens.
fn with_tokens(tokens: &[(&str, &str, &str)]) -> (TestServer, Vec<String>, tempfile::TempDir) {
    let directory = temp_dir();
    let file = directory.path().join("tokens");
    let (mut lines, mut created) = (String::new(), Vec::new());
    for (name, scopes, services) in tokens {
        let (token, line) = create_token(name, scopes, &[services]);
        created.push(token);
        writeln!(lines, "{line}").expect("it fits");
    }
    std::fs::write(&file, lines).expect("a file can be written");
    let test = TestServer::start(&[("AUTH_TOKENS_FILE", &file.display().to_string())]);
    (test, created, directory)
}

fn ask(
    client: &mut Client,
    token: &str,
    (method, path): (&str, &str),
    fields: &[(&str, &str)],
    body: &str,
) -> (u16, String) {
    let bearer = format!("Bearer {token}");
    let headers = [&[("Authorization", bearer.as_str()), ("Content-Type", JSON)][..], fields].concat();
    let reply = client.exchange(&request(method, path, &headers, body.as_bytes()));
    (reply.status, reply.text())
}

#[test]
fn an_idempotency_key_belongs_to_its_token() {
    let (test, tokens, _directory) =
        with_tokens(&[("one", "ingest", ""), ("other", "ingest", ""), ("reader", "metrics", "")]);
    let client = &mut test.server.client();
    let push = r#"{"metrics":[{"name":"c_total","type":"counter","value":1}]}"#;
    let mut send = |token: &str| {
        let (status, answer) =
            ask(client, token, ("POST", "/metrics/push"), &[("Idempotency-Key", "k")], push);
        assert_eq!(status, 202, "{answer}");
        answer.contains("\"repeated\":true")
    };
    assert!(!send(&tokens[0]));
    assert!(!send(&tokens[1]), "the same key of another client is another key");
    assert!(send(&tokens[0]) && send(&tokens[1]));
    let (_, page) = ask(client, &tokens[2], ("GET", "/metrics/pushed"), &[], "");
    assert!(page.contains("c_total 2\n"), "{page}");
}

#[test]
fn groups_are_deleted_by_a_part_of_their_labels() {
    let (mut test, tokens, _directory) =
        with_tokens(&[("root", "admin", ""), ("shop", "admin", "shop"), ("in", "ingest", "")]);
    let client = &mut test.server.client();
    let (root, shop) = (tokens[0].as_str(), tokens[1].as_str());
    for group in
        ["shop/instance/1", "shop/instance/2", "shop/U__a_2e_b/x/instance/1", "other/instance/1", "other"]
    {
        let path = format!("/metrics/job/{group}");
        assert_eq!(
            ask(client, root, ("PUT", &path), &[("Durability", "written")], "x 1\n").0,
            200,
            "{group}"
        );
    }
    let mut delete = |token: &str, query: &str| {
        ask(client, token, ("DELETE", &format!("/api/v1/groups{query}")), &[("Durability", "written")], "")
    };
    for query in ["", "?", "?instance=", "?instance=%zz"] {
        assert_eq!(delete(root, query).0, 400, "{query}");
    }
    let many = (0..70).fold("?a=1".to_owned(), |query, nth| query + &format!("&l{nth}=1"));
    assert_eq!(delete(root, &many).0, 400);
    assert_eq!(delete(&tokens[2], "?instance=1").0, 403);
    assert_eq!(delete(shop, "?instance=1").0, 403);
    assert_eq!(delete(shop, "?job=other").0, 403);
    assert_eq!(delete(root, "?instance=3"), (200, "{\"deleted\":0}".to_owned()));
    assert_eq!(delete(shop, "?job=shop&a.b=x"), (200, "{\"deleted\":1}".to_owned()));
    assert_eq!(delete(root, "?instance=1"), (200, "{\"deleted\":2}".to_owned()));
    // An empty value stands for an absent label.
    assert_eq!(delete(root, "?job=other&instance="), (200, "{\"deleted\":1}".to_owned()));
    test.server.kill();
    test.server.restart();
    let (_, page) = ask(&mut test.server.client(), root, ("GET", "/metrics/pushed"), &[], "");
    let left: Vec<_> = page.lines().filter(|line| line.starts_with("x{")).collect();
    assert_eq!(left, ["x{instance=\"2\",job=\"shop\"} 1"]);
}

#[test]
fn an_admin_token_of_one_service_deletes_only_its_series() {
    let (test, tokens, _directory) = with_tokens(&[("root", "admin", ""), ("shop", "admin", "shop")]);
    let client = &mut test.server.client();
    let (root, shop) = (tokens[0].as_str(), tokens[1].as_str());
    let series = |job: &str| format!(r#"{{"name":"m","type":"gauge","value":1,"labels":{{"job":"{job}"}}}}"#);
    let push = format!("{{\"metrics\":[{},{}]}}", series("shop"), series("other"));
    assert_eq!(ask(client, root, ("POST", "/metrics/push"), &[], &push).0, 202);
    for path in
        ["/metrics/pushed?name=m", "/metrics/pushed?name=m&job=other", "/metrics/pushed?name=m&instance=shop"]
    {
        assert_eq!(ask(client, shop, ("DELETE", path), &[], "").0, 403, "{path}");
    }
    assert_eq!(ask(client, shop, ("PUT", "/api/v1/admin/wipe"), &[], "").0, 403);
    let (_, page) = ask(client, root, ("GET", "/metrics/pushed"), &[], "");
    assert!(page.contains("m{job=\"other\"} 1\n") && page.contains("m{job=\"shop\"} 1\n"), "{page}");
    let deleted = ask(client, shop, ("DELETE", "/metrics/pushed?name=m&job=shop"), &[], "");
    assert_eq!(deleted, (200, "{\"deleted\":1}".to_owned()));
    assert_eq!(ask(client, root, ("PUT", "/api/v1/admin/wipe"), &[], "").0, 202);
    let (_, page) = ask(client, root, ("GET", "/metrics/pushed"), &[], "");
    assert_eq!(page, "");
}
