//! The gateway as a whole: against a model of it, through kills at every byte of the log, on a disk that fails, and under
//! clocks that jump.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crossbeam::channel::bounded;
use proptest::prelude::*;

use super::changelog::{Changelog, LogLimits};
use super::exposition::{Form, all};
use super::keys::{KeyLimits, Keys};
use super::metric::{Family, Histogram, Kind, Parsed, Sample, Summary, Value};
use super::state::{Limits, State};
use super::target::Target;
use super::*;
use crate::event::Timestamp;
use crate::http::stream::Next;
use crate::http::{Promise, Response};
use crate::journal::disk::{Directory, Disk, File};

const KEYS: KeyLimits = KeyLimits { count_max: 10, age_max: Duration::from_hours(1) };
const LIMITS: LogLimits = LogLimits {
    write_every: Duration::from_millis(10),
    sync_every: Duration::from_secs(5),
    snapshot_bytes_min: 1 << 20,
};

fn clock() -> Clock {
    Clock::manual(Timestamp::from_millis(1_790_000_000_000), 1)
}

/// A directory that goes with the test.
struct Temp(PathBuf);

impl Temp {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("aurore-gateway-{}-{number}", std::process::id())))
    }

    fn disk(&self) -> Arc<Unreliable> {
        Arc::new(Unreliable { disk: Directory::open(self.0.clone()).unwrap(), broken: Arc::default() })
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// A disk whose every write and sync fails while it is broken.
#[derive(Debug)]
struct Unreliable {
    disk: Directory,
    broken: Arc<AtomicBool>,
}

#[derive(Debug)]
struct UnreliableFile(Box<dyn File>, Arc<AtomicBool>);

fn works(broken: &AtomicBool) -> io::Result<()> {
    if broken.load(Ordering::Relaxed) { Err(io::Error::other("on purpose")) } else { Ok(()) }
}

impl Disk for Unreliable {
    fn names(&self) -> io::Result<Vec<String>> {
        self.disk.names()
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        works(&self.broken)?;
        Ok(Box::new(UnreliableFile(self.disk.create(name)?, self.broken.clone())))
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.disk.open(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        works(&self.broken)?;
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn sync(&self) -> io::Result<()> {
        works(&self.broken)?;
        self.disk.sync()
    }
}

impl File for UnreliableFile {
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        works(&self.1)?;
        self.0.write(at, bytes)
    }
    fn sync(&self) -> io::Result<()> {
        works(&self.1)?;
        self.0.sync()
    }
    fn bytes(&self) -> io::Result<u64> {
        self.0.bytes()
    }
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read(at, into)
    }
}

/// A gateway on a disk, with its log's work done by hand.
struct Bench {
    gateway: Arc<Gateway>,
    log: Changelog,
    found: recovery::Found,
}

fn start(disk: &Arc<Unreliable>, clock: &Clock, lifetimes: Lifetimes, limits: LogLimits) -> Bench {
    let mut state = State::new(Keys::new(KEYS));
    let found = recovery::read(&**disk, &mut state, clock.now()).unwrap();
    state.bound(Limits { series_max: 10_000, bytes_max: 16 << 20 }, names::OWN);
    let (gateway, parker) = Gateway::new(state, lifetimes, None, clock.clone());
    let log = Changelog::new(gateway.clone(), disk.clone(), limits, clock.clone(), parker, &found);
    Bench { gateway, log, found }
}

impl Bench {
    fn put(&self, path: &str, body: &str) -> Result<(), Refused> {
        let parsed = text::parse(body.as_bytes()).unwrap();
        self.gateway
            .push_group(Target::parse(path).unwrap(), parsed, true, || unreachable!("nothing is forwarded"))
    }

    fn add(&self, name: &str, key: Option<&str>) -> Result<Summed, Refused> {
        let body = format!(r#"{{"metrics":[{{"name":"{name}","type":"counter","value":1}}]}}"#);
        let pushed = push::parse(body.as_bytes(), None).unwrap();
        self.gateway.push_sums(pushed, key.map(|key| keys::hash(key.as_bytes())))
    }

    fn page(&self) -> String {
        all(self.gateway.view(), Form::Text)
    }

    /// Waits for a level, the log's thread taking one turn. None: nobody was told.
    fn reached(&mut self, level: Level) -> Option<bool> {
        let (sender, told) = bounded(1);
        self.gateway.when(level, Box::new(move |holds| sender.send(holds).unwrap()));
        self.log.tick(false);
        told.try_recv().ok()
    }
}

#[test]
fn a_log_cut_at_any_byte_brings_back_what_was_before_it() {
    let (temp, clock) = (Temp::new(), clock());
    let disk = temp.disk();
    let mut bench = start(&disk, &clock, Lifetimes::default(), LIMITS);
    let mut pages = vec![bench.page()];
    for nth in 0..4 {
        bench.put("job/a", &format!("m {nth}\n")).unwrap();
        bench.add("c_total", Some(&nth.to_string())).unwrap();
        assert_eq!(bench.reached(Level::Written), Some(true));
        pages.push(bench.page());
    }
    let whole = std::fs::read(temp.0.join("log-0000000001")).unwrap();
    let mut seen = BTreeSet::new();
    for end in (0..=whole.len()).step_by(3).chain([whole.len()]) {
        std::fs::write(temp.0.join("log-0000000001"), &whole[..end]).unwrap();
        let again = start(&disk, &clock, Lifetimes::default(), LIMITS);
        assert_eq!(again.found.damage.skipped, 0, "a torn tail is no damage");
        let page = again.page();
        let c = page
            .lines()
            .find_map(|line| line.strip_prefix("c_total "))
            .map_or(0, |c| c.parse::<u32>().unwrap());
        seen.insert(c);
        // Each record is there or not: a key comes back with its increment.
        for nth in 0..4_u32 {
            assert_eq!(again.add("c_total", Some(&nth.to_string())).unwrap().repeated, nth < c);
        }
    }
    assert_eq!(seen.len(), 5);
    assert_eq!(start(&disk, &clock, Lifetimes::default(), LIMITS).page(), *pages.last().unwrap());
}

#[test]
fn a_snapshot_stands_for_the_log_before_it_and_pushes_go_on_meanwhile() {
    let (temp, clock) = (Temp::new(), clock());
    let disk = temp.disk();
    let limits = LogLimits { snapshot_bytes_min: 1, ..LIMITS };
    let mut bench = start(&disk, &clock, Lifetimes::default(), limits);
    for nth in 0..300 {
        bench.put(&format!("job/a/n/{nth}"), "# HELP m M.\n# TYPE m counter\nm 1\nn{x=\"1\"} 2\n").unwrap();
        bench.add(&format!("c{nth}_total"), Some("k")).unwrap();
    }
    bench.put("job/failed", "m 1 5\n").unwrap_err();
    bench.log.tick(false);
    clock.advance(Duration::from_secs(6));
    bench.log.tick(false);
    bench.put("job/late", "late 1\n").unwrap();
    for _ in 0..10 {
        bench.log.tick(false);
    }
    assert_eq!(bench.gateway.figures.snapshots.load(Ordering::Relaxed), 1);
    let names: BTreeSet<String> = disk.names().unwrap().into_iter().collect();
    assert_eq!(names, ["log-0000000002", "snapshot-0000000002"].map(str::to_owned).into());
    let again = start(&disk, &clock, Lifetimes::default(), limits);
    assert!(!again.found.damaged);
    assert_eq!(again.page(), bench.page());
    assert!(again.add("c_total", Some("k")).unwrap().repeated);
    // Its every byte is checked.
    let path = temp.0.join("snapshot-0000000002");
    let whole = std::fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 97) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(start(&disk, &clock, Lifetimes::default(), limits).found.damaged, "byte {at}");
        std::fs::remove_file(temp.0.join("snapshot-0000000002.damaged")).ok();
    }
    // One that does not end is known for it.
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(start(&disk, &clock, Lifetimes::default(), limits).found.damaged);
}

