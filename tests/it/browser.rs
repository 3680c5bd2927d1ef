//! The page in a real browser: Chromium, driven by `tests/browser/console.mjs`, against the real
//! server. Screenshots are in `target/browser/screenshots`.
//!
//! `scripts/test` installs Chromium and the packages; without them the test reports that it did not
//! run.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use crate::harness::postgres::free_port;
use crate::harness::process::{exit_within, not_tried, pdeathsig_command};
use crate::harness::temp::temp_dir;
use crate::harness::{Server, TestServer, create_token, until};

const EXIT_MAX: Duration = Duration::from_secs(10);
const CHROMIUM: &str = "/usr/bin/chromium";

/// In the target directory, where `scripts/test` installs it.
fn target(path: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_aurore-events"));
    program.ancestors().nth(2).expect("a target directory").join("browser").join(path)
}

/// Does what the script asks for.
fn serve(what: &str, test: &mut TestServer) {
    let is_down = |test: &TestServer| test.server.metric("database_connection_status") == 0;
    match what {
        "refuse poison" => test.postgres.execute(
            "ALTER TABLE events ADD CONSTRAINT no_poison CHECK (message NOT LIKE 'poison%') NOT VALID",
        ),
        "allow poison" => test.postgres.execute("ALTER TABLE events DROP CONSTRAINT no_poison"),
        "await dead letters" => {
            until("the events are dead letters", || {
                test.server.metric("events_buffered") == 0 && test.postgres.dead() > 0
            });
        }
        "stop database" => {
            test.postgres.stop_immediate();
            until("the outage is detected", || is_down(test));
        }
        "start database" => test.postgres.restart(),
        "restart server" => {
            test.server.stop();
            test.server.restart();
        }
        other => panic!("the script says {other:?}"),
    }
}

#[test]
fn the_page_works_in_a_browser() {
    let modules = target("node_modules/playwright-core/package.json");
    if !Path::new(CHROMIUM).exists() || !modules.exists() {
        return not_tried(&format!(
            "{CHROMIUM} or {} is missing; scripts/test installs both",
            modules.display()
        ));
    }
    // The page finds the server again after a restart.
    let port = free_port().to_string();
    let mut test = TestServer::start(&[
        ("PORT", &port),
        ("DRAIN_INTERVAL", "20"),
        ("CIRCUIT_BREAKER_TIMEOUT_MS", "200"),
    ]);
    let directory = temp_dir();
    let file = directory.path().join("tokens");
    let tokens = [
        create_token("metrics", "metrics", &[]),
        create_token("restricted", "query", &["checkout", "shop"]),
        create_token("admin", "admin", &[]),
    ];
    fs::write(&file, tokens.each_ref().map(|(_, line)| line.as_str()).join("\n")).expect("a temporary file");
    let guarded = Server::start_on(
        &test.postgres,
        &[("AUTH_TOKENS_FILE", file.to_str().expect("UTF-8 temporary path"))],
    );
    let screenshots = target("screenshots");
    fs::create_dir_all(&screenshots).expect("the target directory is writable");
    let [metrics, restricted, admin] = tokens.each_ref().map(|(token, _)| token.as_str());
    let given = format!(
        r#"{{"open":"http://{}","guarded":"http://{}","chromium":"{CHROMIUM}","screenshots":"{}",
            "tokens":{{"metrics":"{metrics}","restricted":"{restricted}","admin":"{admin}"}}}}"#,
        test.server.address(),
        guarded.address(),
        screenshots.display()
    );
    let mut child = pdeathsig_command("KILL", None, "node")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser/console.mjs"))
        .arg(given)
        .env("BROWSER_MODULES", modules)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("setpriv (util-linux) runs");
    // Printed at once, so that the step is known in which the script hangs.
    let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    let log = thread::Builder::new().name("browser-log".into()).spawn(move || {
        stderr.lines().map_while(Result::ok).for_each(|line| eprintln!("{line}"));
    });
    let mut answers = child.stdin.take().expect("a pipe");
    for line in BufReader::new(child.stdout.take().expect("a pipe")).lines() {
        let line = line.expect("the script writes text");
        serve(&line, &mut test);
        writeln!(answers, "done {line}").expect("the script waits for the answer");
    }
    let status = exit_within(EXIT_MAX, "the script", &mut child);
    log.expect("a thread starts").join().expect("it does not panic");
    assert!(status.success(), "the script fails");
}
