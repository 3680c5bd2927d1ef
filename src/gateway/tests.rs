//! Tests of the whole gateway: against a model, with the log truncated at every byte, with a
//! failing filesystem, and with a wall clock that jumps.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::bounded;
use proptest::prelude::*;

use tempfile::TempDir;

use super::exposition::render_all;
use super::grouping_key::GroupingKey;
use super::idempotency::{IdempotencyKeys, KeyLimits};
use super::metric::{Histogram, MetricKind, ParsedBody, ParsedFamily, ParsedSample, SeriesValue, Summary};
use super::state::{GatewayLimits, GatewayState};
use super::validate::ParseLimits;
use super::wal::{WalOptions, WalWriter};
use super::*;
use crate::event::Timestamp;
use crate::http::streaming_body::NextBlock;
use crate::http::{Promise, Response};
use crate::journal::Durability;
use crate::journal::filesystem::{File, Filesystem, OsDirectory};
use crate::metrics::text_format::{ExpositionFormat, format_float};

const KEYS: KeyLimits = KeyLimits { count_max: 10, age_max: Duration::from_hours(1) };
const LIMITS: WalOptions = WalOptions {
    write_interval: Duration::from_millis(10),
    sync_interval: Duration::from_secs(5),
    snapshot_bytes_min: 1 << 20,
};

fn clock() -> Clock {
    Clock::manual(Timestamp::from_millis(1_790_000_000_000), 1)
}

/// A directory that is removed on drop.
struct GatewayDir(TempDir);

impl GatewayDir {
    fn new() -> Self {
        Self(TempDir::with_prefix("aurore-gateway-").unwrap())
    }

    fn disk(&self) -> Arc<FlakyFilesystem> {
        let disk = OsDirectory::open(self.0.path().to_owned()).unwrap();
        Arc::new(FlakyFilesystem { disk, failing: Arc::default() })
    }
}

/// A filesystem whose writes and syncs fail while `failing` is set.
#[derive(Debug)]
struct FlakyFilesystem {
    disk: OsDirectory,
    failing: Arc<AtomicBool>,
}

#[derive(Debug)]
struct FlakyFile(Box<dyn File>, Arc<AtomicBool>);

fn fail_if_broken(broken: &AtomicBool) -> io::Result<()> {
    if broken.load(Ordering::Relaxed) { Err(io::Error::other("on purpose")) } else { Ok(()) }
}

impl Filesystem for FlakyFilesystem {
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        fail_if_broken(&self.failing)?;
        Ok(Box::new(FlakyFile(self.disk.create(name)?, self.failing.clone())))
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.disk.open(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fail_if_broken(&self.failing)?;
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        fail_if_broken(&self.failing)?;
        self.disk.sync_dir()
    }
}

impl File for FlakyFile {
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        fail_if_broken(&self.1)?;
        self.0.write(at, bytes)
    }
    fn sync(&self) -> io::Result<()> {
        fail_if_broken(&self.1)?;
        self.0.sync()
    }
    fn bytes(&self) -> io::Result<u64> {
        self.0.bytes()
    }
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read(at, into)
    }
}

/// A gateway on a filesystem. The test runs the log thread's work.
struct TestGateway {
    gateway: Arc<Gateway>,
    log: WalWriter,
    recovered: recovery::GatewayRecovery,
}

fn start(disk: &Arc<FlakyFilesystem>, clock: &Clock, ttl: Ttl, limits: WalOptions) -> TestGateway {
    let mut state = GatewayState::new(IdempotencyKeys::new(KEYS));
    let found = recovery::recover(&**disk, &mut state, clock.now()).unwrap();
    state.set_limits(GatewayLimits {
        series_max: 10_000,
        bytes_max: 16 << 20,
        group_families_max: validate::FAMILIES_MAX,
    });
    let (gateway, parker) = Gateway::new(state, ttl, None, clock.clone());
    let log = WalWriter::new(gateway.clone(), disk.clone(), limits, clock.clone(), parker, &found);
    TestGateway { gateway, log, recovered: found }
}

