//! The documents: every link leads to a file and a heading, and the commands, flags and SQL of
//! docs/operations are valid.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::TestServer;
use crate::harness::server::PROGRAM;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents(directory: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(directory)).expect("it is a directory") {
        let path = entry.expect("it can be read").path();
        let name = path.strip_prefix(root()).expect("it is below").display().to_string();
        if path.is_dir() && (name.starts_with("docs/") || matches!(name.as_str(), "docs" | "perf" | "tests"))
        {
            found.extend(documents(&name));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    found
}

/// The lines outside of code, and the code blocks of each language.
fn split(text: &str) -> (Vec<&str>, Vec<(&str, String)>) {
    let (mut lines, mut blocks) = (Vec::new(), Vec::new());
    let mut block: Option<(&str, String)> = None;
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), block.take()) {
            (Some(_), Some(ended)) => blocks.push(ended),
            (Some(language), None) => block = Some((language, String::new())),
            (None, Some((language, code))) => block = Some((language, code + line + "\n")),
            (None, None) => lines.push(line),
        }
    }
    assert!(block.is_none(), "a code block does not end:\n{text}");
    (lines, blocks)
}

/// The anchors of the headings, as Markdown viewers make them.
fn anchors(text: &str) -> Vec<String> {
    let headings = split(text).0.into_iter().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// The targets of the links of a document.
fn links(text: &str) -> Vec<String> {
    let text = split(text).0.join("\n");
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).collect()
}

#[test]
fn every_link_of_a_document_leads_to_a_file_and_a_heading() {
    let mut checked = 0;
    for path in documents("") {
        let text = fs::read_to_string(&path).expect("it can be read");
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(file, anchor)| (file, Some(anchor)));
            let target =
                if file.is_empty() { path.clone() } else { path.parent().expect("a parent").join(file) };
            assert!(target.exists(), "{}: {link}: no such file", path.display());
            if let Some(anchor) = anchor {
                let headings = anchors(&fs::read_to_string(&target).expect("it is a document"));
                assert!(
                    headings.iter().any(|heading| heading == anchor),
                    "{}: {link}: no such heading",
                    path.display()
                );
            }
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked} links");
}

/// Asserts that a command line of this program, or of one of its scripts, has known commands and flags.
#[track_caller]
fn check_command(line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let is_word = |word: &&&str| word.starts_with(|c: char| c.is_ascii_lowercase());
    let (program, commands) = if words[0] == "aurore-events" {
        (PathBuf::from(PROGRAM), words[1..].iter().take_while(is_word).copied().collect::<Vec<_>>())
    } else {
        (root().join(words[0]), Vec::new())
    };
    let help = |commands: &[&str]| {
        let help = Command::new(&program).args(commands).arg("--help").stdin(Stdio::null()).output();
        let help = help.unwrap_or_else(|error| panic!("{line}: {error}"));
        let text = String::from_utf8_lossy(&[help.stdout, help.stderr].concat()).into_owned();
        assert!(help.status.success(), "{line}: {text}");
        text
    };
    let mut text = help(&commands);
    if program == Path::new(PROGRAM) {
        // Each command accepts the settings of the server too.
        text += &help(&["serve"]);
    }
    for flag in words.iter().filter(|word| word.starts_with("--")) {
        let flag = flag.trim_end_matches([',', '.']);
        let is_known =
            text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).any(|word| word == flag);
        assert!(is_known, "{line}: no flag {flag} in\n{text}");
    }
}

#[test]
fn the_commands_in_the_documents_of_operators_exist() {
    let mut checked = 0;
    for path in documents("docs/operations") {
        let text = fs::read_to_string(&path).expect("it can be read");
        let (lines, blocks) = split(&text);
        let prose = lines.join(" ");
        let mut commands: Vec<String> = prose.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        for (language, code) in blocks {
            assert!(matches!(language, "sh" | "sql"), "{}: no check for {language}", path.display());
            if language == "sh" {
                let mut shell =
                    Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().expect("bash runs");
                shell.stdin.take().expect("a pipe").write_all(code.as_bytes()).expect("bash reads");
                assert!(shell.wait().expect("it ends").success(), "{}: {code}", path.display());
                commands.extend(code.lines().map(str::to_owned));
            }
        }
        // A folder, the name of a package, or a command.
        let is_own = |line: &&String| {
            line.starts_with("aurore-events ") || (line.starts_with("scripts/") && !line.ends_with('/'))
        };
        for line in commands.iter().filter(is_own) {
            check_command(line);
            checked += 1;
        }
    }
    assert!(checked >= 10, "{checked} commands");
}

#[test]
fn the_sql_in_the_documents_of_operators_runs() {
    let test = TestServer::start(&[]);
    let mut client = test.postgres.client();
    let mut statements = 0;
    for path in documents("docs/operations") {
        let document = fs::read_to_string(&path).expect("it can be read");
        for (_, code) in split(&document).1.into_iter().filter(|(language, _)| *language == "sql") {
            // The role and the database of the tests have these names.
            let code = code
                .replace("ROLE aurore", "ROLE aurore_2")
                .replace("DATABASE aurore OWNER aurore", "DATABASE aurore_2 OWNER aurore_2");
            for statement in code.split(';').filter(|statement| !statement.trim().is_empty()) {
                client
                    .simple_query(statement)
                    .unwrap_or_else(|error| panic!("{}: {statement}: {error:?}", path.display()));
                statements += 1;
            }
        }
    }
    assert!(statements >= 8, "{statements} statements");
}

#[test]
fn the_settings_in_the_documents_of_operators_exist() {
    let settings = Command::new(PROGRAM).args(["serve", "--help"]).output().expect("it runs");
    // The lines of the help are wrapped.
    let settings = String::from_utf8_lossy(&settings.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    for path in documents("docs/operations") {
        let text = fs::read_to_string(&path).expect("it can be read");
        let prose = split(&text).0.join(" ");
        for code in prose.split('`').skip(1).step_by(2) {
            let is_setting = code.contains('_') && code.chars().all(|c| c.is_ascii_uppercase() || c == '_');
            if is_setting && !matches!(code, "SOURCE_DATE_EPOCH") {
                assert!(settings.contains(&format!("[env: {code}")), "{}: no setting {code}", path.display());
            }
        }
    }
}
