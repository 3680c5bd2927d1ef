//! FAULTS 6 to 11: what can happen to the disk under the data directory. That the journal survives a cut at every
//! byte and a flip of every byte (8) is tested where it is read.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::bench::{Bench, Line, times};
use crate::harness::producer::Manner;
use crate::harness::server::run;
use crate::harness::temp::TempDir;
use crate::harness::{Postgres, until};

const LOAD: Manner = Manner::STEADY;

/// A file system of its own, of so many bytes, for as long as this lives. Needs root.
pub(crate) struct Mounted(TempDir);

impl Mounted {
    #[track_caller]
    pub(crate) fn tmpfs(options: &str) -> Self {
        let dir = TempDir::new();
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir.path()).status();
        assert!(
            done.expect("mount runs").success(),
            "this test mounts a tmpfs, for which it needs root (CAP_SYS_ADMIN)"
        );
        Self(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: whoever still has a file there may finish.
        drop(Command::new("umount").arg("-l").arg(self.0.path()).status());
    }
}

/// System calls of a process fail, from now until this goes.
struct Injected(Child);

impl Injected {
    /// Into all threads.
    #[track_caller]
    fn into(pid: u32, calls: &str, error: &str) -> Self {
        Self::with(&["-f", "-p", &pid.to_string()], calls, error)
    }

    /// Into the one thread of this name.
    #[track_caller]
    fn into_thread(pid: u32, name: &str, calls: &str, error: &str) -> Self {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
        let tid = tasks
            .map(|task| task.expect("it runs").path())
            .find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name))
            .and_then(|task| task.file_name()?.to_str().map(str::to_owned));
        Self::with(&["-p", &tid.expect("it has such a thread")], calls, error)
    }

    #[track_caller]
    fn with(target: &[&str], calls: &str, error: &str) -> Self {
        let log = TempDir::new();
        let said = log.path().join("strace");
        let mut strace = Command::new("strace")
            .args(target)
            .args(["-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:error={error}")])
            .stdout(Stdio::null())
            .stderr(fs::File::create(&said).expect("a file can be made"))
            .spawn()
            .expect("this test needs strace: apt-get install strace");
        until("strace has attached", || {
            let text = fs::read_to_string(&said).unwrap_or_default();
            assert_eq!(strace.try_wait().expect("a child can be waited for"), None, "strace ended: {text}");
            text.contains("attached")
        });
        Self(strace)
    }
}

impl Drop for Injected {
    fn drop(&mut self) {
        crate::harness::process::signal("INT", self.0.id());
        drop(self.0.wait());
    }
}

fn journal(bench: &Bench) -> PathBuf {
    bench.server.data_dir().join("journal")
}

#[test]
fn f06_a_full_disk_refuses_what_it_cannot_keep_and_heals_by_itself() {
    const FAULT: &str = "6 disk full, then freed";
    let disk = Mounted::tmpfs("size=8m,mode=0755");
    let directory = disk.path().join("data").display().to_string();
    let mut bench = Bench::start(FAULT, &[("DURABILITY", "written"), ("DATA_DIR", &directory)]);
    bench.load(LOAD);
    let rounds = times(1, 5);
    for _ in 0..rounds {
        bench.keeps_taking(500);
        let refused = bench.server.metric("events_dropped_total");
        let ballast = disk.path().join("ballast");
        // Until the disk says no.
        drop(fs::write(&ballast, vec![1; 16 << 20]));
        until("events are refused", || bench.server.metric("events_dropped_total") > refused);
        fs::remove_file(&ballast).expect("it can be removed");
        bench.keeps_taking(500);
    }
    bench.judge_refusing(rounds, &[202, 429, 503]);
}