impl TestGateway {
    fn put_group(&self, path: &str, body: &str) -> Result<(), PushMetricsError> {
        let parsed = text::parse(body.as_bytes(), ParseLimits::NONE).unwrap();
        self.gateway.push_group(GroupingKey::parse(path).unwrap(), parsed, true, || {
            unreachable!("nothing is forwarded")
        })
    }

    fn push_counter(&self, name: &str, key: Option<&str>) -> Result<Aggregated, PushMetricsError> {
        let body = format!(r#"{{"metrics":[{{"name":"{name}","type":"counter","value":1}}]}}"#);
        let pushed = push::parse(body.as_bytes(), None).unwrap();
        self.gateway
            .push_aggregated(pushed, key.map(|key| idempotency::hash(None, "/metrics/push", key.as_bytes())))
    }

    fn page(&self) -> String {
        render_all(self.gateway.snapshot(), ExpositionFormat::Text)
    }

    /// Registers a waiter and runs one tick. `None`: the callback was not called.
    fn wait_durable(&mut self, level: Durability) -> Option<bool> {
        let (sender, result) = bounded(1);
        let callback = move |holds| {
            sender.send(holds).unwrap();
            None
        };
        self.gateway.on_durable(level, Box::new(callback));
        self.log.tick(false);
        result.try_recv().ok()
    }
}

#[test]
fn recovery_restores_the_records_before_a_truncation_at_any_byte() {
    let (temp, clock) = (GatewayDir::new(), clock());
    let disk = temp.disk();
    let mut test = start(&disk, &clock, Ttl::default(), LIMITS);
    let mut pages = vec![test.page()];
    for nth in 0..4 {
        test.put_group("job/a", &format!("m {nth}\n")).unwrap();
        test.push_counter("c_total", Some(&nth.to_string())).unwrap();
        assert_eq!(test.wait_durable(Durability::Written), Some(true));
        pages.push(test.page());
    }
    let whole = std::fs::read(temp.0.path().join("log-0000000001")).unwrap();
    let mut seen = BTreeSet::new();
    for end in (0..=whole.len()).step_by(3).chain([whole.len()]) {
        std::fs::write(temp.0.path().join("log-0000000001"), &whole[..end]).unwrap();
        let restarted = start(&disk, &clock, Ttl::default(), LIMITS);
        assert_eq!(restarted.recovered.damage.corrupt_ranges, 0, "a torn tail is no corruption");
        let page = restarted.page();
        let c = page
            .lines()
            .find_map(|line| line.strip_prefix("c_total "))
            .map_or(0, |c| c.parse::<u32>().unwrap());
        seen.insert(c);
        // Each record is present or absent as a whole: a key is recovered with its increment.
        for nth in 0..4_u32 {
            assert_eq!(
                restarted.push_counter("c_total", Some(&nth.to_string())).unwrap().is_duplicate,
                nth < c
            );
        }
    }
    assert_eq!(seen.len(), 5);
    assert_eq!(start(&disk, &clock, Ttl::default(), LIMITS).page(), *pages.last().unwrap());
}

#[test]
fn snapshot_replaces_the_log_while_pushes_continue() {
    let (temp, clock) = (GatewayDir::new(), clock());
    let disk = temp.disk();
    let limits = WalOptions { snapshot_bytes_min: 1, ..LIMITS };
    let mut test = start(&disk, &clock, Ttl::default(), limits);
    for nth in 0..300 {
        test.put_group(&format!("job/a/n/{nth}"), "# HELP m M.\n# TYPE m counter\nm 1\nn{x=\"1\"} 2\n")
            .unwrap();
        test.push_counter(&format!("c{nth}_total"), Some("k")).unwrap();
    }
    test.put_group("job/failed", "m 1 5\n").unwrap_err();
    test.log.tick(false);
    clock.advance(Duration::from_secs(6));
    test.log.tick(false);
    test.put_group("job/late", "late 1\n").unwrap();
    for _ in 0..10 {
        test.log.tick(false);
    }
    assert_eq!(test.gateway.metrics.snapshots.load(Ordering::Relaxed), 1);
    let names: BTreeSet<String> = disk.list().unwrap().into_iter().collect();
    assert_eq!(names, ["log-0000000002", "snapshot-0000000002"].map(str::to_owned).into());
    let restarted = start(&disk, &clock, Ttl::default(), limits);
    assert!(!restarted.recovered.is_incomplete);
    assert_eq!(restarted.page(), test.page());
    assert!(restarted.push_counter("c_total", Some("k")).unwrap().is_duplicate);
    // A flipped bit anywhere is detected.
    let path = temp.0.path().join("snapshot-0000000002");
    let whole = std::fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 97) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(start(&disk, &clock, Ttl::default(), limits).recovered.is_incomplete, "byte {at}");
        std::fs::remove_file(temp.0.path().join("snapshot-0000000002.damaged")).ok();
    }
    // A truncated snapshot is detected.
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(start(&disk, &clock, Ttl::default(), limits).recovered.is_incomplete);
}

