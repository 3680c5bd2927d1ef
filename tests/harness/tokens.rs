//! Access tokens, made by the command.

use super::server::run;

/// A token for these scopes and services (none: all), and its line of the tokens file.
#[track_caller]
pub(crate) fn create_token(name: &str, scopes: &str, services: &[&str]) -> (String, String) {
    let services = services.join(",");
    let mut arguments = vec!["token", "create", "--name", name, "--scopes", scopes];
    if !services.is_empty() {
        arguments.extend(["--services", &services]);
    }
    let ended = run(&[], &arguments);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    let [token, line] = lines[..] else { panic!("not a token and a line: {lines:?}") };
    (token.to_owned(), line.to_owned())
}
