//! The command line: help that shows what a command reads, completions, and manual pages.

use std::fs;
use std::process::{Command, Stdio};

use sonic_rs::JsonValueTrait;

use crate::harness::server::run;
use crate::harness::temp::temp_dir;
use crate::harness::{TestServer, event, until, wait_for_drain};

/// Runs a command that must succeed without a word on standard error, and returns its output.
#[track_caller]
fn output(arguments: &[&str]) -> String {
    let ended = run(&[], arguments);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{arguments:?}");
    ended.stdout
}

#[test]
fn the_help_of_a_command_shows_its_own_flags_first_and_few_of_the_server() {
    for (command, own, settings) in [
        (&["token", "create"][..], "--scopes", &[][..]),
        (&["dead", "list"], "--sqlstate", &["--database-url", "--data-dir"]),
        (&["retention", "run"], "--dry-run", &["--database-url", "--retention-days"]),
        (&["send"], "--resume", &["--host", "--port"]),
        (&["healthcheck"], "--ready", &["--port", "--tls-cert"]),
        (&["journal", "replay"], "--since", &["--data-dir"]),
        (&["completions"], "<SHELL>", &[]),
    ] {
        let short = output(&[command, &["-h"]].concat());
        let long = output(&[command, &["--help"]].concat());
        assert!(short.lines().count() <= 25, "{short}");
        assert!(long.lines().count() <= 80, "{long}");
        let own_at = long.find(own).unwrap_or_else(|| panic!("{own} is not in:\n{long}"));
        assert!(short.contains(own), "{short}");
        for setting in settings {
            let at =
                long.find(&format!("{setting} ")).unwrap_or_else(|| panic!("{setting} is not in:\n{long}"));
            assert!(own_at < at, "{setting} is before {own} in:\n{long}");
            assert!(!short.contains(&format!("{setting} ")), "{setting} is in:\n{short}");
        }
        for other in ["--batch-size", "--acceptors", "--journal-write-ms"] {
            assert!(!long.contains(other), "{other} is in:\n{long}");
        }
    }
}

#[test]
fn the_short_help_of_the_program_has_the_basic_settings_and_the_long_one_all_below_headings() {
    let (short, long) = (output(&["-h"]), output(&["--help"]));
    assert!(short.lines().count() < 80, "{short}");
    assert!(short.contains("--database-url") && !short.contains("--max-pipelined"), "{short}");
    for heading in ["HTTP server:", "Limits on clients:", "Access:", "Database:", "Metrics gateway:"] {
        assert_eq!(long.matches(&format!("\n{heading}\n")).count(), 1, "{heading} in:\n{long}");
    }
    assert!(long.contains("--max-pipelined") && long.contains("--pushed-series-max"), "{long}");
    assert_eq!(output(&["serve", "--help"]).matches("[env: ").count(), long.matches("[env: ").count());
}