/// Each of these pushes postpones the periodic sync.
#[test]
fn frequent_synced_pushes_do_not_prevent_a_snapshot() {
    let (temp, clock) = (GatewayDir::new(), clock());
    let limits = WalOptions { snapshot_bytes_min: 1, ..LIMITS };
    let mut test = start(&temp.disk(), &clock, Ttl::default(), limits);
    for nth in 0..10 {
        test.put_group("job/a", &format!("m {nth}\n")).unwrap();
        assert_eq!(test.wait_durable(Durability::Synced), Some(true));
        clock.advance(LIMITS.sync_interval / 2);
        test.log.tick(false);
    }
    assert!(test.gateway.metrics.snapshots.load(Ordering::Relaxed) > 0);
}

#[test]
fn pushes_are_refused_after_a_disk_failure_until_a_snapshot_is_written() {
    let (temp, clock) = (GatewayDir::new(), clock());
    let disk = temp.disk();
    let mut test = start(&disk, &clock, Ttl::default(), LIMITS);
    test.put_group("job/a", "m 1\n").unwrap();
    assert_eq!(test.wait_durable(Durability::Synced), Some(true));
    disk.failing.store(true, Ordering::Relaxed);
    test.put_group("job/a", "m 2\n").unwrap();
    assert_eq!(test.wait_durable(Durability::Written), Some(false));
    assert!(matches!(test.put_group("job/a", "m 3\n"), Err(PushMetricsError::LogUnavailable)));
    assert!(matches!(test.push_counter("c_total", None), Err(PushMetricsError::LogUnavailable)));
    clock.advance(Duration::from_secs(2));
    test.log.tick(false);
    assert!(!test.gateway.is_log_available(), "still broken");
    disk.failing.store(false, Ordering::Relaxed);
    clock.advance(Duration::from_secs(2));
    test.log.tick(false);
    test.log.tick(false);
    assert!(test.gateway.is_log_available());
    test.put_group("job/a", "m 4\n").unwrap();
    assert_eq!(test.wait_durable(Durability::Synced), Some(true));
    let restarted = start(&disk, &clock, Ttl::default(), LIMITS);
    assert_eq!(restarted.page(), test.page());
    assert!(
        !restarted.recovered.is_incomplete && restarted.page().contains("m{instance=\"\",job=\"a\"} 4\n")
    );
}

