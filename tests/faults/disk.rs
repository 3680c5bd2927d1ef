//! FAULTS 6 to 11: faults of the disk of the data directory. Truncation and bit flips at every byte
//! of the journal (8) are unit tests of `src/journal`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::fixture::{Fixture, ReportRow, times};
use crate::harness::producer::LoadProfile;
use crate::harness::server::run;
use crate::harness::temp::temp_dir;
use crate::harness::{Postgres, until};

const LOAD: LoadProfile = LoadProfile::STEADY;
/// The header of a request whose client waits for `100 Continue`.
const EXPECTING: &[u8] = b"POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                           Content-Length: 9\r\nExpect: 100-continue\r\n\r\n";

/// A tmpfs that is mounted until drop. Needs root.
pub(crate) struct TmpfsMount(tempfile::TempDir);

impl TmpfsMount {
    #[track_caller]
    pub(crate) fn mount(options: &str) -> Self {
        let dir = temp_dir();
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

impl Drop for TmpfsMount {
    fn drop(&mut self) {
        // Lazily, since a process may still have an open file there.
        drop(Command::new("umount").arg("-l").arg(self.0.path()).status());
    }
}

/// Makes system calls of a process fail (strace) until drop.
struct FaultInjection(Child);

impl FaultInjection {
    /// In all threads.
    #[track_caller]
    fn into(pid: u32, calls: &str, error: &str) -> Self {
        Self::with(&["-f", "-p", &pid.to_string()], calls, error)
    }

    /// In the thread of this name.
    #[track_caller]
    fn into_thread(pid: u32, name: &str, calls: &str, error: &str) -> Self {
        Self::with(&["-p", &thread_id(pid, name)], calls, error)
    }

    #[track_caller]
    fn with(target: &[&str], calls: &str, error: &str) -> Self {
        let log = temp_dir();
        let output = log.path().join("strace");
        let mut strace = Command::new("strace")
            .args(target)
            .args(["-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:error={error}")])
            .stdout(Stdio::null())
            .stderr(fs::File::create(&output).expect("a file can be made"))
            .spawn()
            .expect("this test needs strace: apt-get install strace");
        until("strace has attached", || {
            let text = fs::read_to_string(&output).unwrap_or_default();
            assert_eq!(strace.try_wait().expect("a child can be waited for"), None, "strace ended: {text}");
            text.contains("attached")
        });
        Self(strace)
    }
}

impl Drop for FaultInjection {
    fn drop(&mut self) {
        crate::harness::process::signal("INT", self.0.id());
        drop(self.0.wait());
    }
}

/// The id of the thread of this name.
#[track_caller]
pub(crate) fn thread_id(pid: u32, name: &str) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let tid = tasks
        .map(|task| task.expect("it runs").path())
        .find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name))
        .and_then(|task| task.file_name()?.to_str().map(str::to_owned));
    tid.expect("it has such a thread")
}

fn journal(fixture: &Fixture) -> PathBuf {
    fixture.server.data_dir().join("journal")
}

#[test]
fn f06_a_full_disk_rejects_events_and_recovers_once_freed() {
    const FAULT: &str = "6 disk full, then freed";
    let disk = TmpfsMount::mount("size=8m,mode=0755");
    let directory = disk.path().join("data").display().to_string();
    let mut fixture = Fixture::start(FAULT, &[("DURABILITY", "written"), ("DATA_DIR", &directory)]);
    fixture.start_load(LOAD);
    let rounds = times(1, 5);
    for _ in 0..rounds {
        fixture.wait_for_acknowledged(500);
        let refused = fixture.server.metric("events_dropped_total");
        let ballast = disk.path().join("ballast");
        // Fills the disk; the write fails with ENOSPC.
        drop(fs::write(&ballast, vec![1; 16 << 20]));
        until("events are refused", || fixture.server.metric("events_dropped_total") > refused);
        // The header is refused before `100 Continue`: the body is never sent.
        until("a header is refused", || fixture.server.client().exchange(EXPECTING).status == 503);
        fs::remove_file(&ballast).expect("it can be removed");
        fixture.wait_for_acknowledged(500);
    }
    fixture.verify_with_statuses(rounds, &[202, 429, 503]);
}

