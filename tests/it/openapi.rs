//! The `OpenAPI` document is true and useful: Schemathesis sends requests that it makes from the document
//! and compares the responses with it, and a client that is generated from it posts and reads an event.
//!
//! `scripts/test` installs Schemathesis and the generator. A test without them fails there, and reports
//! that it did not run elsewhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::TestServer;
use crate::harness::client::request;
use crate::harness::process::{exit_within, not_tried, pdeathsig_command};
use crate::harness::temp::temp_dir;

/// For each program that a test starts.
const RUN_MAX: Duration = Duration::from_secs(85);

/// In the target directory, where `scripts/test` installs it.
fn target(path: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_aurore-events"));
    program.ancestors().nth(2).expect("a target directory").join("openapi").join(path)
}

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi").join(path)
}

/// Returns whether the tool is installed.
#[track_caller]
fn is_installed(tool: &Path) -> bool {
    let is_installed = tool.exists();
    if !is_installed {
        not_tried(&format!("{} is missing; scripts/test puts it there", tool.display()));
    }
    is_installed
}

/// Runs a program, whose output is printed if it fails.
#[track_caller]
fn run(what: &str, command: &mut Command) {
    let directory = temp_dir();
    let file = directory.path().join("output");
    let output = fs::File::create(&file).expect("a temporary file");
    let errors = output.try_clone().expect("a file");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .expect("setpriv (util-linux) runs");
    let status = exit_within(RUN_MAX, what, &mut child);
    let output = fs::read(&file).expect("the file exists");
    assert!(status.success(), "{what}:\n{}", String::from_utf8_lossy(&output));
}

fn start_server() -> (TestServer, String) {
    let test = TestServer::start(&[
        ("DRAIN_INTERVAL", "20"),
        // Hundreds of requests a second from one client.
        ("RATE_LIMIT_QUERY", "0"),
        ("RATE_LIMIT_HEALTH", "0"),
    ]);
    let url = format!("http://{}", test.server.address());
    (test, url)
}

#[test]
fn responses_to_requests_made_from_the_document_are_those_it_declares() {
    let schemathesis = target("python/bin/schemathesis");
    if !is_installed(&schemathesis) {
        return;
    }
    let (test, url) = start_server();
    let mut command = pdeathsig_command("KILL", None, &schemathesis);
    command.arg("--config-file").arg(source("schemathesis.toml")).arg("run");
    command.arg(format!("{url}/openapi.json")).args(["--url", &url, "--no-color"]);
    command.current_dir(source("")).env("PYTHONDONTWRITEBYTECODE", "1");
    run("schemathesis", &mut command);
    drop(test);
}

#[test]
fn a_generated_client_posts_an_event_and_reads_it_back() {
    let generator = target("node/node_modules/@hey-api/openapi-ts/bin/run.js");
    if !is_installed(&generator) {
        return;
    }
    let (test, url) = start_server();
    let directory = temp_dir();
    let file = |name: &str| directory.path().join(name);
    fs::copy(source("client.ts"), file("client.ts")).expect("a temporary file");
    let node = |program: &Path| {
        let mut command = pdeathsig_command("KILL", None, "node");
        command.arg(program).current_dir(directory.path());
        command
    };
    let mut generate = node(&generator);
    generate.args(["--input", &format!("{url}/openapi.json"), "--output", "generated"]);
    run("the generator", generate.args(["--client", "@hey-api/client-fetch", "--no-log-file"]));
    let mut compile = node(&target("node/node_modules/typescript/bin/tsc"));
    compile.args(["--strict", "--target", "es2022", "--lib", "es2022,dom,dom.iterable"]);
    run("tsc", compile.args(["--module", "commonjs", "--moduleResolution", "node10", "client.ts"]));
    run("the client", node(&file("client.js")).arg(&url));
    drop(test);
}

#[test]
fn every_example_of_the_document_is_accepted() {
    let (test, _url) = start_server();
    let mut client = test.server.client();
    let document: Value = serde_json::from_slice(&client.get("/openapi.json").body).expect("JSON");
    let mut tried = 0;
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            let content = operation["requestBody"]["content"].as_object();
            for (content_type, media) in content.into_iter().flatten() {
                let example = &media["example"];
                if example.is_null() {
                    continue;
                }
                let body = example.as_str().map_or_else(|| example.to_string(), str::to_owned);
                let path = path.replace("{job}", "example");
                let headers = [("Content-Type", content_type.as_str())];
                let reply =
                    client.exchange(&request(&method.to_uppercase(), &path, &headers, body.as_bytes()));
                assert!(
                    (200..300).contains(&reply.status),
                    "{method} {path} {content_type}: {}",
                    reply.text()
                );
                tried += 1;
            }
        }
    }
    assert!(tried >= 10, "{tried} examples");
}
