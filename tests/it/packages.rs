//! The Debian package in a clean Debian root: installation, service, upgrade under load, removal and
//! purge; and `scripts/install` for other distributions. The unit runs by `harness::unit`, which names
//! what it simulates.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::postgres::free_port;
use crate::harness::process::{is_root, not_tried};
use crate::harness::server::PROGRAM;
use crate::harness::temp::temp_dir;
use crate::harness::unit::{Unit, run_in};
use crate::harness::{Client, Postgres, Producer, check_stored, until};

const UNITS: &str = "/usr/lib/systemd/system";
/// Written by dpkg and by tools that the scripts call, whatever the package.
const NOT_OF_THE_PACKAGE: &[&str] = &[
    "/var/lib/dpkg",
    "/var/log",
    "/var/cache",
    "/etc/passwd-",
    "/etc/group-",
    "/etc/shadow-",
    "/etc/gshadow-",
    "/etc/.pwd.lock",
];
/// A `systemctl` that records how it was called.
const SYSTEMCTL: &str = "#!/bin/sh\necho \"$@\" >>/run/systemctl.log\n";

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[track_caller]
fn run<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: &[A], environment: &[(&str, &str)]) -> String {
    let program = program.as_ref();
    let output = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}: {}{}",
        program.display(),
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Makes the package of the tested program; returns its path.
#[track_caller]
fn package(version: &str, directory: &Path) -> PathBuf {
    let directory = directory.to_str().expect("it is UTF-8");
    let arguments = ["--binary", PROGRAM, "--no-symbols", "--version", version, "--out", directory];
    let environment = [("DPKG_DEB_COMPRESSOR_TYPE", "none"), ("SOURCE_DATE_EPOCH", "1000000000")];
    run(source("scripts/package"), &arguments, &environment).trim().into()
}

/// A clean root, or None with the reason printed.
fn debian_root() -> Option<tempfile::TempDir> {
    let archive = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("debian-root.tar");
    if !is_root() {
        eprintln!("NOT TRIED: a root directory of its own needs the user root");
        return None;
    }
    if !archive.exists() {
        not_tried(&format!("{} is missing; scripts/test makes it", archive.display()));
        return None;
    }
    let root = temp_dir();
    let (archive, directory) =
        (archive.to_str().expect("it is UTF-8"), root.path().to_str().expect("it is UTF-8"));
    run("tar", &["--extract", "--numeric-owner", "--file", archive, "--directory", directory], &[]);
    Some(root)
}

/// Each path below `root`, with its owner and mode, and the contents of the files of users.
fn inventory(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).expect("the root is accessible") {
            let path = entry.expect("the root is accessible").path();
            let metadata = fs::symlink_metadata(&path).expect("the root is accessible");
            let name = format!("/{}", path.strip_prefix(root).expect("it is below").display());
            if NOT_OF_THE_PACKAGE.contains(&name.as_str()) {
                continue;
            }
            if metadata.is_dir() {
                pending.push(path.clone());
            }
            let is_of_users =
                matches!(name.as_str(), "/etc/passwd" | "/etc/group" | "/etc/shadow" | "/etc/gshadow");
            let contents = if is_of_users {
                fs::read_to_string(&path).expect("the root is accessible")
            } else {
                String::new()
            };
            found.insert(
                name,
                format!("{:o} {} {} {contents}", metadata.mode(), metadata.uid(), metadata.gid()),
            );
        }
    }
    found
}

fn install(root: &Path, package: &Path) -> String {
    fs::copy(package, root.join("tmp/package.deb")).expect("the root is accessible");
    let printed = run_in(root, "dpkg -i /tmp/package.deb");
    fs::remove_file(root.join("tmp/package.deb")).expect("the root is accessible");
    printed
}

/// What the scripts of the package told systemd since the last call.
fn told(root: &Path) -> String {
    let log = root.join("run/systemctl.log");
    let told = fs::read_to_string(&log).unwrap_or_default();
    fs::write(log, "").expect("the root is accessible");
    told
}

