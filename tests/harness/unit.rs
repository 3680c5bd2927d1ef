//! Runs the service of a unit file inside a root directory, where no systemd runs.
//!
//! Of the unit it uses `ExecStart`, `Environment`, `EnvironmentFile`, `LoadCredential`, `User`,
//! `StateDirectory` with its mode, `UMask` and `NoNewPrivileges`, with the drop-ins. Simulated are
//! systemd's part in them, `systemctl` and `ExecReload`; the sandbox, the limits, the notifications
//! and the watchdog are left out.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::process::{exit_within, pdeathsig_command, signal};

const EXIT_MAX: Duration = Duration::from_secs(45);

/// The `[Service]` section with all its values, in order.
#[derive(Debug)]
pub(crate) struct Unit {
    root: PathBuf,
    name: String,
    service: HashMap<String, Vec<String>>,
}

impl Unit {
    /// Reads `NAME.service` and its drop-ins below the directory `units` of `root`.
    #[track_caller]
    pub(crate) fn read(root: &Path, units: &str, name: &str) -> Self {
        let units = root.join(units.trim_start_matches('/'));
        let mut files = vec![units.join(format!("{name}.service"))];
        let drop_ins = fs::read_dir(units.join(format!("{name}.service.d"))).expect("it has drop-ins");
        let mut drop_ins: Vec<_> = drop_ins.map(|entry| entry.expect("it can be read").path()).collect();
        drop_ins.sort();
        files.extend(drop_ins);
        let mut service: HashMap<String, Vec<String>> = HashMap::new();
        for file in files {
            let mut is_service = false;
            for line in fs::read_to_string(file).expect("the unit can be read").lines() {
                if line.starts_with('[') {
                    is_service = line == "[Service]";
                } else if let Some((key, value)) = line.split_once('=')
                    && is_service
                    && !line.starts_with('#')
                {
                    service.entry(key.to_owned()).or_default().push(value.to_owned());
                }
            }
        }
        Self { root: root.to_owned(), name: name.to_owned(), service }
    }

    fn all(&self, key: &str) -> &[String] {
        self.service.get(key).map_or(&[], Vec::as_slice)
    }

    #[track_caller]
    fn last(&self, key: &str) -> &str {
        self.all(key).last().unwrap_or_else(|| panic!("the unit has no {key}"))
    }

    fn credentials(&self) -> String {
        format!("/run/credentials/{}.service", self.name)
    }

    /// Starts the service, as `systemctl start` would. Its log goes to `log`.
    #[track_caller]
    pub(crate) fn start(&self, log: &Path) -> Service {
        assert_eq!(self.last("DynamicUser"), "no", "the package creates the user");
        let user = self.last("User");
        self.prepare(user);
        let expand = |value: &str| value.replace("%S", "/var/lib").replace("%d", &self.credentials());
        let mut environment = Vec::new();
        for file in self.all("EnvironmentFile") {
            let (path, is_optional) =
                file.strip_prefix('-').map_or((file.as_str(), false), |path| (path, true));
            match fs::read_to_string(self.inside(path)) {
                Ok(text) => environment.extend(
                    text.lines()
                        .filter(|line| !line.starts_with('#'))
                        .filter_map(|line| line.split_once('='))
                        .map(|(name, value)| (name.to_owned(), value.to_owned())),
                ),
                Err(error) => assert!(is_optional, "{path}: {error}"),
            }
        }
        for line in self.all("Environment") {
            let (name, value) = line.split_once('=').expect("NAME=value");
            environment.push((name.to_owned(), expand(value)));
        }
        assert_eq!(self.last("NoNewPrivileges"), "yes");
        let exec = format!(
            "mount -t proc proc \"$0/proc\" && exec chroot --userspec={user}:{} \"$0\" \
             setpriv --pdeathsig KILL --no-new-privs -- sh -c 'umask {}; exec {}'",
            self.last("Group"),
            self.last("UMask"),
            self.last("ExecStart"),
        );
        let mut command = pdeathsig_command("KILL", None, "unshare");
        command.args(["--mount", "--propagation", "private", "--", "sh", "-c", &exec]).arg(&self.root);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs(environment);
        let log = File::options().create(true).append(true).open(log).expect("the log can be written");
        command.stdout(Stdio::null()).stderr(log);
        Service { child: command.spawn().expect("unshare (util-linux) runs") }
    }

    /// The credentials and the state directory.
    #[track_caller]
    fn prepare(&self, user: &str) {
        let credentials = self.inside(&self.credentials());
        fs::create_dir_all(&credentials).expect("it can be made");
        for credential in self.all("LoadCredential") {
            let (name, path) = credential.split_once(':').expect("NAME:PATH");
            let secret = fs::read(self.inside(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
            fs::write(credentials.join(name), secret).expect("it can be written");
        }
        let state = format!("/var/lib/{}", self.last("StateDirectory"));
        let mode = self.last("StateDirectoryMode");
        run_in(&self.root, &format!("install -d -m {mode} -o {user} -g {user} {state}"));
        let credentials = self.credentials();
        run_in(&self.root, &format!("chown -R {user} {credentials} && chmod -R u=rX,go= {credentials}"));
    }

    fn inside(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

/// A running service.
#[derive(Debug)]
pub(crate) struct Service {
    child: Child,
}

impl Service {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops the service, as `systemctl stop` would, and asserts exit code 0.
    #[track_caller]
    pub(crate) fn stop(mut self) {
        signal("TERM", self.child.id());
        let status = exit_within(EXIT_MAX, "the service", &mut self.child);
        assert_eq!(status.code(), Some(0), "after SIGTERM");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            signal("KILL", self.child.id());
            self.child.wait().expect("a child can be waited for");
        }
    }
}

/// Runs a command of a shell inside `root` and returns what it printed.
#[track_caller]
pub(crate) fn run_in(root: &Path, command: &str) -> String {
    let mount = "mount -t proc proc \"$0/proc\" && exec chroot \"$0\" sh -c \"$1\"";
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--", "sh", "-c", mount])
        .arg(root)
        .arg(command)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .output()
        .expect("unshare (util-linux) runs");
    let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{command}: {printed}");
    printed
}