#[test]
fn a_setting_is_accepted_before_and_after_any_command() {
    for arguments in [&["--batch-size", "7", "check-config"][..], &["check-config", "--batch-size", "7"]] {
        assert!(output(arguments).contains("\nBATCH_SIZE=7\n"), "{arguments:?}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&output(&["check-config", "--json", "--batch-size", "7"])).expect("JSON");
    assert_eq!((&json["settings"]["BATCH_SIZE"], &json["warnings"]), (&"7".into(), &serde_json::json!([])));
    // An invalid setting is of no concern to a command that reads none.
    let ended = run(&[("BATCH_SIZE", "none")], &["token", "create", "--name", "a", "--scopes", "ingest"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[test]
fn completions_name_the_visible_flags_and_are_valid_for_the_shell() {
    let directory = temp_dir();
    for shell in ["bash", "zsh", "fish"] {
        let text = output(&["completions", shell]);
        for word in ["purge", "sqlstate", "journal-write-ms"] {
            assert!(text.contains(word), "{shell}: {word}");
        }
        // Only the program and `serve` have the flags of all settings.
        assert!(text.matches("journal-write-ms").count() < 10, "{shell}");
        let path = directory.path().join(shell);
        fs::write(&path, text).unwrap();
        match Command::new(shell).arg("-n").arg(&path).stderr(Stdio::piped()).output() {
            Ok(checked) => {
                let errors = String::from_utf8_lossy(&checked.stderr).into_owned();
                assert!(checked.status.success() && errors.is_empty(), "{shell}: {errors}");
            }
            Err(error) => eprintln!("not checked: {shell}: {error}"),
        }
    }
    assert_eq!(run(&[], &["completions", "cmd.exe"]).code, Some(2));
}

#[test]
fn each_command_has_a_manual_page_without_formatter_warnings() {
    let directory = temp_dir();
    let pages = directory.path().join("man/man1");
    output(&["man", "--out", pages.to_str().unwrap()]);
    let mut names: Vec<_> = fs::read_dir(&pages)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    for name in ["aurore-events.1", "aurore-events-serve.1", "aurore-events-dead-list.1"] {
        assert!(names.iter().any(|page| page == name), "{names:?}");
    }
    assert!(!names.iter().any(|page| page.contains("-help")), "{names:?}");
    let program = fs::read_to_string(pages.join("aurore-events.1")).unwrap();
    assert!(program.contains("\\fBMAX_PIPELINED\\fR"), "each setting with its environment variable");
    let list = fs::read_to_string(pages.join("aurore-events-dead-list.1")).unwrap();
    assert!(list.contains("DATABASE_URL") && !list.contains("MAX_PIPELINED"), "{list}");
    for name in &names {
        // `-ww` warns of all that the formatter does not understand.
        let formatted = Command::new("groff")
            .args(["-man", "-Tutf8", "-Kutf8", "-ww", "-z"])
            .arg(pages.join(name))
            .output();
        match formatted {
            Ok(formatted) => {
                let warnings = String::from_utf8_lossy(&formatted.stderr).into_owned();
                assert!(formatted.status.success() && warnings.is_empty(), "{name}: {warnings}");
            }
            Err(error) => {
                eprintln!("not checked: groff: {error}");
                return;
            }
        }
    }
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let failed = run(&[], &["man", "--out", file.to_str().unwrap()]);
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    assert!(failed.stderr.contains(file.to_str().unwrap()), "{}", failed.stderr);
}

#[test]
fn commands_print_json_and_say_when_there_is_nothing() {
    let parse = |line: &str| sonic_rs::from_str::<sonic_rs::Value>(line).expect("it is JSON");
    let token = parse(&output(&["token", "create", "--name", "a", "--scopes", "ingest", "--json"]));
    assert!(token["token"].as_str().is_some_and(|token| token.starts_with("aev_")), "{token}");
    assert!(token["line"].as_str().is_some_and(|line| line.starts_with("a sha256:")), "{token}");

    let nothing = run(&[], &["history", "--json"]);
    assert_eq!((nothing.code, nothing.stdout.as_str()), (Some(0), ""), "{}", nothing.stderr);
    assert!(nothing.stderr.contains("contains no metrics history"), "{}", nothing.stderr);

    let mut test = TestServer::start(&[("METRICS_HISTORY_INTERVAL_MS", "20"), ("JOURNAL_RETAIN_MS", "0")]);
    test.server.client().post_json(event("s", "m"));
    wait_for_drain(&test.server);
    let data = test.server.data_dir().to_str().unwrap().to_owned();
    let url = test.postgres.url();
    let settings = [("DATA_DIR", data.as_str()), ("DATABASE_URL", url.as_str())];
    until("the history has a line with the event", || {
        let history = run(&settings, &["history", "--json"]);
        history.stdout.lines().any(|line| parse(line)["received"].as_u64() == Some(1))
    });
    for arguments in [&["dead", "list"][..], &["dead", "list", "--json"]] {
        let nothing = run(&settings, arguments);
        assert_eq!((nothing.code, nothing.stdout.as_str()), (Some(0), ""), "{}", nothing.stderr);
        assert!(nothing.stderr.contains("no dead events match"), "{}", nothing.stderr);
    }
    test.server.stop();
    let inspected = run(&settings, &["journal", "inspect", "--json"]);
    assert_eq!(inspected.code, Some(0), "{}", inspected.stderr);
    let total = parse(inspected.stdout.lines().last().unwrap());
    assert_eq!((total["segments"].as_u64(), total["events"].as_u64()), (Some(0), Some(0)), "{total}");
}