#[test]
fn expiry_ignores_jumps_of_the_wall_clock() {
    let (temp, clock) = (GatewayDir::new(), clock());
    let disk = temp.disk();
    let hour = Duration::from_hours(1);
    let ttl = Ttl { aggregated: Some(hour), groups: Some(2 * hour) };
    let mut test = start(&disk, &clock, ttl, LIMITS);
    test.push_counter("c_total", None).unwrap();
    test.put_group("job/a", "m 1\n").unwrap();
    let wall = clock.wall();
    for days in [1_i64, -1, 365] {
        clock.set_wall(Timestamp::from_micros(wall.micros() + days * 86_400_000_000));
        test.gateway.expire();
        assert!(test.page().contains("c_total 1\n"), "{days} days");
    }
    clock.advance(hour.checked_sub(Duration::from_secs(1)).unwrap());
    test.push_counter("d_total", None).unwrap();
    clock.advance(Duration::from_secs(1));
    clock.set_wall(wall);
    test.gateway.expire();
    let page = test.page();
    assert!(!page.contains("c_total") && page.contains("d_total 1\n") && page.contains("m{"), "{page}");
    clock.advance(hour);
    test.gateway.expire();
    assert_eq!(test.page(), "");
    assert_eq!(test.gateway.metrics.expired.load(Ordering::Relaxed), 3);
    test.log.tick(true);
    assert_eq!(start(&disk, &clock, ttl, LIMITS).page(), "", "expired series do not return");
}

/// One step of the model test.
#[derive(Clone, Debug)]
enum GatewayOp {
    Push { group: u8, replace: bool, families: Vec<(u8, MetricKind, Vec<u8>)> },
    Delete(u8),
    Add { name: u8, kind: MetricKind, label: u8, value: i8 },
    Remove(u8),
}

const NAMES: [&str; 5] = ["m", "m_sum", "m_bucket", "n", "m_count"];

fn ops() -> impl Strategy<Value = Vec<GatewayOp>> {
    let kind = prop::sample::select(vec![
        MetricKind::Counter,
        MetricKind::Gauge,
        MetricKind::Summary,
        MetricKind::Histogram,
    ]);
    let plain = prop::sample::select(vec![MetricKind::Counter, MetricKind::Gauge]);
    let family = (0..5_u8, kind, prop::collection::vec(0..4_u8, 1..4));
    let families = prop::collection::vec(family, 0..4);
    let op = prop_oneof![
        6 => (0..3_u8, any::<bool>(), families)
            .prop_map(|(group, replace, families)| GatewayOp::Push { group, replace, families }),
        1 => (0..3_u8).prop_map(GatewayOp::Delete),
        4 => (0..5_u8, plain, 0..3_u8, 0..50_i8)
            .prop_map(|(name, kind, label, value)| GatewayOp::Add { name, kind, label, value }),
        1 => (0..5_u8).prop_map(GatewayOp::Remove),
    ];
    prop::collection::vec(op, 1..60)
}