#[test]
fn f06_a_disk_that_is_full_while_events_are_spilled_loses_none_of_them() {
    const FAULT: &str = "6 disk full while events are spilled";
    let disk = Mounted::tmpfs("size=8m,mode=0755");
    let directory = disk.path().join("data").display().to_string();
    let settings = [("DURABILITY", "written"), ("DATA_DIR", directory.as_str()), ("BUFFER_MAX_SIZE", "1000")];
    let mut bench = Bench::start(FAULT, &settings);
    let rounds = times(1, 5);
    for round in 0..rounds {
        bench.load(LOAD);
        bench.postgres.stop_fast();
        until("events are spilled", || bench.server.metric("journal_spilled_events") > 2_000);
        let refused = bench.server.metric("events_dropped_total");
        let ballast = disk.path().join("ballast");
        drop(fs::write(&ballast, vec![1; 16 << 20]));
        until("events are refused", || bench.server.metric("events_dropped_total") > refused);
        // The database comes back before the disk has room, or after.
        if round % 2 == 0 {
            fs::remove_file(&ballast).expect("it can be removed");
            bench.keeps_taking(500);
            bench.postgres.start_again();
        } else {
            bench.postgres.start_again();
            until("the spilled are stored", || bench.server.metric("journal_spilled_events") == 0);
            fs::remove_file(&ballast).expect("it can be removed");
        }
        bench.keeps_taking(500);
        bench.unload();
        until("all is stored", || bench.server.metric("events_buffered") == 0);
    }
    bench.judge_refusing(rounds, &[202, 429, 503]);
}

/// Killed and started again, the server goes on, and nothing it acknowledged is missing.
#[track_caller]
fn killed_it_has_all(mut bench: Bench) {
    bench.server.kill();
    bench.unload();
    bench.server.start_again();
    bench.load(LOAD);
    bench.keeps_taking(500);
    bench.judge_killed(1, |_, _| false);
}

#[test]
fn f07_a_failed_fsync_withdraws_the_level_and_is_never_taken_for_done() {
    const FAULT: &str = "7 fsync fails with EIO";
    let bench = Bench::loaded(FAULT, &[("DURABILITY", "synced")]);
    let injected = Injected::into(bench.server.pid(), "fsync,fdatasync", "EIO");
    until("the level is withdrawn", || bench.server.client().get("/ready").status == 503);
    drop(injected);
    // What was in doubt is written elsewhere, and a sync of that promises the level again.
    until("it is promised again", || bench.server.client().get("/ready").status == 200);
    bench.keeps_taking(500);
    killed_it_has_all(bench);
}

#[test]
fn f07_failing_writes_are_refused_and_nothing_is_lost() {
    const FAULT: &str = "7 write fails with EIO";
    let bench = Bench::loaded(FAULT, &[("DURABILITY", "written")]);
    // Other threads write to sockets and pipes.
    let injected =
        Injected::into_thread(bench.server.pid(), "checkpoint", "write,pwrite64,rename,renameat2", "EIO");
    until("it is said", || bench.server.client().get("/ready").status == 503);
    drop(injected);
    killed_it_has_all(bench);
}

/// The kernel kills the process as it enters the call for the so-manieth time.
#[track_caller]
fn killed_at(bench: &mut Bench, call: &str, nth: u32) {
    let mut strace = Command::new("strace")
        .args(["-f", "-p", &bench.server.pid().to_string(), "-o", "/dev/null"])
        .args(["-e", &format!("trace={call}"), "-e", &format!("inject={call}:signal=KILL:when={nth}")])
        .stderr(Stdio::null())
        .spawn()
        .expect("this test needs strace: apt-get install strace");
    bench.server.exit_within(Duration::from_mins(1));
    strace.wait().expect("a child can be waited for");
}

#[test]
fn f09_killed_as_it_enters_each_call_of_the_journal_nothing_that_was_promised_is_lost() {
    const FAULT: &str = "9 killed at write, fdatasync, fsync, unlink, open";
    // Small segments, so that there is much to make and to remove.
    let mut bench = Bench::loaded(FAULT, &[("DURABILITY", "synced"), ("JOURNAL_SEGMENT_BYTES", "65536")]);
    let rounds = times(5, 40);
    let chance = &mut aurore_events::clock::Clock::system().rng();
    for round in 0..rounds {
        let call = ["pwrite64", "fdatasync", "fsync", "unlink,unlinkat", "openat"][round as usize % 5];
        killed_at(&mut bench, call, rand::RngExt::random_range(chance, 1..20));
        bench.unload();
        let level = if round % 2 == 0 { "written" } else { "synced" };
        bench.server.start_again();
        bench.load(Manner { durability: Some(level), ..LOAD });
        bench.keeps_taking(100);
    }
    bench.judge_killed(rounds, |_, _| false);
}