#[test]
fn f06_a_full_disk_loses_no_spilled_event() {
    const FAULT: &str = "6 disk full while events are spilled";
    let disk = TmpfsMount::mount("size=8m,mode=0755");
    let directory = disk.path().join("data").display().to_string();
    let settings = [("DURABILITY", "written"), ("DATA_DIR", directory.as_str()), ("BUFFER_MAX_SIZE", "1000")];
    let mut fixture = Fixture::start(FAULT, &settings);
    let rounds = times(1, 5);
    for round in 0..rounds {
        fixture.start_load(LOAD);
        fixture.postgres.stop_fast();
        until("events are spilled", || fixture.server.metric("journal_spilled_events") > 2_000);
        let refused = fixture.server.metric("events_dropped_total");
        let ballast = disk.path().join("ballast");
        drop(fs::write(&ballast, vec![1; 16 << 20]));
        until("events are refused", || fixture.server.metric("events_dropped_total") > refused);
        // The database returns before or after space is freed on the disk.
        if round % 2 == 0 {
            fs::remove_file(&ballast).expect("it can be removed");
            fixture.wait_for_acknowledged(500);
            fixture.postgres.restart();
        } else {
            fixture.postgres.restart();
            until("the spilled events are stored", || fixture.server.metric("journal_spilled_events") == 0);
            fs::remove_file(&ballast).expect("it can be removed");
        }
        fixture.wait_for_acknowledged(500);
        fixture.stop_load();
        until("every event is stored", || fixture.server.metric("events_buffered") == 0);
    }
    fixture.verify_with_statuses(rounds, &[202, 429, 503]);
}

/// Kills and restarts the server, and asserts that no acknowledged event is missing.
#[track_caller]
fn check_after_kill(mut fixture: Fixture) {
    fixture.server.kill();
    fixture.stop_load();
    fixture.server.restart();
    fixture.start_load(LOAD);
    fixture.wait_for_acknowledged(500);
    fixture.verify_after_kill(1, |_, _| false);
}

#[test]
fn f07_a_failed_fsync_withdraws_the_level_until_rewritten_data_is_synced() {
    const FAULT: &str = "7 fsync fails with EIO";
    // Small segments, so that new names have to be synced.
    let settings = [("DURABILITY", "synced"), ("JOURNAL_SEGMENT_BYTES", "65536")];
    let fixture = Fixture::start_under_load(FAULT, &settings);
    // Each alone: of the bytes of a file, and of the names of the directory.
    for call in ["fdatasync", "fsync"] {
        let injection = FaultInjection::into(fixture.server.pid(), call, "EIO");
        until(call, || fixture.server.client().get("/ready").status == 503);
        drop(injection);
        // The data in doubt is rewritten to a new segment, and a sync of it restores the level.
        until("the level is restored", || fixture.server.client().get("/ready").status == 200);
        fixture.wait_for_acknowledged(500);
    }
    check_after_kill(fixture);
}

#[test]
fn f07_failing_journal_writes_lose_no_acknowledged_event() {
    const FAULT: &str = "7 write fails with EIO";
    let fixture = Fixture::start_under_load(FAULT, &[("DURABILITY", "written")]);
    // Only the thread of the journal: other threads write to sockets and pipes.
    let injection = FaultInjection::into_thread(
        fixture.server.pid(),
        "journal",
        "write,pwrite64,rename,renameat2",
        "EIO",
    );
    until("readiness fails", || fixture.server.client().get("/ready").status == 503);
    drop(injection);
    check_after_kill(fixture);
}

/// Kills the process as it enters the nth system call of this name.
#[track_caller]
fn kill_at_call(fixture: &mut Fixture, call: &str, nth: u32) {
    let mut strace = Command::new("strace")
        .args(["-f", "-p", &fixture.server.pid().to_string(), "-o", "/dev/null"])
        .args(["-e", &format!("trace={call}"), "-e", &format!("inject={call}:signal=KILL:when={nth}")])
        .stderr(Stdio::null())
        .spawn()
        .expect("this test needs strace: apt-get install strace");
    fixture.server.exit_within(Duration::from_mins(1));
    strace.wait().expect("a child can be waited for");
}

