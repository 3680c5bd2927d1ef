//! The names, types and labels of the metrics, and the values of the business metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aurore_events::clock::Clock;
use sonic_rs::JsonValueTrait;

use crate::harness::client::request;
use crate::harness::events::{ids_of, list};
use crate::harness::{TestServer, event, until, wait_for_drain};

const GOLDEN: &str = include_str!("golden/metrics.txt");

/// Parses the text format: type and labels of each metric. Panics on invalid input.
#[track_caller]
fn parse_metrics(page: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut types = BTreeMap::new();
    let (mut helped, mut series) = (BTreeSet::new(), BTreeSet::new());
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').unwrap_or_else(|| panic!("{line}"));
            assert!(!text.is_empty() && helped.insert(name.to_owned()), "{line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap_or_else(|| panic!("{line}"));
            let fresh = types.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new())).is_none();
            assert!(fresh && helped.contains(name), "{line}");
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            assert!(value.parse::<f64>().is_ok() && series.insert(name.to_owned()), "{line}");
            let (name, labels) = name.split_once('{').unwrap_or((name, "}"));
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|suffix| name.strip_suffix(suffix))
                .find(|base| types.get(*base).is_some_and(|(kind, _)| kind == "histogram"))
                .unwrap_or(name);
            let (_, known) = types.get_mut(base).unwrap_or_else(|| panic!("{line} has no type"));
            // No label value of these tests has a comma in it.
            let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}"));
            for label in labels.split(',').filter(|label| !label.is_empty()) {
                let (label, _) = label.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
                if label != "le" {
                    known.insert(label.to_owned());
                }
            }
        }
    }
    types
}

#[test]
fn every_metric_has_the_name_type_and_labels_of_the_golden_file() {
    let test = TestServer::start(&[("DRAIN_INTERVAL", "50")]);
    let mut client = test.server.client();
    ids_of(&client.post_ndjson(&vec![event("s", "m"); 3]));
    wait_for_drain(&test.server);
    until("business metrics are known", || test.server.metrics().contains("business_events_by_service"));
    until("partitions are known", || test.server.metrics().contains("partitions_ahead_days"));
    let found = parse_metrics(&test.server.metrics());
    for line in GOLDEN.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split(' ');
        let (name, kind) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let labels: BTreeSet<_> =
            words.next().map(|labels| labels.split(',').map(str::to_owned).collect()).unwrap_or_default();
        assert_eq!(found.get(name), Some(&(kind.to_owned(), labels)), "{name}");
    }

    // The same metrics as OpenMetrics, if `Accept` prefers it.
    let wanted = [("Accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")];
    let reply = client.exchange(&request("GET", "/metrics", &wanted, b""));
    assert!(
        reply.header("content-type").is_some_and(|kind| kind.starts_with("application/openmetrics-text"))
    );
    let page = reply.text();
    assert!(page.ends_with("# EOF\n") && page.contains("# TYPE events_stored counter\n"), "{page}");
    assert!(page.contains("\nevents_stored_total 3\n"), "{page}");
}

#[test]
fn business_metrics_match_the_table_and_a_scrape_runs_no_query() {
    let mut test = TestServer::start(&[("DRAIN_INTERVAL", "50")]);
    let mut client = test.server.client();
    ids_of(&client.post_ndjson(&vec![event("a", "m"); 7]));
    ids_of(&client.post_ndjson(&vec![event("other", "m"); 2]));
    wait_for_drain(&test.server);
    until("business metrics are known", || {
        client.get_json("/health/business")["total_events"].as_u64() == Some(9)
    });
    let health = client.get_json("/health/business");
    assert_eq!(health["status"].as_str(), Some("healthy"), "{health}");
    assert_eq!(health["events_by_service"]["a"].as_u64(), Some(7), "{health}");
    assert_eq!(health["events_by_service"]["other"].as_u64(), Some(2), "{health}");
    assert_eq!(list(&health["top_services"]).len(), 1, "{health}");
    for name in ["events_last_hour", "events_last_24h"] {
        assert_eq!(health[name].as_u64(), Some(9), "{name} in {health}");
    }
    assert!((health["average_events_per_minute"].as_f64().unwrap_or_default() - 0.15).abs() < 1e-9);
    assert!(!list(&health["events_per_hour"]).is_empty(), "{health}");
    assert_eq!(test.server.metric("business_events_total"), 9);

    // Without a database the values stay, and a scrape is as fast.
    test.postgres.stop_fast();
    let clock = Clock::system();
    let started = clock.now();
    for _ in 0..100 {
        assert_eq!(test.server.metric("business_events_total"), 9);
    }
    let took = clock.now().since(started);
    assert!(took < Duration::from_secs(2), "100 scrapes took {took:?}");
}
