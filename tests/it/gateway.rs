//! The guarantees for pushed metrics: each push counts once, none is lost at the acknowledged
//! level, and none breaks the scrape.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::harness::client::{JSON, request};
use crate::harness::{Client, Reply, Server, TestServer, create_token, until};

#[track_caller]
fn push_with(client: &mut Client, headers: &[(&str, &str)], metrics: &str) -> Reply {
    let body = format!("{{\"metrics\":[{metrics}]}}");
    client.exchange(&request("POST", "/metrics/push", headers, body.as_bytes()))
}

#[track_caller]
fn push(client: &mut Client, metrics: &str) -> Reply {
    push_with(client, &[("Content-Type", JSON)], metrics)
}

#[track_caller]
fn put(client: &mut Client, path: &str, body: &str) -> Reply {
    client.exchange(&request("PUT", &format!("/metrics/job/{path}"), &[], body.as_bytes()))
}

fn pushed_page(client: &mut Client) -> String {
    let reply = client.get("/metrics/pushed");
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    reply.text()
}

/// The value of a series on the page.
fn value(page: &str, series: &str) -> Option<f64> {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    line.parse().ok()
}

#[test]
fn counters_add_up_gauges_keep_the_last_value_and_histograms_merge() {
    let test = TestServer::start(&[]);
    let client = &mut test.server.client();
    let first = push(
        client,
        r#"{"name":"clicks_total","type":"counter","value":2,"labels":{"page":"/","empty":""},"help":"Clicks."},
           {"name":"temp","type":"gauge","value":1.5},
           {"name":"took","type":"histogram","value":0.3,"bounds":[0.1,0.5]},
           {"name":"size","type":"histogram","buckets":{"1":2,"+Inf":3},"sum":7}"#,
    );
    assert_eq!((first.status, first.text().as_str()), (202, r#"{"accepted":4,"rejected":0,"errors":[]}"#));
    assert_eq!(first.header("durability"), Some("memory"));
    let second = push(
        client,
        r#"{"name":"clicks_total","type":"counter","value":3,"labels":{"page":"/"}},
           {"name":"clicks_total","type":"counter","value":1,"labels":{"page":"/"}},
           {"name":"temp","type":"gauge","value":-1},{"name":"took","type":"histogram","value":9},
           {"name":"size","type":"histogram","buckets":{"1":1},"sum":1,"count":1}"#,
    );
    assert_eq!(second.status, 202, "{}", second.text());
    assert_eq!(
        pushed_page(client),
        "# HELP clicks_total Clicks.\n# TYPE clicks_total counter\nclicks_total{page=\"/\"} 6\n\
         # TYPE size histogram\nsize_bucket{le=\"1\"} 3\nsize_bucket{le=\"+Inf\"} 4\nsize_sum 8\nsize_count 4\n\
         # TYPE temp gauge\ntemp -1\n\
         # TYPE took histogram\ntook_bucket{le=\"0.1\"} 0\ntook_bucket{le=\"0.5\"} 1\ntook_bucket{le=\"+Inf\"} 2\n\
         took_sum 9.3\ntook_count 2\n"
    );
    let accept = [("Accept", "application/openmetrics-text; version=1.0.0")];
    let open = client.exchange(&request("GET", "/metrics/pushed", &accept, b""));
    assert_eq!(
        open.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    let open = open.text();
    assert!(open.contains("# TYPE clicks counter\nclicks_total{page=\"/\"} 6\n"), "{open}");
    assert!(open.contains("size_bucket{le=\"1.0\"} 3\n") && open.ends_with("# EOF\n"), "{open}");
    // With the Accept header of Prometheus: histograms keep their series.
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let prometheus = client.exchange(&request("GET", "/metrics/pushed", &[("Accept", accept)], b""));
    assert_eq!(prometheus.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
}

#[test]
fn utf8_names_are_scraped_as_they_are_or_escaped_and_survive_a_kill() {
    let mut test = TestServer::start(&[("DURABILITY", "written")]);
    let client = &mut test.server.client();
    assert_eq!(
        put(
            client,
            "a/U__team_2e_name/x",
            "# TYPE \"disk.free\" gauge\n{\"disk.free\",\"mount point\"=\"/\"} 3\n"
        )
        .status,
        200
    );
    let metric = r#"{"name":"http.hits","type":"counter","value":1,"labels":{"url.path":"/"}}"#;
    assert_eq!(push(client, metric).status, 202);
    let quoted = [
        "# TYPE \"disk.free\" gauge",
        "{\"disk.free\",instance=\"\",job=\"a\",\"mount point\"=\"/\",\"team.name\"=\"x\"} 3",
        "{\"http.hits\",\"url.path\"=\"/\"} 1",
    ];
    let escaped = [
        "# TYPE U__disk_2e_free gauge",
        "U__disk_2e_free{instance=\"\",job=\"a\",U__mount_20_point=\"/\",U__team_2e_name=\"x\"} 3",
        "U__http_2e_hits{U__url_2e_path=\"/\"} 1",
    ];
    let check = |client: &mut Client| {
        for (accept, kind, lines) in [
            (
                "text/plain;version=1.0.0;escaping=allow-utf-8",
                "text/plain; version=1.0.0; charset=utf-8; escaping=allow-utf-8",
                quoted,
            ),
            ("text/plain;version=0.0.4", "text/plain; version=0.0.4; charset=utf-8", escaped),
        ] {
            let reply = client.exchange(&request("GET", "/metrics/pushed", &[("Accept", accept)], b""));
            assert_eq!(reply.header("content-type"), Some(kind));
            let page = reply.text();
            assert!(lines.iter().all(|line| page.lines().any(|found| found == *line)), "{page}");
        }
        let listed = client.get("/api/v1/metrics").text();
        assert!(listed.contains(r#""disk.free":{"#) && listed.contains(r#""team.name":"x""#), "{listed}");
    };
    check(client);
    test.server.kill();
    test.server.restart();
    let client = &mut test.server.client();
    check(client);
    assert_eq!(
        client.exchange(&request("DELETE", "/metrics/pushed?name=http.hits&url.path=/", &[], b"")).text(),
        r#"{"deleted":1}"#
    );
    assert_eq!(client.exchange(&request("DELETE", "/metrics/job/a/U__team_2e_name/x", &[], b"")).status, 202);
    assert_eq!(pushed_page(client), "");
}

#[test]
fn an_invalid_metric_is_reported_and_affects_no_other() {
    let test = TestServer::start(&[("CORS_ORIGINS", "https://app.example")]);
    let client = &mut test.server.client();
    let reply = push(
        client,
        r#"{"name":"good_total","type":"counter","value":1},
           {"name":"good_total","type":"gauge","value":1},
           {"name":"U__bad","type":"counter","value":-1,"colour":1},
           {"type":"histogram","labels":{"le":"1","__x":"y","n":3}},
           {"name":"buffer_size","type":"guage","value":1},
           {"name":"push_time_seconds","type":"gauge","value":1},7"#,
    );
    assert_eq!(reply.status, 202);
    let reply_text = reply.text();
    assert!(reply_text.starts_with(r#"{"accepted":1,"rejected":6,"errors":["#), "{reply_text}");
    for error in [
        r#"{"index":1,"field":"type","detail":"metric good_total is already a counter and cannot be a gauge"}"#,
        r#"{"index":2,"field":"colour","detail":"is not a field of a metric"}"#,
        r#"{"index":2,"field":"name","detail":"must not be empty and must not begin with U__"}"#,
        r#"{"index":2,"field":"value","detail":"of a counter must not be negative"#,
        r#"{"index":3,"field":"name","detail":"is required"}"#,
        r#"{"index":3,"field":"labels.le","detail":"is reserved"}"#,
        r#"{"index":3,"field":"labels.__x","detail":"is reserved"}"#,
        r#"{"index":3,"field":"labels.n","detail":"must be a string"}"#,
        r#"{"index":4,"field":"type","detail":"must be"#,
        r#"{"index":5,"field":"name","detail":"push_time_seconds is a metric that the server adds"#,
        r#"{"index":6,"field":"metrics","detail":"a metric must be an object"}"#,
    ] {
        assert!(reply_text.contains(error), "{error} in {reply_text}");
    }
    let bad = push(client, r#"{"name":"x"}"#);
    assert_eq!((bad.status, bad.header("content-type")), (400, Some("application/problem+json")));
    for (body, status) in [
        ("{}", 400),
        ("[]", 400),
        ("{\"metrics\":[]}", 400),
        ("{\"metrics\":[}", 400),
        ("{\"metrics\":[1],\"x\":1}", 400),
    ] {
        let reply =
            client.exchange(&request("POST", "/metrics/push", &[("Content-Type", JSON)], body.as_bytes()));
        assert_eq!(reply.status, status, "{body}: {}", reply.text());
    }
    // Content types that a web page may send without a preflight: text/plain (sendBeacon), or none.
    let counter = r#"{"name":"beacon_total","type":"counter","value":1}"#;
    for headers in
        [&[("Content-Type", "text/plain;charset=UTF-8"), ("Origin", "https://app.example")][..], &[]]
    {
        let reply = push_with(client, headers, counter);
        assert_eq!(reply.status, 202);
        let allowed = reply.header("access-control-allow-origin");
        assert_eq!(allowed.is_some(), !headers.is_empty());
    }
    assert_eq!(push_with(client, &[("Content-Type", "image/png")], counter).status, 415);
    let ask = [("Origin", "https://app.example"), ("Access-Control-Request-Method", "POST")];
    let preflight = client.exchange(&request("OPTIONS", "/metrics/push", &ask, b""));
    assert_eq!(
        (preflight.status, preflight.header("access-control-allow-methods")),
        (204, Some("POST, OPTIONS"))
    );
    assert_eq!(value(&pushed_page(client), "beacon_total"), Some(2.0));
}

#[test]
fn the_names_of_the_servers_own_metrics_can_be_pushed() {
    let test = TestServer::start(&[("PUSHGATEWAY_URL", "http://127.0.0.1:9")]);
    let client = &mut test.server.client();
    until("business metrics are known", || test.server.metrics().contains("business_events_total"));
    let page = test.server.metrics();
    let names: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert!(names.len() > 60, "{names:?}");
    for name in names {
        let reply = put(client, "a", &format!("{name} 1\n"));
        assert_eq!(reply.status, 200, "{name}: {}", reply.text());
        let pushed = pushed_page(client);
        assert_eq!(
            value(&pushed, &format!("{name}{{instance=\"\",job=\"a\"}}")),
            Some(1.0),
            "{name}: {pushed}"
        );
    }
}

#[test]
fn an_idempotency_key_counts_once_across_a_kill() {
    let mut test = TestServer::start(&[("DURABILITY", "written")]);
    let keyed = [("Content-Type", JSON), ("Idempotency-Key", "k1")];
    let counter = r#"{"name":"c_total","type":"counter","value":5},{"name":"","type":"gauge"}"#;
    for nth in 0..2 {
        let reply = push_with(&mut test.server.client(), &keyed, counter);
        assert_eq!((reply.status, reply.header("durability")), (202, Some("written")));
        assert!(reply.text().starts_with(r#"{"accepted":1,"rejected":1,"#));
        assert_eq!(reply.text().contains("repeated"), nth == 1);
    }
    test.server.kill();
    test.server.restart();
    let client = &mut test.server.client();
    assert_eq!(push_with(client, &keyed, counter).status, 202);
    assert_eq!(value(&pushed_page(client), "c_total"), Some(5.0));
    let other = [("Content-Type", JSON), ("Idempotency-Key", "k2")];
    assert_eq!(push_with(client, &other, counter).status, 202);
    assert_eq!(value(&pushed_page(client), "c_total"), Some(10.0));
    assert_eq!(test.server.metric("gateway_duplicate_pushes_total"), 1);
}

fn spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    thread::Builder::new().spawn(body).expect("a thread starts")
}

/// Acknowledged increments, and increments that were sent without a response.
struct IncrementCounts {
    answered: AtomicU64,
    sent: AtomicU64,
}

/// Sends increments over one connection, and repeats one with the same key if it got no response.
fn increment(
    address: &Mutex<std::net::SocketAddr>,
    connection: usize,
    count: usize,
    counted: &IncrementCounts,
) {
    let mut client: Option<Client> = None;
    for nth in 0..count {
        let body = format!(
            "{{\"metrics\":[{{\"name\":\"hits_total\",\"type\":\"counter\",\"value\":1,\"labels\":{{\"c\":\"{}\"}}}}]}}",
            connection % 4
        );
        let key = format!("{connection}-{nth}");
        let headers = [("Content-Type", JSON), ("Durability", "written"), ("Idempotency-Key", &key)];
        let bytes = request("POST", "/metrics/push", &headers, body.as_bytes());
        counted.sent.fetch_add(1, Ordering::Relaxed);
        loop {
            if client.is_none() {
                let at = *address.lock().expect("no thread panics while it holds the lock");
                client = Client::try_connect(at).ok();
            }
            match client.as_mut().map(|client| client.try_exchange(&bytes)) {
                Some(Ok(reply)) if reply.status == 202 => break,
                // The server is starting or stopping.
                Some(Ok(reply)) if reply.status == 503 => thread::yield_now(),
                Some(Ok(reply)) => panic!("{}: {}", reply.status, reply.text()),
                Some(Err(_)) | None => {
                    client = None;
                    thread::yield_now();
                }
            }
        }
        counted.answered.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn increments_from_sixteen_connections_add_up_across_a_kill() {
    const CONNECTIONS: usize = 16;
    // 100,000 in all.
    let each = 6250;
    let mut test = TestServer::start(&[]);
    let address = Arc::new(Mutex::new(test.server.address()));
    let counted = Arc::new(IncrementCounts { answered: AtomicU64::new(0), sent: AtomicU64::new(0) });
    let threads: Vec<_> = (0..CONNECTIONS)
        .map(|connection| {
            let (address, counted) = (address.clone(), counted.clone());
            spawn(move || increment(&address, connection, each, &counted))
        })
        .collect();
    let half = (CONNECTIONS * each / 2) as u64;
    until("half of them are acknowledged", || counted.answered.load(Ordering::Relaxed) >= half);
    test.server.kill();
    test.server.restart();
    *address.lock().expect("no thread panics while it holds the lock") = test.server.address();
    for thread in threads {
        thread.join().expect("every increment was answered");
    }
    let page = pushed_page(&mut test.server.client());
    let sum: f64 = (0..4).filter_map(|nth| value(&page, &format!("hits_total{{c=\"{nth}\"}}"))).sum();
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let wanted = (CONNECTIONS * each) as f64;
    assert!((sum - wanted).abs() < 0.5, "{sum} of {wanted}");
}

#[test]
fn groups_and_series_survive_a_kill_and_deleted_ones_stay_deleted() {
    let mut test = TestServer::start(&[("DURABILITY", "synced")]);
    let client = &mut test.server.client();
    assert_eq!(put(client, "a/instance/i", "# HELP m M.\n# TYPE m counter\nm{x=\"\\\"\"} 7\n").status, 200);
    assert_eq!(put(client, "gone", "n 1\n").status, 200);
    assert_eq!(client.exchange(&request("DELETE", "/metrics/job/gone", &[], b"")).status, 202);
    assert_eq!(put(client, "failed", "n 1 5\n").status, 400);
    let metrics = r#"{"name":"s_total","type":"counter","value":1,"labels":{"a":"1"}},{"name":"s_total","type":"counter","value":1,"labels":{"a":"2"}}"#;
    assert_eq!(push(client, metrics).status, 202);
    // A rejected push changes nothing.
    for (method, path) in [("DELETE", "/metrics/pushed?name=s_total&a=2"), ("PUT", "/api/v1/admin/wipe")] {
        let refused = client.exchange(&request(method, path, &[("Durability", "eternal")], b""));
        assert_eq!(refused.status, 400, "{path}: {}", refused.text());
    }
    let removed = client.exchange(&request("DELETE", "/metrics/pushed?name=s_total&a=2", &[], b""));
    assert_eq!((removed.status, removed.text().as_str()), (200, r#"{"deleted":1}"#));
    assert_eq!(client.exchange(&request("DELETE", "/metrics/pushed", &[], b"")).status, 400);
    let before = pushed_page(client);
    assert!(before.contains("m{instance=\"i\",job=\"a\",x=\"\\\"\"} 7\n"), "{before}");
    assert!(before.contains("s_total{a=\"1\"} 1\n") && !before.contains("s_total{a=\"2\"}"), "{before}");
    assert!(before.contains("push_time_seconds{instance=\"\",job=\"failed\"} 0\n"), "{before}");
    test.server.kill();
    test.server.restart();
    assert_eq!(pushed_page(&mut test.server.client()), before);
    // Also across a graceful stop.
    test.server.stop();
    test.server.restart();
    assert_eq!(pushed_page(&mut test.server.client()), before);
}

/// The newest log file of the gateway.
fn log_of(server: &Server) -> std::path::PathBuf {
    let directory = server.data_dir().join("gateway");
    let names = std::fs::read_dir(&directory).expect("there is a directory");
    let logs = names.map(|entry| entry.expect("it can be read").path());
    let mut logs: Vec<_> = logs.filter(|path| path.to_string_lossy().contains("/log-")).collect();
    logs.sort();
    logs.pop().expect("there is a log")
}

#[test]
fn a_flipped_byte_in_the_log_loses_only_the_record_it_hits() {
    let mut test = TestServer::start(&[("DURABILITY", "written")]);
    for nth in 0..3 {
        assert_eq!(put(&mut test.server.client(), &format!("j{nth}"), "m 1\n").status, 200);
    }
    test.server.kill();
    let path = log_of(&test.server);
    let mut bytes = std::fs::read(&path).expect("the log can be read");
    // Within the second of three equal records.
    let at = 36 + (bytes.len() - 36) / 2;
    bytes[at] ^= 0x40;
    std::fs::write(&path, &bytes).expect("the log can be written");
    test.server.restart();
    let page = pushed_page(&mut test.server.client());
    let left: Vec<bool> =
        (0..3).map(|nth| page.contains(&format!("m{{instance=\"\",job=\"j{nth}\"}} 1"))).collect();
    assert_eq!(left, [true, false, true], "{page}");
    assert_eq!(test.server.metric("gateway_corrupt_ranges_total"), 1);
    assert!(test.server.log().contains("is corrupt"), "{}", test.server.log());
    assert!(path.with_extension("damaged").exists());
    // A snapshot of the rest replaces the damaged log.
    until("a snapshot is written", || test.server.metric("gateway_snapshots_total") == 1);
    assert!(!path.exists());
    test.server.stop();
    test.server.restart();
    assert_eq!(pushed_page(&mut test.server.client()), page);
    assert_eq!(test.server.metric("gateway_corrupt_ranges_total"), 0);
}

#[test]
fn series_beyond_the_limit_are_rejected_and_existing_ones_still_update() {
    let test = TestServer::start(&[("PUSHED_SERIES_MAX", "10"), ("DURABILITY", "memory")]);
    let client = &mut test.server.client();
    let metric = |nth: usize| {
        format!("{{\"name\":\"m\",\"type\":\"gauge\",\"value\":{nth},\"labels\":{{\"n\":\"{nth}\"}}}}")
    };
    let many: Vec<String> = (0..12).map(metric).collect();
    let reply = push(client, &many.join(","));
    assert!(reply.text().starts_with(r#"{"accepted":10,"rejected":2,"#), "{}", reply.text());
    assert!(reply.text().contains("there would be more than 10 series; see PUSHED_SERIES_MAX"));
    assert_eq!(put(client, "a", "x 1\n").status, 400);
    assert_eq!(push(client, &metric(3)).status, 202, "a series that is there may be pushed");
    assert_eq!(test.server.metric("gateway_series"), 10);
    assert_eq!(
        client.exchange(&request("DELETE", "/metrics/pushed?name=m", &[], b"")).text(),
        r#"{"deleted":10}"#
    );
    assert_eq!(put(client, "a", "x 1\n").status, 200, "capacity is free again");
}

#[test]
fn summed_series_expire_and_groups_stay() {
    let test = TestServer::start(&[("PUSHED_TTL", "400ms")]);
    let client = &mut test.server.client();
    assert_eq!(put(client, "a", "x 1\n").status, 200);
    assert_eq!(push(client, r#"{"name":"m","type":"gauge","value":1}"#).status, 202);
    until("the series is gone", || !pushed_page(&mut test.server.client()).contains("\nm 1"));
    assert!(pushed_page(client).contains("x{instance=\"\",job=\"a\"} 1"));
    assert_eq!(test.server.metric("gateway_expired_total"), 1);
    assert_eq!(
        push(client, r#"{"name":"m","type":"counter","value":1}"#).status,
        202,
        "another type may come then"
    );
}

#[test]
fn a_scrape_during_pushes_sees_each_group_whole() {
    let test = TestServer::start(&[]);
    let address = test.server.address();
    let stop = Arc::new(AtomicU64::new(0));
    let stop_requested = stop.clone();
    let pusher = spawn(move || {
        let mut client = Client::connect(address);
        let mut nth = 0_u64;
        while stop_requested.load(Ordering::Relaxed) == 0 {
            nth += 1;
            let lines: Vec<String> = (0..200).map(|family| format!("family_{family:03} {nth}")).collect();
            let body = lines.join("\n") + "\n";
            assert_eq!(put(&mut client, "whole", &body).status, 200);
        }
        nth
    });
    let mut client = test.server.client();
    let mut seen = 0;
    while seen < 40 {
        let page = pushed_page(&mut client);
        let values: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("family_"))
            .filter_map(|line| line.split(' ').nth(1))
            .collect();
        assert!(values.iter().all(|value| *value == values[0]), "{values:?}");
        assert!(values.is_empty() || values.len() == 200, "{}", values.len());
        seen += usize::from(!values.is_empty());
    }
    stop.store(1, Ordering::Relaxed);
    assert!(pusher.join().expect("every push was taken") > 1);
}

#[test]
fn a_large_page_is_streamed_whole() {
    let long: Vec<String> =
        (0..6_000).map(|nth| format!("long_family{{nth=\"{nth:060}\"}} {nth}\n")).collect();
    let long = long.concat();
    for engine in ["guarded", "minihttp"] {
        let test = TestServer::start(&[("HTTP_ENGINE", engine)]);
        let mut client = test.server.client();
        assert_eq!(put(&mut client, "long", &long).status, 200);
        let plain = client.get("/metrics/pushed");
        let chunked = (engine == "guarded").then_some("chunked");
        assert_eq!((plain.status, plain.header("transfer-encoding")), (200, chunked));
        let page = plain.text();
        let series = page.lines().filter(|line| line.starts_with("long_family{")).count();
        assert_eq!(series, 6_000);
        assert!(
            page.ends_with('\n')
                && page.lines().last().is_some_and(|line| line.starts_with("push_time_seconds{"))
        );
        let gzip = [("Accept-Encoding", "gzip")];
        let small = client.exchange(&request("GET", "/metrics/pushed", &gzip, b""));
        assert_eq!(small.header("content-encoding"), Some("gzip"));
        let mut back = String::new();
        flate2::read::GzDecoder::new(small.body.as_slice()).read_to_string(&mut back).expect("it is whole");
        assert!(back == page);
        if engine == "guarded" {
            client.send(&request("HEAD", "/metrics/pushed", &[], b""));
            assert_eq!(client.head_reply().status, 200);
        }
        assert_eq!(pushed_page(&mut client), page, "the connection stays usable");
    }
}

#[test]
fn a_log_that_cannot_be_written_is_shown_until_it_can_be() {
    let test = TestServer::start(&[("DURABILITY", "written")]);
    let client = &mut test.server.client();
    let directory = test.server.data_dir().join("gateway");
    let away = directory.with_extension("away");
    // The first push creates the log.
    std::fs::rename(&directory, &away).expect("a directory can be renamed");
    assert_eq!(put(client, "a", "x 1\n").status, 503);
    let ready = client.get("/ready");
    assert_eq!(ready.status, 200, "events are accepted: {}", ready.text());
    assert!(
        ready.text().contains("\"warnings\":[\"the log of the metrics gateway cannot be written"),
        "{}",
        ready.text()
    );
    let reply = client.get("/-/ready");
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("5")), "{}", reply.text());
    let health = client.get("/health").text();
    assert!(
        health.starts_with("{\"status\":\"degraded\"") && health.contains("\"gateway\":\"degraded\""),
        "{health}"
    );
    assert!(client.get("/health/detailed").text().contains("\"gateway\":{\"status\":\"degraded\"}"));
    std::fs::rename(&away, &directory).expect("a directory can be renamed");
    until("pushes are taken again", || put(&mut test.server.client(), "a", "x 2\n").status == 200);
    assert_eq!(client.get("/ready").text(), "{\"status\":\"ready\",\"reasons\":[]}");
    assert_eq!(client.get("/-/ready").text(), "OK");
}

#[test]
fn a_token_as_the_password_of_basic_authentication_is_accepted() {
    use base64::Engine;
    let tokens = crate::harness::temp::temp_dir();
    let file = tokens.path().join("tokens");
    let (admin, line) = create_token("all", "admin", &[]);
    let (scraper, other) = create_token("out", "metrics", &[]);
    std::fs::write(&file, format!("{line}\n{other}\n")).expect("a file can be written");
    let test = TestServer::start(&[("AUTH_TOKENS_FILE", &file.display().to_string())]);
    let mut client = test.server.client();
    let mut ask = |user: &str, password: &str, method: &str, path: &str, body: &str| {
        let basic = base64::prelude::BASE64_STANDARD.encode(format!("{user}:{password}"));
        let headers = [("Authorization", &*format!("Basic {basic}")), ("Content-Type", JSON)];
        client.exchange(&request(method, path, &headers, body.as_bytes())).status
    };
    let metric = r#"{"metrics":[{"name":"m","type":"gauge","value":1}]}"#;
    for (method, path, body, status, of_scraper) in [
        ("PUT", "/metrics/job/a", "x 1\n", 200, 403),
        ("POST", "/metrics/job/a", "y 1\n", 200, 403),
        ("POST", "/metrics/push", metric, 202, 403),
        ("GET", "/metrics/pushed", "", 200, 200),
        ("GET", "/api/v1/metrics", "", 200, 200),
        ("DELETE", "/metrics/job/a", "", 202, 403),
    ] {
        assert_eq!(ask("anyone", &admin, method, path, body), status, "{method} {path}");
        assert_eq!(ask("", &scraper, method, path, body), of_scraper, "{method} {path}");
        assert_eq!(ask(&admin, "wrong", method, path, body), 401, "{method} {path}");
    }
}

#[test]
fn scopes_authorize_pushes_scrapes_and_deletes() {
    let tokens = crate::harness::temp::temp_dir();
    let file = tokens.path().join("tokens");
    let made = [
        create_token("in", "ingest", &[]),
        create_token("out", "metrics", &[]),
        create_token("all", "admin", &[]),
        create_token("some", "ingest", &["shop"]),
    ];
    let lines = made.iter().map(|(_, line)| line.as_str()).collect::<Vec<_>>().join("\n") + "\n";
    std::fs::write(&file, lines).expect("a file can be written");
    let test = TestServer::start(&[("AUTH_TOKENS_FILE", &file.display().to_string())]);
    let mut client = test.server.client();
    let mut ask = |token: usize, method: &str, path: &str, body: &str| {
        let bearer = format!("Bearer {}", made[token].0);
        client
            .exchange(&request(
                method,
                path,
                &[("Authorization", &bearer), ("Content-Type", JSON)],
                body.as_bytes(),
            ))
            .status
    };
    let metric = r#"{"metrics":[{"name":"m","type":"gauge","value":1}]}"#;
    let of_shop = r#"{"metrics":[{"name":"m","type":"gauge","value":1,"labels":{"job":"shop"}}]}"#;
    for (method, path, body, statuses) in [
        ("POST", "/metrics/push", metric, [202, 403, 202, 400]),
        ("POST", "/metrics/push", of_shop, [202, 403, 202, 202]),
        ("PUT", "/metrics/job/a", "x 1\n", [200, 403, 200, 403]),
        ("PUT", "/metrics/job/shop", "x 1\n", [200, 403, 200, 200]),
        ("DELETE", "/metrics/job/a", "", [202, 403, 202, 403]),
        ("GET", "/metrics/pushed", "", [403, 200, 200, 403]),
        ("GET", "/api/v1/metrics", "", [403, 200, 200, 403]),
        ("DELETE", "/metrics/pushed?name=m", "", [403, 403, 200, 403]),
        ("GET", "/-/ready", "", [200; 4]),
    ] {
        let got: Vec<u16> = (0..4).map(|token| ask(token, method, path, body)).collect();
        assert_eq!(got, statuses, "{method} {path}");
    }
}