#[test]
fn f09_a_kill_at_any_journal_system_call_loses_no_promised_event() {
    const FAULT: &str = "9 killed at write, fdatasync, fsync, rename, unlink, open";
    // Small segments, and few that are retained, so that many are created, renamed and deleted.
    let mut fixture = Fixture::start_under_load(
        FAULT,
        &[("DURABILITY", "synced"), ("JOURNAL_SEGMENT_BYTES", "65536"), ("JOURNAL_RETAIN_BYTES", "200000")],
    );
    let calls = ["pwrite64", "fdatasync", "fsync", "rename,renameat,renameat2", "unlink,unlinkat", "openat"];
    let rounds = times(6, 48);
    let chance = &mut aurore_events::clock::Clock::system().rng();
    for round in 0..rounds {
        let call = calls[round as usize % calls.len()];
        kill_at_call(&mut fixture, call, rand::RngExt::random_range(chance, 1..20));
        fixture.stop_load();
        let level = if round % 2 == 0 { "written" } else { "synced" };
        fixture.server.restart();
        fixture.start_load(LoadProfile { durability: Some(level), ..LOAD });
        fixture.wait_for_acknowledged(100);
    }
    fixture.verify_after_kill(rounds, |_, _| false);
}

#[test]
fn f10_leftover_files_in_the_data_directory_are_ignored() {
    let mut fixture = Fixture::start_under_load("10 left-over temporary files, another format version", &[]);
    fixture.server.stop();
    fixture.stop_load();
    let journal = journal(&fixture);
    fs::create_dir_all(&journal).expect("it can be made");
    fs::write(journal.join("0000000000000001.tmp"), b"half a segment").expect("it can be written");
    fs::write(journal.join("leftover~"), b"").expect("it can be written");
    fixture.server.restart();
    fixture.start_load(LOAD);
    fixture.wait_for_acknowledged(500);
    fixture.verify_after_kill(1, |_, _| false);
}

/// Segments of format version 1: the same records, if none is too large, and version 1 in the
/// header.
#[test]
fn f10_segments_of_an_older_format_are_recovered() {
    let mut fixture =
        Fixture::start_under_load("10 segments of the older format version", &[("DURABILITY", "written")]);
    fixture.postgres.stop_fast();
    fixture.wait_for_acknowledged(1_000);
    fixture.server.kill();
    fixture.stop_load();
    let mut changed = 0;
    for entry in fs::read_dir(journal(&fixture)).expect("it is there") {
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
    assert!(changed > 0, "there is no segment to recover");
    fixture.postgres.restart();
    fixture.server.restart();
    assert!(fixture.server.metric("journal_recovered_total") >= 1_000);
    assert_eq!(fixture.server.metric("journal_corrupt_ranges_total"), 0);
    fixture.verify_after_kill(1, |_, _| false);
}

#[test]
fn f10_an_unusable_data_directory_fails_the_start_with_a_reason() {
    let mut row = ReportRow::new("10 data directory read-only, a file, or out of reach");
    let postgres = Postgres::start();
    let file = temp_dir();
    fs::write(file.path().join("data"), b"").expect("it can be written");
    let read_only = TmpfsMount::mount("ro");
    for path in [read_only.path().to_owned(), file.path().join("data"), PathBuf::from("/proc/none/data")] {
        let path = path.display().to_string();
        let ended = run(&[("DATABASE_URL", &postgres.url()), ("DATA_DIR", &path)], &["serve"]);
        assert!(matches!(ended.code, Some(1 | 2)), "{path}: {:?}: {}", ended.code, ended.stderr);
        assert!(ended.stderr.contains(&path), "{}", ended.stderr);
    }
    row.passed_after(3, 0);
}

#[test]
fn f11_a_kill_during_recovery_duplicates_no_event() {
    const FAULT: &str = "11 killed during recovery; a backlog larger than the buffer";
    let mut fixture = Fixture::start_under_load(FAULT, &[("DURABILITY", "written")]);
    fixture.postgres.stop_fast();
    fixture.wait_for_acknowledged(20_000);
    fixture.server.kill();
    fixture.stop_load();
    fixture.server.set("BUFFER_MAX_SIZE", "5000");
    fixture.postgres.restart();
    fixture.proxy.throttle(500_000);
    for _ in 0..times(2, 10) {
        fixture.server.restart();
        std::thread::sleep(Duration::from_millis(100));
        fixture.server.kill();
    }
    fixture.proxy.repair();
    fixture.server.restart();
    fixture.verify_after_kill(times(2, 10), |_, _| false);
}