#[test]
fn a_disk_that_fails_withdraws_the_promise_until_all_is_written_again() {
    let (temp, clock) = (Temp::new(), clock());
    let disk = temp.disk();
    let mut bench = start(&disk, &clock, Lifetimes::default(), LIMITS);
    bench.put("job/a", "m 1\n").unwrap();
    assert_eq!(bench.reached(Level::Synced), Some(true));
    disk.broken.store(true, Ordering::Relaxed);
    bench.put("job/a", "m 2\n").unwrap();
    assert_eq!(bench.reached(Level::Written), Some(false));
    assert!(matches!(bench.put("job/a", "m 3\n"), Err(Refused::LogUnavailable)));
    assert!(matches!(bench.add("c_total", None), Err(Refused::LogUnavailable)));
    clock.advance(Duration::from_secs(2));
    bench.log.tick(false);
    assert!(!bench.gateway.promises(), "still broken");
    disk.broken.store(false, Ordering::Relaxed);
    clock.advance(Duration::from_secs(2));
    bench.log.tick(false);
    bench.log.tick(false);
    assert!(bench.gateway.promises());
    bench.put("job/a", "m 4\n").unwrap();
    assert_eq!(bench.reached(Level::Synced), Some(true));
    let again = start(&disk, &clock, Lifetimes::default(), LIMITS);
    assert_eq!(again.page(), bench.page());
    assert!(!again.found.damaged && again.page().contains("m{instance=\"\",job=\"a\"} 4\n"));
}

