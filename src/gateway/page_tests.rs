//! What a page may hold: no series twice, no count that was cut, no group of refused pushes for
//! ever.

use std::sync::Arc;
use std::time::Duration;

use super::grouping_key::GroupingKey;
use super::idempotency::{IdempotencyKeys, KeyLimits};
use super::state::{GatewayState, MetricGroup};
use super::validate::ParseLimits;
use super::*;
use crate::event::Timestamp;

fn gateway() -> (Arc<Gateway>, Clock, Parker) {
    let keys = IdempotencyKeys::new(KeyLimits { count_max: 10, age_max: Duration::from_hours(1) });
    let clock = Clock::manual(Timestamp::from_millis(1_790_000_000_000), 1);
    let (gateway, parker) = Gateway::new(GatewayState::new(keys), Ttl::default(), None, clock.clone());
    (gateway, clock, parker)
}

fn put(gateway: &Gateway, path: &str, body: &str) -> Result<(), String> {
    let parsed = text::parse(body.as_bytes(), ParseLimits::NONE).map_err(|error| error.reason)?;
    let grouping_key = GroupingKey::parse(path).unwrap();
    gateway
        .push_group(grouping_key, parsed, true, || unreachable!("nothing is forwarded"))
        .map_err(|error| error.to_string())
}

#[track_caller]
fn check(body: &str, expected: Result<(), &str>) {
    assert_eq!(put(&gateway().0, "job/a", body), expected.map_err(str::to_owned), "{body}");
}

#[test]
fn a_series_with_an_empty_label_is_the_one_without_it() {
    let other = "metric a{instance=\"\",job=\"a\",x=\"\"} already exists with the same name and label values";
    check("a{x=\"\"} 1\n", Ok(()));
    check("a{x=\"\"} 1\na{x=\"1\"} 1\n", Ok(()));
    check("a{x=\"\"} 1\na 1\n", Err(other));
    // Prometheus adds its own `instance` where there is none.
    check("a{instance=\"\"} 1\na{instance=\"i\"} 1\n", Ok(()));
    let (gateway, _, _parker) = gateway();
    put(&gateway, "job/a", "a{instance=\"i\",y=\"\"} 1\n").unwrap();
    let twice = "metric a{instance=\"i\",job=\"a\"} already exists with the same name and label values";
    assert_eq!(put(&gateway, "job/a/instance/i", "a 1\n"), Err(twice.to_owned()));
    put(&gateway, "job/a", "b 1\n").unwrap();
    put(&gateway, "job/a/instance/i", "a 1\n").unwrap();
    // So are the two times of groups that differ in such a label only.
    let twice =
        "metric push_time_seconds{job=\"a\",x=\"\"} already exists with the same name and label values";
    for body in ["c 1\n", "c 1 5\n"] {
        let refused = put(&gateway, "job/a/x@base64/=", body).unwrap_err();
        assert!(refused == twice || body.ends_with("5\n"), "{refused}");
        assert_eq!(gateway.snapshot().groups.len(), 2);
    }
    gateway.delete_group(&GroupingKey::parse("job/a").unwrap(), || unreachable!()).unwrap();
    put(&gateway, "job/a/x@base64/=", "c 1\n").unwrap();
}

#[test]
fn two_spellings_of_one_bound_are_refused() {
    let histogram = |bounds: &[&str]| {
        let line = |bound| format!("h_bucket{{le=\"{bound}\"}} 1\n");
        let buckets = bounds.iter().fold(String::new(), |buckets, bound| buckets + &line(bound));
        format!("# TYPE h histogram\n{buckets}h_sum 1\nh_count 1\n")
    };
    let twice = |bound: &str| {
        format!("histogram \"h\" has two values of the label \"le\" that are the number {bound}")
    };
    check(&histogram(&["1", "0.5", "+Inf"]), Ok(()));
    for (bounds, bound) in [
        (["1", "1.0"], "1"),
        (["1e0", "1"], "1"),
        (["0", "-0"], "0"),
        (["+Inf", "inf"], "+Inf"),
        (["2", "2"], "2"),
    ] {
        check(&histogram(&bounds), Err(&twice(bound)));
    }
    let not_a_number = "a line of the histogram \"h\" has no number as its bucket or quantile";
    check(&histogram(&["NaN"]), Err(not_a_number));
    check("# TYPE h histogram\nh 1\n", Err(not_a_number));
    check(
        "# TYPE s summary\ns{quantile=\"0.50\"} 1\ns{quantile=\"0.5\"} 1\n",
        Err("summary \"s\" has two values of the label \"quantile\" that are the number 0.5"),
    );
}

#[test]
fn a_count_that_is_no_whole_number_is_refused_and_not_cut() {
    let refused = |kind: &str, value: &str| {
        format!("a count of the {kind} \"m\" is {value}; counts must be whole numbers, 0 or more")
    };
    for value in ["2.5", "-1", "NaN", "+Inf", "1e+30"] {
        for line in ["m_bucket{le=\"1\"}", "m_count"] {
            check(&format!("# TYPE m histogram\n{line} {value}\n"), Err(&refused("histogram", value)));
        }
        check(&format!("# TYPE m summary\nm_count {value}\n"), Err(&refused("summary", value)));
    }
    check("# TYPE m histogram\nm_bucket{le=\"1\"} 2.0\nm_sum 2.5\nm_count 2e0\n", Ok(()));
    check("# TYPE m summary\nm{quantile=\"0.5\"} 2.5\nm_sum -2.5\nm_count 18446744073709549568\n", Ok(()));
}

#[test]
fn groups_of_refused_pushes_expire_and_are_bounded() {
    let (gateway, clock, _parker) = gateway();
    let groups = || gateway.snapshot().groups.len();
    let refused = |path: &str| put(&gateway, path, "a 1 5\n").unwrap_err();
    put(&gateway, "job/good", "a 1\n").unwrap();
    refused("job/good");
    refused("job/bad");
    assert_eq!(groups(), 2, "Pushgateway shows the failure too");
    // A further refused push extends the time.
    clock.advance(Duration::from_mins(59));
    refused("job/bad");
    clock.advance(Duration::from_mins(59));
    gateway.expire();
    assert_eq!(groups(), 2);
    clock.advance(Duration::from_mins(1));
    gateway.expire();
    assert_eq!(groups(), 1);
    for nth in 0..1100 {
        refused(&format!("job/bad/n/{nth}"));
    }
    assert_eq!(groups(), 1 + 1000);
    // An accepted push makes it a usual group.
    put(&gateway, "job/bad/n/0", "b 1\n").unwrap();
    refused("job/bad/n/1098");
    refused("job/bad/n/1099");
    assert_eq!(groups(), 1 + 1001);
    clock.advance(Duration::from_hours(1));
    gateway.expire();
    let kept = gateway.snapshot().groups;
    assert_eq!(kept.len(), 2);
    assert!(!kept.values().any(MetricGroup::is_failed));
    // Deleted groups free their places.
    refused("job/bad");
    gateway.delete_group(&GroupingKey::parse("job/bad").unwrap(), || unreachable!()).unwrap();
    for nth in 0..1100 {
        refused(&format!("job/bad/n/{}", nth + 1));
    }
    assert_eq!(groups(), 2 + 1000);
}