#[test]
fn the_package_installs_runs_upgrades_under_load_without_loss_and_is_purged_without_a_trace() {
    let Some(directory) = debian_root() else { return };
    let root = directory.path();
    let built = temp_dir();
    let clean = inventory(root);

    // Without systemd.
    let printed = install(root, &package("1.0.0", built.path()));
    assert!(printed.contains("/etc/aurore-events/database-url"), "it says what is next: {printed}");
    assert_eq!(
        run_in(root, "stat -c '%U %G %a' /var/lib/aurore-events"),
        "aurore-events aurore-events 700\n"
    );
    assert_eq!(
        run_in(root, "dpkg-query -W -f '${Status} ${Version}' aurore-events"),
        "install ok installed 1.0.0"
    );
    run_in(root, "dpkg --verify aurore-events");

    let postgres = Postgres::start();
    let port = free_port();
    let etc = root.join("etc/aurore-events");
    let settings = fs::read_to_string(etc.join("aurore-events.env")).unwrap();
    assert!(settings.contains("\n#PORT="), "the settings have a line to change");
    let settings = settings.replace("\n#PORT=3000", &format!("\nPORT={port}"));
    fs::write(etc.join("aurore-events.env"), &settings).unwrap();
    fs::write(etc.join("database-url"), format!("{}\n", postgres.url())).unwrap();
    fs::set_permissions(etc.join("database-url"), fs::Permissions::from_mode(0o600)).unwrap();

    let log = built.path().join("log");
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let ready = || Client::try_connect(address).is_ok_and(|mut client| client.get("/ready").status == 200);
    let service = Unit::read(root, UNITS, "aurore-events").start(&log);
    until("the service is ready", ready);
    let user = run_in(root, "id -u aurore-events");
    let owner = fs::metadata(format!("/proc/{}", service.pid())).unwrap().uid();
    assert_eq!(owner.to_string(), user.trim(), "it runs as its user");

    let producer = Producer::start(address, 4);
    until("events are acknowledged", || producer.acknowledged() > 500);

    // With systemd, as far as the scripts of the package can see.
    fs::create_dir_all(root.join("run/systemd/system")).unwrap();
    fs::write(root.join("usr/bin/systemctl"), SYSTEMCTL).unwrap();
    fs::set_permissions(root.join("usr/bin/systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
    install(root, &package("1.0.1", built.path()));
    assert_eq!(told(root), "daemon-reload\ndaemon-reload\ntry-restart aurore-events.service\n");
    assert_eq!(fs::read_to_string(etc.join("aurore-events.env")).unwrap(), settings, "the settings are kept");
    let before = producer.acknowledged();
    service.stop();
    let service = Unit::read(root, UNITS, "aurore-events").start(&log);
    until("the new version is ready", ready);
    until("the new version acknowledges", || producer.acknowledged() > before + 500);
    let record = producer.stop();
    service.stop();
    check_stored(&record, &postgres);

    run_in(root, "dpkg --remove aurore-events");
    let told = told(root);
    assert!(told.ends_with("disable --now aurore-events.service\ndaemon-reload\n"), "{told}");
    assert!(etc.join("database-url").exists(), "settings outlive a removal");
    assert!(root.join("var/lib/aurore-events/journal").exists(), "and so does the journal");
    assert!(!root.join("usr/bin/aurore-events").exists());
    run_in(root, "dpkg --purge aurore-events");

    fs::remove_file(root.join("usr/bin/systemctl")).unwrap();
    fs::remove_file(root.join("run/systemctl.log")).unwrap();
    fs::remove_dir_all(root.join("run/systemd")).unwrap();
    fs::remove_dir_all(root.join("run/credentials")).unwrap();
    let left = inventory(root);
    let differs = |path: &&String| clean.get(*path) != left.get(*path);
    let traces: Vec<_> = left.keys().chain(clean.keys()).filter(differs).collect();
    assert!(traces.is_empty(), "{traces:?}");
}

#[test]
fn the_same_program_gives_the_same_package() {
    let (first, second) = (temp_dir(), temp_dir());
    let first = fs::read(package("1.0.0", first.path())).unwrap();
    assert!(first == fs::read(package("1.0.0", second.path())).unwrap(), "the bytes differ");
}

#[test]
fn scripts_install_fills_a_destdir_and_scripts_uninstall_empties_it() {
    let directory = temp_dir();
    let destdir = directory.path().to_str().unwrap();
    let environment = [("DESTDIR", destdir)];
    let at = ["--prefix", "/opt/aurore", "--sysconfdir", "/opt/etc"];
    let install =
        || run(source("scripts/install"), &[&at[..], &["--binary", PROGRAM]].concat(), &environment);
    install();
    let inside = |path: &str| directory.path().join(path);
    let prefix = inside("opt/aurore");
    let version = run(prefix.join("bin/aurore-events"), &["--version"], &[]);
    assert!(version.starts_with("aurore-events "), "{version}");
    let unit = fs::read_to_string(prefix.join("lib/systemd/system/aurore-events.service")).unwrap();
    assert!(unit.contains("\nExecStart=/opt/aurore/bin/aurore-events serve\n"), "{unit}");
    assert!(unit.contains("LoadCredential=database-url:/opt/etc/aurore-events/database-url\n"), "{unit}");
    let manifest = fs::read_to_string(prefix.join("share/aurore-events/manifest")).unwrap();
    for file in manifest.lines() {
        assert!(inside(file.trim_start_matches('/')).is_file(), "{file}");
    }

    let makes_pages = Command::new(PROGRAM).args(["man", "--help"]).output().unwrap().status.success();
    for file in ["share/man/man1/aurore-events.1", "share/bash-completion/completions/aurore-events"] {
        assert_eq!(prefix.join(file).is_file(), makes_pages, "{file}: if the program generates it");
    }

    // An upgrade keeps the settings, and so does a removal.
    let settings = inside("opt/etc/aurore-events/aurore-events.env");
    fs::write(&settings, "PORT=4000\n").unwrap();
    install();
    run(source("scripts/uninstall"), &at, &environment);
    assert_eq!(fs::read_to_string(&settings).unwrap(), "PORT=4000\n");
    install();
    run(source("scripts/uninstall"), &[&at[..], &["--purge"]].concat(), &environment);
    let mut files = inventory(directory.path());
    files.retain(|path, _| {
        fs::symlink_metadata(inside(path.trim_start_matches('/'))).is_ok_and(|file| !file.is_dir())
    });
    assert!(files.is_empty(), "{files:?}");
    assert!(!prefix.join("share/doc/aurore-events").exists(), "nor its directories");
}

#[test]
fn the_documents_of_the_package_name_every_linked_crate() {
    let notices = run(source("scripts/third-party"), &["notices"], &[]);
    let sbom = run(source("scripts/third-party"), &["sbom"], &[("SOURCE_DATE_EPOCH", "1000000000")]);
    assert!(sbom.contains("\"timestamp\": \"2001-09-09T01:46:40Z\""), "{}", &sbom[..400]);
    let tree = run(
        "cargo",
        &[
            "tree",
            "--locked",
            "--edges=normal,no-proc-macro",
            "--prefix=none",
            "--no-dedupe",
            "--manifest-path",
            "Cargo.toml",
        ],
        &[],
    );
    let mut crates = 0;
    for line in tree.lines().filter(|line| !line.is_empty() && !line.starts_with("aurore-events ")) {
        let (name, version) = line.split_once(" v").expect("NAME vVERSION");
        let version = version.split(' ').next().expect("the first word");
        assert!(notices.contains(&format!("\n{name} {version} ")), "{line} is not in the notices");
        assert!(
            sbom.contains(&format!("\"purl\": \"pkg:cargo/{name}@{version}\"")),
            "{line} is not in the SBOM"
        );
        crates += 1;
    }
    assert!(crates > 50, "{crates} crates");
    assert!(notices.contains("Mozilla Public License"), "the text of each licence is there");
}