#[test]
fn a_jump_of_the_clock_on_the_wall_lets_nothing_expire_and_nothing_live_on() {
    let (temp, clock) = (Temp::new(), clock());
    let disk = temp.disk();
    let hour = Duration::from_hours(1);
    let lifetimes = Lifetimes { summed: Some(hour), groups: Some(2 * hour) };
    let mut bench = start(&disk, &clock, lifetimes, LIMITS);
    bench.add("c_total", None).unwrap();
    bench.put("job/a", "m 1\n").unwrap();
    let wall = clock.wall();
    for days in [1_i64, -1, 365] {
        clock.set_wall(Timestamp::from_micros(wall.micros() + days * 86_400_000_000));
        bench.gateway.expire();
        assert!(bench.page().contains("c_total 1\n"), "{days} days");
    }
    clock.advance(hour.checked_sub(Duration::from_secs(1)).unwrap());
    bench.add("d_total", None).unwrap();
    clock.advance(Duration::from_secs(1));
    clock.set_wall(wall);
    bench.gateway.expire();
    let page = bench.page();
    assert!(!page.contains("c_total") && page.contains("d_total 1\n") && page.contains("m{"), "{page}");
    clock.advance(hour);
    bench.gateway.expire();
    assert_eq!(bench.page(), "");
    assert_eq!(bench.gateway.figures.expired.load(Ordering::Relaxed), 3);
    bench.log.tick(true);
    assert_eq!(start(&disk, &clock, lifetimes, LIMITS).page(), "", "what expired stays away");
}

/// One step of the model test.
#[derive(Clone, Debug)]
enum Op {
    Push { group: u8, replace: bool, families: Vec<(u8, Kind, Vec<u8>)> },
    Delete(u8),
    Add { name: u8, kind: Kind, label: u8, value: i8 },
    Remove(u8),
}

const NAMES: [&str; 5] = ["m", "m_sum", "m_bucket", "n", "m_count"];

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let kind = prop::sample::select(vec![Kind::Counter, Kind::Gauge, Kind::Summary, Kind::Histogram]);
    let plain = prop::sample::select(vec![Kind::Counter, Kind::Gauge]);
    let family = (0..5_u8, kind, prop::collection::vec(0..4_u8, 1..4));
    let families = prop::collection::vec(family, 0..4);
    let op = prop_oneof![
        6 => (0..3_u8, any::<bool>(), families)
            .prop_map(|(group, replace, families)| Op::Push { group, replace, families }),
        1 => (0..3_u8).prop_map(Op::Delete),
        4 => (0..5_u8, plain, 0..3_u8, 0..50_i8)
            .prop_map(|(name, kind, label, value)| Op::Add { name, kind, label, value }),
        1 => (0..5_u8).prop_map(Op::Remove),
    ];
    prop::collection::vec(op, 1..60)
}