/// Kind and values by labels, for each group (`None`: aggregated) and name.
type Model = BTreeMap<(Option<u8>, &'static str), (MetricKind, BTreeMap<String, f64>)>;

/// Labels of a series pushed to a group. Series of two groups and aggregated series may collide.
fn labels_of(group: Option<u8>, label: u8) -> String {
    match group {
        // Group 1 and group 0 collide if the series of group 0 has `instance="1"`.
        Some(0) if label == 3 => "instance=\"1\",job=\"j\"".into(),
        Some(0) => format!("instance=\"\",job=\"j\",l=\"{label}\""),
        Some(_) if label == 3 => "instance=\"1\",job=\"j\"".into(),
        Some(nth) => format!("instance=\"{nth}\",job=\"j\",l=\"{label}\""),
        None => format!("instance=\"1\",job=\"j\",l=\"{label}\""),
    }
}

/// Whether all series fit on one page.
fn is_consistent(model: &Model) -> bool {
    let mut kinds: BTreeMap<&str, MetricKind> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for ((_, name), (kind, series)) in model {
        if *kinds.entry(name).or_insert(*kind) != *kind {
            return false;
        }
        if !series.keys().all(|labels| seen.insert((*name, labels.clone()))) {
            return false;
        }
    }
    kinds.iter().all(|(name, kind)| {
        kind.suffixes().iter().all(|suffix| !kinds.contains_key(format!("{name}{suffix}").as_str()))
    })
}

fn value_of(kind: MetricKind, value: f64) -> SeriesValue {
    match kind {
        MetricKind::Summary => SeriesValue::Summary(Box::new(Summary { sum: value, ..Summary::default() })),
        MetricKind::Histogram => {
            SeriesValue::Histogram(Box::new(Histogram { sum: value, ..Histogram::default() }))
        }
        MetricKind::Counter | MetricKind::Gauge | MetricKind::Untyped => SeriesValue::Number(value),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn gateway_accepts_and_exposes_the_same_as_the_model(ops in ops()) {
        let (temp, clock) = (GatewayDir::new(), clock());
        let disk = temp.disk();
        let mut test = start(&disk, &clock, Ttl::default(), LIMITS);
        let mut model = Model::new();
        for (nth, op) in ops.iter().enumerate() {
            let number = f64::from(u32::try_from(nth).unwrap());
            let mut wanted = model.clone();
            match op {
                GatewayOp::Push { group, replace, families } => {
                    let path = if *group == 0 { "job/j".to_owned() } else { format!("job/j/instance/{group}") };
                    let mut parsed = ParsedBody::default();
                    let mut twice = false;
                    if *replace {
                        wanted.retain(|(of, _), _| *of != Some(*group));
                    }
                    let mut named = BTreeSet::new();
                    for (name, kind, labels) in families.iter().filter(|(name, ..)| named.insert(*name)) {
                        let name = NAMES[usize::from(*name)];
                        let mut series = BTreeMap::new();
                        let sample = |label: &u8| {
                            let own: Vec<metric::Label<'_>> = if *label == 3 {
                                vec![("instance".into(), "1".into())]
                            } else {
                                vec![("l".into(), label.to_string().into())]
                            };
                            ParsedSample { labels: own, value: value_of(*kind, number) }
                        };
                        for label in labels {
                            // Group 2 overrides the label `instance="1"`.
                            let text = if *group == 2 && *label == 3 { "instance=\"2\",job=\"j\"".to_owned() } else { labels_of(Some(*group), *label) };
                            twice |= series.insert(text, number).is_some();
                        }
                        wanted.insert((Some(*group), name), (*kind, series));
                        parsed.families.push(ParsedFamily { name: name.into(), help: "".into(), kind: *kind, samples: labels.iter().map(sample).collect() });
                    }
                    let taken = test.gateway.push_group(GroupingKey::parse(&path).unwrap(), parsed, *replace, || unreachable!());
                    prop_assert_eq!(taken.is_ok(), !twice && is_consistent(&wanted), "{:?} {:?}", op, taken);
                    if taken.is_ok() {
                        model = wanted;
                    }
                }
                GatewayOp::Delete(group) => {
                    let path = if *group == 0 { "job/j".to_owned() } else { format!("job/j/instance/{group}") };
                    test.gateway.delete_group(&GroupingKey::parse(&path).unwrap(), || unreachable!()).unwrap();
                    model.retain(|(of, _), _| *of != Some(*group));
                }
                GatewayOp::Add { name, kind, label, value } => {
                    let name = NAMES[usize::from(*name)];
                    let body = format!(
                        r#"{{"metrics":[{{"name":"{name}","type":"{}","value":{value},"labels":{{"instance":"1","job":"j","l":"{label}"}}}}]}}"#,
                        kind.name()
                    );
                    let (of, series) = wanted.entry((None, name)).or_insert((*kind, BTreeMap::new()));
                    let same_kind = of == kind;
                    let held = series.entry(labels_of(None, *label)).or_insert(0.0);
                    *held = if *kind == MetricKind::Counter { *held + f64::from(*value) } else { f64::from(*value) };
                    let summed = test.gateway.push_aggregated(push::parse(body.as_bytes(), None).unwrap(), None).unwrap();
                    prop_assert_eq!(summed.counts.accepted == 1, same_kind && is_consistent(&wanted), "{:?} {:?}", op, summed);
                    if summed.counts.accepted == 1 {
                        model = wanted;
                    }
                }
                GatewayOp::Remove(name) => {
                    let name = NAMES[usize::from(*name)];
                    let held = model.remove(&(None, name)).map_or(0, |(_, series)| series.len());
                    prop_assert_eq!(test.gateway.delete_series(name, &[]).unwrap(), held);
                }
            }
            if nth % 16 == 7 {
                test.log.tick(false);
            }
        }
        // The page shows the values of the model.
        let page = test.page();
        let mut lines = BTreeSet::new();
        for ((_, name), (kind, series)) in &model {
            let suffix = if matches!(kind, MetricKind::Summary | MetricKind::Histogram) { "_sum" } else { "" };
            lines.extend(series.iter().map(|(labels, value)| format!("{name}{suffix}{{{labels}}} {}", format_float(*value))));
        }
        let shown: BTreeSet<String> = page.lines()
            .filter(|line| !line.starts_with('#') && !line.starts_with("push_"))
            .filter(|line| {
                let name = line.split('{').next().unwrap();
                let of = model.iter().find(|((_, known), (kind, _))| {
                    matches!(kind, MetricKind::Summary | MetricKind::Histogram) && name.strip_prefix(known).is_some_and(|rest| kind.suffixes().contains(&rest))
                });
                of.is_none() || name.ends_with("_sum")
            })
            .map(str::to_owned).collect();
        prop_assert_eq!(&shown, &lines);
        // The page can be parsed, and a restart restores it.
        prop_assert!(text::parse(page.as_bytes(), ParseLimits::NONE).is_ok(), "{}", page);
        test.log.tick(true);
        let restarted = start(&disk, &clock, Ttl::default(), LIMITS);
        prop_assert_eq!(restarted.page(), page);
        let (ours, theirs) = (&test.gateway.metrics, &restarted.gateway.metrics);
        prop_assert_eq!(ours.series.load(Ordering::Relaxed), theirs.series.load(Ordering::Relaxed));
        prop_assert_eq!(ours.bytes.load(Ordering::Relaxed), theirs.bytes.load(Ordering::Relaxed));
    }

    #[test]
    fn text_parser_reads_rendered_pages_back(
        names in prop::collection::btree_set("[a-z_:][a-z0-9_]{0,6}", 1..5),
        help in "\\PC{0,12}",
        value in prop_oneof![any::<f64>(), Just(f64::INFINITY), (0..1000_u32).prop_map(f64::from)],
        label in "(\\PC|[\"\\\\\n]){0,12}",
        bounds in prop::collection::btree_set(-1000..1000_i32, 0..5),
    ) {
        let mut state = GatewayState::new(IdempotencyKeys::new(KEYS));
        let grouping_key = Arc::new(GroupingKey::from_labels(vec![("job".into(), "j".into()), ("l".into(), label.clone())]));
        let buckets: Vec<(f64, u64)> = bounds.iter().zip(1..).map(|(bound, count)| (f64::from(*bound) / 8.0, count)).collect();
        let histogram = Histogram { buckets, sum: value, count: 9, native: None };
        let families = names.iter().enumerate().map(|(nth, name)| {
            let (kind, value) = match nth {
                0 => (MetricKind::Histogram, SeriesValue::Histogram(Box::new(histogram.clone()))),
                1 => (MetricKind::Summary, SeriesValue::Summary(Box::new(Summary { quantiles: vec![(0.5, value)], sum: value, count: 3 }))),
                2 => (MetricKind::Counter, SeriesValue::Number(value)),
                _ => (MetricKind::Untyped, SeriesValue::Number(value)),
            };
            ParsedFamily { name: name.clone().into(), help: help.clone().into(), kind, samples: vec![ParsedSample { labels: vec![], value }] }
        });
        let parsed = ParsedBody { families: families.collect(), ..ParsedBody::default() };
        let families = validate::validate_push(&grouping_key, parsed.clone(), (Moment::ZERO, 1.0)).unwrap();
        // Names may collide; such a push is refused.
        prop_assume!(state.push(&grouping_key, families, true, (Moment::ZERO, 1.0)).is_ok());
        let page = render_all(state.snapshot(), ExpositionFormat::Text);
        let back = text::parse(page.as_bytes(), ParseLimits::NONE).unwrap();
        prop_assert!(!back.has_timestamps);
        for family in &parsed.families {
            let found = back.families.iter().find(|found| found.name == family.name).unwrap();
            prop_assert_eq!(found.kind, family.kind);
            // The parser skips blanks before a help text.
            prop_assert_eq!(&*found.help, help.trim_start_matches([' ', '\t']));
            let found_labels: BTreeSet<_> = found.samples[0].labels.iter().cloned().collect();
            let wanted: BTreeSet<metric::Label<'_>> = [("instance", ""), ("job", "j"), ("l", label.as_str())].map(|(name, value)| (name.into(), value.into())).into();
            prop_assert_eq!(found_labels, wanted);
            let same = |a: f64, b: f64| (a - b).abs() == 0.0 || a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
            match (&found.samples[0].value, &family.samples[0].value) {
                (SeriesValue::Number(found), SeriesValue::Number(value)) => prop_assert!(same(*found, *value)),
                (SeriesValue::Histogram(found), SeriesValue::Histogram(value)) => {
                    let mut wanted = value.buckets.clone();
                    wanted.push((f64::INFINITY, 9));
                    prop_assert_eq!(&found.buckets, &wanted);
                    prop_assert!(same(found.sum, value.sum) && found.count == value.count);
                }
                (SeriesValue::Summary(found), SeriesValue::Summary(value)) => {
                    prop_assert!(same(found.quantiles[0].1, value.quantiles[0].1) && found.count == 3);
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }

    #[test]
    fn parsers_do_not_panic_on_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(text::parse(&bytes, ParseLimits::NONE));
        drop(protobuf::parse(&bytes, ParseLimits::NONE));
        drop(record::WalRecord::decode(&bytes));
        drop(push::parse(&bytes, None));
    }

    #[test]
    fn merged_histograms_equal_single_observations(values in prop::collection::vec((0.0..20.0_f64, any::<bool>()), 1..40)) {
        let mut state = GatewayState::new(IdempotencyKeys::new(KEYS));
        let bounds: Arc<[f64]> = [1.0, 5.0, 10.0].into();
        let merged = |value: f64| Histogram {
            buckets: bounds.iter().map(|bound| (*bound, u64::from(value <= *bound))).collect(),
            sum: value,
            count: 1,
            native: None,
        };
        for (value, observed) in &values {
            let change = if *observed {
                apply::Change::Observe { value: *value, bounds: bounds.clone() }
            } else {
                apply::Change::Merge(merged(*value))
            };
            let update = apply::SampleUpdate { name: "h".into(), kind: MetricKind::Histogram, help: String::new(), labels: "".into(), change };
            state.apply(&update, (Moment::ZERO, 0.0), |_, _| {}).unwrap();
        }
        let page = render_all(state.snapshot(), ExpositionFormat::Text);
        for bound in &*bounds {
            let below = values.iter().filter(|(value, _)| value <= bound).count();
            let line = format!("h_bucket{{le=\"{bound}\"}} {below}\n");
            prop_assert!(page.contains(&line), "{} in {}", line, page);
        }
        let count = format!("h_count {}\n", values.len());
        prop_assert!(page.contains(&count));
        let other = apply::Change::Merge(Histogram { buckets: vec![(2.0, 1)], sum: 1.0, count: 1, native: None });
        let update = apply::SampleUpdate { name: "h".into(), kind: MetricKind::Histogram, help: String::new(), labels: "".into(), change: other };
        let refused = state.apply(&update, (Moment::ZERO, 0.0), |_, _| ());
        let is_refused = matches!(refused, Err(apply::ApplyPushError::BucketMismatch(_)));
        prop_assert!(is_refused, "{:?}", refused);
    }
}

/// Submits a scrape and returns the response. Long pages are streamed.
fn scrape_response(
    line: &scrape::ScrapeQueue,
    scraper: &scrape::Scraper,
    form: ExpositionFormat,
    gzipped: bool,
) -> Response {
    let (sender, answers) = bounded(1);
    let promise = || Promise::new(move |response| sender.send(response).unwrap());
    assert!(line.submit(
        scrape::ScrapeRequest::Exposition {
            format: page_format::PageFormat {
                encoding: page_format::PageEncoding::Lines(form),
                escaping: None
            },
            gzipped
        },
        promise
    ));
    scraper.run_pending();
    answers.try_recv().expect("a response was sent")
}

#[test]
fn long_page_is_streamed_from_one_snapshot() {
    let temp = GatewayDir::new();
    let test = start(&temp.disk(), &clock(), Ttl::default(), LIMITS);
    let (line, scraper) = scrape::queue(test.gateway.clone(), true);
    test.put_group("job/a", "short 1\n").unwrap();
    assert_eq!(
        scrape_response(&line, &scraper, ExpositionFormat::Text, true).body,
        test.page().into_bytes(),
        "short pages are sent whole"
    );
    let long: Vec<String> =
        (0..5_000).map(|nth| format!("long_family{{nth=\"{nth}\",pad=\"{nth:060}\"}} {nth}\n")).collect();
    let long = long.concat();
    for (form, gzipped) in [
        (ExpositionFormat::Text, false),
        (ExpositionFormat::OpenMetrics, false),
        (ExpositionFormat::Text, true),
    ] {
        test.put_group("job/a", &long).unwrap();
        let wanted = render_all(test.gateway.snapshot(), form);
        let response = scrape_response(&line, &scraper, form, gzipped);
        let (body, mut blocks, mut sent) = (response.stream.expect("the page is streamed"), 0, Vec::new());
        // No chunk is rendered ahead, and later pushes do not change the page.
        test.put_group("job/a", "other 1\n").unwrap();
        loop {
            match body.next() {
                NextBlock::Block(block) => {
                    assert!(block.len() < 70_000, "{}", block.len());
                    sent.extend(block);
                    blocks += 1;
                }
                NextBlock::Pending => scraper.run_pending(),
                NextBlock::End => break,
                NextBlock::Aborted => panic!("the stream was aborted"),
            }
        }
        if gzipped {
            let mut plain = Vec::new();
            io::Read::read_to_end(&mut flate2::read::GzDecoder::new(sent.as_slice()), &mut plain).unwrap();
            sent = plain;
        } else {
            assert!(blocks > 5, "{blocks}");
        }
        assert!(sent == wanted.into_bytes());
    }
    // Without streaming the page is sent whole; scrapes beyond the limit are refused; a dropped
    // scrape releases its permit.
    test.put_group("job/a", &long).unwrap();
    let (whole_line, whole) = scrape::queue(test.gateway.clone(), false);
    assert!(
        scrape_response(&whole_line, &whole, ExpositionFormat::Text, true).body == test.page().into_bytes()
    );
    let waiting: Vec<Response> =
        (0..32).map(|_| scrape_response(&line, &scraper, ExpositionFormat::Text, false)).collect();
    assert!(
        !line.submit(scrape::ScrapeRequest::Groups { gzipped: false }, || unreachable!(
            "all permits are taken"
        ))
    );
    drop(waiting);
    scraper.run_pending();
    drop(scrape_response(&line, &scraper, ExpositionFormat::Text, false));
    // If the thread ends while a page is streamed, the page does not end normally.
    let body =
        scrape_response(&line, &scraper, ExpositionFormat::Text, false).stream.expect("the page is streamed");
    drop(scraper);
    let last = std::iter::repeat_with(|| body.next()).find(|next| !matches!(next, NextBlock::Block(_)));
    assert_ne!(last, Some(NextBlock::End));
}