#[test]
fn f10_leftovers_in_the_data_directory_are_passed_over() {
    let mut bench = Bench::loaded("10 left-over temporary files, another format version", &[]);
    bench.server.stop();
    bench.unload();
    let journal = journal(&bench);
    fs::create_dir_all(&journal).expect("it can be made");
    fs::write(journal.join("0000000000000001.tmp"), b"half a segment").expect("it can be written");
    fs::write(journal.join("leftover~"), b"").expect("it can be written");
    bench.server.start_again();
    bench.load(LOAD);
    bench.keeps_taking(500);
    bench.judge_killed(1, |_, _| false);
}

/// As the release before wrote it: without overflow the records are the same, and the header says 1.
#[test]
fn f10_segments_of_an_older_format_are_recovered() {
    let mut bench = Bench::loaded("10 segments of the older format version", &[("DURABILITY", "written")]);
    bench.postgres.stop_fast();
    bench.keeps_taking(1_000);
    bench.server.kill();
    bench.unload();
    let mut changed = 0;
    for entry in fs::read_dir(journal(&bench)).expect("it is there") {
        let path = entry.expect("it can be read").path();
        let mut bytes = fs::read(&path).expect("it can be read");
        if bytes.len() < 40 {
            continue;
        }
        bytes[8..12].copy_from_slice(&1_u32.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..36]);
        bytes[36..40].copy_from_slice(&crc.to_le_bytes());
        fs::write(&path, bytes).expect("it can be written");
        changed += 1;
    }
    assert!(changed > 0, "there is something to recover");
    bench.postgres.start_again();
    bench.server.start_again();
    assert!(bench.server.metric("journal_recovered_total") >= 1_000);
    assert_eq!(bench.server.metric("journal_corrupt_ranges_total"), 0);
    bench.judge_killed(1, |_, _| false);
}

#[test]
fn f10_a_data_directory_that_is_no_use_is_said_at_once() {
    let mut line = Line::of("10 data directory read-only, a file, or out of reach");
    let postgres = Postgres::start();
    let file = TempDir::new();
    fs::write(file.path().join("data"), b"").expect("it can be written");
    let read_only = Mounted::tmpfs("ro");
    for path in [read_only.path().to_owned(), file.path().join("data"), PathBuf::from("/proc/none/data")] {
        let path = path.display().to_string();
        let ended = run(&[("DATABASE_URL", &postgres.url()), ("DATA_DIR", &path)], &["serve"]);
        assert!(matches!(ended.code, Some(1 | 2)), "{path}: {:?}: {}", ended.code, ended.stderr);
        assert!(ended.stderr.contains(&path), "{}", ended.stderr);
    }
    line.passed_after(3, 0);
}

#[test]
fn f11_killed_during_recovery_and_recovered_twice_it_stores_once() {
    const FAULT: &str = "11 killed during recovery; a backlog larger than the buffer";
    let mut bench = Bench::loaded(FAULT, &[("DURABILITY", "written")]);
    bench.postgres.stop_fast();
    bench.keeps_taking(20_000);
    bench.server.kill();
    bench.unload();
    bench.server.set("BUFFER_MAX_SIZE", "5000");
    bench.postgres.start_again();
    bench.proxy.throttle(500_000);
    for _ in 0..times(2, 10) {
        bench.server.start_again();
        std::thread::sleep(Duration::from_millis(100));
        bench.server.kill();
    }
    bench.proxy.heal();
    bench.server.start_again();
    bench.judge_killed(times(2, 10), |_, _| false);
}