/// Whose, of what name: kind, and values by labels.
type Model = BTreeMap<(Option<u8>, &'static str), (Kind, BTreeMap<String, f64>)>;

/// Labels of a series pushed to a group. Two groups and what is added up may come to the same.
fn labels_of(group: Option<u8>, label: u8) -> String {
    match group {
        // The group of instance 1 and the group without one, if the series says that instance.
        Some(0) if label == 3 => "instance=\"1\",job=\"j\"".into(),
        Some(0) => format!("instance=\"\",job=\"j\",l=\"{label}\""),
        Some(_) if label == 3 => "instance=\"1\",job=\"j\"".into(),
        Some(nth) => format!("instance=\"{nth}\",job=\"j\",l=\"{label}\""),
        None => format!("instance=\"1\",job=\"j\",l=\"{label}\""),
    }
}

/// Whether all of it can stand on one page.
fn is_consistent(model: &Model) -> bool {
    let mut kinds: BTreeMap<&str, Kind> = BTreeMap::new();
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

fn value_of(kind: Kind, value: f64) -> Value {
    match kind {
        Kind::Summary => Value::Summary(Box::new(Summary { sum: value, ..Summary::default() })),
        Kind::Histogram => Value::Histogram(Box::new(Histogram { sum: value, ..Histogram::default() })),
        Kind::Counter | Kind::Gauge | Kind::Untyped => Value::Number(value),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn it_takes_and_shows_what_the_model_does(ops in ops()) {
        let (temp, clock) = (Temp::new(), clock());
        let disk = temp.disk();
        let mut bench = start(&disk, &clock, Lifetimes::default(), LIMITS);
        let mut model = Model::new();
        for (nth, op) in ops.iter().enumerate() {
            let number = f64::from(u32::try_from(nth).unwrap());
            let mut wanted = model.clone();
            match op {
                Op::Push { group, replace, families } => {
                    let path = if *group == 0 { "job/j".to_owned() } else { format!("job/j/instance/{group}") };
                    let mut parsed = Parsed::default();
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
                            Sample { labels: own, value: value_of(*kind, number) }
                        };
                        for label in labels {
                            // In the group of instance 2 what says instance 1 is of instance 2.
                            let text = if *group == 2 && *label == 3 { "instance=\"2\",job=\"j\"".to_owned() } else { labels_of(Some(*group), *label) };
                            twice |= series.insert(text, number).is_some();
                        }
                        wanted.insert((Some(*group), name), (*kind, series));
                        parsed.families.push(Family { name: name.into(), help: "".into(), kind: *kind, samples: labels.iter().map(sample).collect() });
                    }
                    let taken = bench.gateway.push_group(Target::parse(&path).unwrap(), parsed, *replace, || unreachable!());
                    prop_assert_eq!(taken.is_ok(), !twice && is_consistent(&wanted), "{:?} {:?}", op, taken);
                    if taken.is_ok() {
                        model = wanted;
                    }
                }
                Op::Delete(group) => {
                    let path = if *group == 0 { "job/j".to_owned() } else { format!("job/j/instance/{group}") };
                    bench.gateway.delete_group(&Target::parse(&path).unwrap(), || unreachable!()).unwrap();
                    model.retain(|(of, _), _| *of != Some(*group));
                }
                Op::Add { name, kind, label, value } => {
                    let name = NAMES[usize::from(*name)];
                    let body = format!(
                        r#"{{"metrics":[{{"name":"{name}","type":"{}","value":{value},"labels":{{"instance":"1","job":"j","l":"{label}"}}}}]}}"#,
                        kind.name()
                    );
                    let (of, series) = wanted.entry((None, name)).or_insert((*kind, BTreeMap::new()));
                    let same_kind = of == kind;
                    let held = series.entry(labels_of(None, *label)).or_insert(0.0);
                    *held = if *kind == Kind::Counter { *held + f64::from(*value) } else { f64::from(*value) };
                    let summed = bench.gateway.push_sums(push::parse(body.as_bytes(), None).unwrap(), None).unwrap();
                    prop_assert_eq!(summed.verdict.accepted == 1, same_kind && is_consistent(&wanted), "{:?} {:?}", op, summed);
                    if summed.verdict.accepted == 1 {
                        model = wanted;
                    }
                }
                Op::Remove(name) => {
                    let name = NAMES[usize::from(*name)];
                    let held = model.remove(&(None, name)).map_or(0, |(_, series)| series.len());
                    prop_assert_eq!(bench.gateway.remove(name, &[]).unwrap(), held);
                }
            }
            if nth % 16 == 7 {
                bench.log.tick(false);
            }
        }
        // The numbers on the page are those of the model.
        let page = bench.page();
        let mut lines = BTreeSet::new();
        for ((_, name), (kind, series)) in &model {
            let suffix = if matches!(kind, Kind::Summary | Kind::Histogram) { "_sum" } else { "" };
            lines.extend(series.iter().map(|(labels, value)| format!("{name}{suffix}{{{labels}}} {}", metric::float(*value))));
        }
        let shown: BTreeSet<String> = page.lines()
            .filter(|line| !line.starts_with('#') && !line.starts_with("push_"))
            .filter(|line| {
                let name = line.split('{').next().unwrap();
                let of = model.iter().find(|((_, known), (kind, _))| {
                    matches!(kind, Kind::Summary | Kind::Histogram) && name.strip_prefix(known).is_some_and(|rest| kind.suffixes().contains(&rest))
                });
                of.is_none() || name.ends_with("_sum")
            })
            .map(str::to_owned).collect();
        prop_assert_eq!(&shown, &lines);
        // It can be read, and is the same after a restart.
        prop_assert!(text::parse(page.as_bytes()).is_ok(), "{}", page);
        bench.log.tick(true);
        let again = start(&disk, &clock, Lifetimes::default(), LIMITS);
        prop_assert_eq!(again.page(), page);
        let (ours, theirs) = (&bench.gateway.figures, &again.gateway.figures);
        prop_assert_eq!(ours.series.load(Ordering::Relaxed), theirs.series.load(Ordering::Relaxed));
        prop_assert_eq!(ours.bytes.load(Ordering::Relaxed), theirs.bytes.load(Ordering::Relaxed));
    }

    #[test]
    fn text_is_read_as_it_was_written(
        names in prop::collection::btree_set("[a-z_:][a-z0-9_]{0,6}", 1..5),
        help in "\\PC{0,12}",
        value in prop_oneof![any::<f64>(), Just(f64::INFINITY), (0..1000_u32).prop_map(f64::from)],
        label in "(\\PC|[\"\\\\\n]){0,12}",
        bounds in prop::collection::btree_set(-1000..1000_i32, 0..5),
    ) {
        let mut state = State::new(Keys::new(KEYS));
        let target = Arc::new(Target::of(vec![("job".into(), "j".into()), ("l".into(), label.clone())]));
        let buckets: Vec<(f64, u64)> = bounds.iter().zip(1..).map(|(bound, count)| (f64::from(*bound) / 8.0, count)).collect();
        let histogram = Histogram { buckets, sum: value, count: 9 };
        let families = names.iter().enumerate().map(|(nth, name)| {
            let (kind, value) = match nth {
                0 => (Kind::Histogram, Value::Histogram(Box::new(histogram.clone()))),
                1 => (Kind::Summary, Value::Summary(Box::new(Summary { quantiles: vec![(0.5, value)], sum: value, count: 3 }))),
                2 => (Kind::Counter, Value::Number(value)),
                _ => (Kind::Untyped, Value::Number(value)),
            };
            Family { name: name.clone().into(), help: help.clone().into(), kind, samples: vec![Sample { labels: vec![], value }] }
        });
        let parsed = Parsed { families: families.collect(), ..Parsed::default() };
        let families = group::prepare(&target, parsed.clone(), (Moment::ZERO, 1.0)).unwrap();
        // Names may collide; then there is nothing to write.
        prop_assume!(state.push(&target, families, true, (Moment::ZERO, 1.0)).is_ok());
        let page = all(state.view(), Form::Text);
        let back = text::parse(page.as_bytes()).unwrap();
        prop_assert!(!back.timestamps);
        for family in &parsed.families {
            let found = back.families.iter().find(|found| found.name == family.name).unwrap();
            prop_assert_eq!(found.kind, family.kind);
            // Blanks before a help text are not of it.
            prop_assert_eq!(&*found.help, help.trim_start_matches([' ', '\t']));
            let found_labels: BTreeSet<_> = found.samples[0].labels.iter().cloned().collect();
            let wanted: BTreeSet<metric::Label<'_>> = [("instance", ""), ("job", "j"), ("l", label.as_str())].map(|(name, value)| (name.into(), value.into())).into();
            prop_assert_eq!(found_labels, wanted);
            let same = |a: f64, b: f64| (a - b).abs() == 0.0 || a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
            match (&found.samples[0].value, &family.samples[0].value) {
                (Value::Number(found), Value::Number(value)) => prop_assert!(same(*found, *value)),
                (Value::Histogram(found), Value::Histogram(value)) => {
                    let mut wanted = value.buckets.clone();
                    wanted.push((f64::INFINITY, 9));
                    prop_assert_eq!(&found.buckets, &wanted);
                    prop_assert!(same(found.sum, value.sum) && found.count == value.count);
                }
                (Value::Summary(found), Value::Summary(value)) => {
                    prop_assert!(same(found.quantiles[0].1, value.quantiles[0].1) && found.count == 3);
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }

    #[test]
    fn no_bytes_make_the_parsers_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(text::parse(&bytes));
        drop(protobuf::parse(&bytes));
        drop(record::Record::decode(&bytes));
        drop(push::parse(&bytes, None));
    }

    #[test]
    fn histograms_merge_as_their_observations_do(values in prop::collection::vec((0.0..20.0_f64, any::<bool>()), 1..40)) {
        let mut state = State::new(Keys::new(KEYS));
        let bounds: Arc<[f64]> = [1.0, 5.0, 10.0].into();
        let merged = |value: f64| Histogram {
            buckets: bounds.iter().map(|bound| (*bound, u64::from(value <= *bound))).collect(),
            sum: value,
            count: 1,
        };
        for (value, observed) in &values {
            let change = if *observed {
                state::Change::Observe { value: *value, bounds: bounds.clone() }
            } else {
                state::Change::Merge(merged(*value))
            };
            let addition = state::Addition { name: "h".into(), kind: Kind::Histogram, help: String::new(), labels: "".into(), change };
            state.add(&addition, (Moment::ZERO, 0.0), |_, _| {}).unwrap();
        }
        let page = all(state.view(), Form::Text);
        for bound in &*bounds {
            let below = values.iter().filter(|(value, _)| value <= bound).count();
            let line = format!("h_bucket{{le=\"{bound}\"}} {below}\n");
            prop_assert!(page.contains(&line), "{} in {}", line, page);
        }
        let count = format!("h_count {}\n", values.len());
        prop_assert!(page.contains(&count));
        let other = state::Change::Merge(Histogram { buckets: vec![(2.0, 1)], sum: 1.0, count: 1 });
        let addition = state::Addition { name: "h".into(), kind: Kind::Histogram, help: String::new(), labels: "".into(), change: other };
        let refused = state.add(&addition, (Moment::ZERO, 0.0), |_, _| ());
        let is_refused = matches!(refused, Err(state::Conflict::Buckets(_)));
        prop_assert!(is_refused, "{:?}", refused);
    }
}

/// Asks for a page and takes the answer. Only a long one is streamed.
fn ask(line: &scrape::Line, scraper: &scrape::Scraper, form: Form, gzipped: bool) -> Response {
    let (sender, answers) = bounded(1);
    let promise = || Promise::new(move |response| sender.send(response).unwrap());
    assert!(line.ask(scrape::Asked::Exposition { form, gzipped }, promise));
    scraper.work_off();
    answers.try_recv().expect("it is answered")
}

#[test]
fn a_long_page_arrives_in_pieces_as_it_stood_at_first() {
    let temp = Temp::new();
    let bench = start(&temp.disk(), &clock(), Lifetimes::default(), LIMITS);
    let (line, scraper) = scrape::line(bench.gateway.clone(), true);
    bench.put("job/a", "short 1\n").unwrap();
    assert_eq!(
        ask(&line, &scraper, Form::Text, true).body,
        bench.page().into_bytes(),
        "short pages go whole"
    );
    let long: Vec<String> =
        (0..5_000).map(|nth| format!("long_family{{nth=\"{nth}\",pad=\"{nth:060}\"}} {nth}\n")).collect();
    let long = long.concat();
    for (form, gzipped) in [(Form::Text, false), (Form::OpenMetrics, false), (Form::Text, true)] {
        bench.put("job/a", &long).unwrap();
        let wanted = all(bench.gateway.view(), form);
        let response = ask(&line, &scraper, form, gzipped);
        let (body, mut blocks, mut sent) = (response.stream.expect("it is streamed"), 0, Vec::new());
        // Nothing is made ahead, and what is pushed meanwhile changes nothing.
        bench.put("job/a", "other 1\n").unwrap();
        loop {
            match body.next() {
                Next::Block(block) => {
                    assert!(block.len() < 70_000, "{}", block.len());
                    sent.extend(block);
                    blocks += 1;
                }
                Next::NotYet => scraper.work_off(),
                Next::End => break,
                Next::Broken => panic!("it is whole"),
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
    // Who cannot stream gets it whole; too many at once are refused; who lets go gives the place back.
    bench.put("job/a", &long).unwrap();
    let (whole_line, whole) = scrape::line(bench.gateway.clone(), false);
    assert!(ask(&whole_line, &whole, Form::Text, true).body == bench.page().into_bytes());
    let waiting: Vec<Response> = (0..32).map(|_| ask(&line, &scraper, Form::Text, false)).collect();
    assert!(!line.ask(scrape::Asked::Groups, || unreachable!("there is no place")));
    drop(waiting);
    scraper.work_off();
    drop(ask(&line, &scraper, Form::Text, false));
    // A thread that ends in the midst of a page does not end the page.
    let body = ask(&line, &scraper, Form::Text, false).stream.expect("it is streamed");
    drop(scraper);
    let last = std::iter::repeat_with(|| body.next()).find(|next| !matches!(next, Next::Block(_)));
    assert_ne!(last, Some(Next::End));
}
