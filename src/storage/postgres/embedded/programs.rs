//! Finds the programs of PostgreSQL: on the PATH, where `pg_config` says, or where Debian keeps them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::ClusterError;
use super::home::Home;

/// The oldest version whose SQL we speak.
const MAJOR_MIN: u32 = 14;
/// Debian keeps the versions side by side, out of the PATH.
const DEBIAN: &str = "/usr/lib/postgresql";

/// A directory with `initdb`, `postgres` and `pg_ctl` of one version.
#[derive(Debug)]
pub(super) struct Programs {
    /// None: they are on the PATH.
    directory: Option<PathBuf>,
}

impl Programs {
    /// The programs of the version that made the cluster, or the first fit ones when there is none yet.
    pub(super) fn find(home: &Home) -> Result<Self, ClusterError> {
        let wanted = home.version();
        let mut found = Vec::new();
        for directory in candidates() {
            let programs = Self { directory };
            let Some(major) = programs.major().filter(|major| *major >= MAJOR_MIN) else {
                continue;
            };
            match &wanted {
                Some(wanted) if *wanted != major.to_string() => found.push(major.to_string()),
                Some(_) | None => return Ok(programs),
            }
        }
        match wanted {
            Some(theirs) if !found.is_empty() => {
                found.dedup();
                let ours = found.join(" and ");
                Err(ClusterError::Version { directory: home.cluster().to_owned(), theirs, ours })
            }
            Some(_) | None => Err(ClusterError::NotInstalled),
        }
    }

    pub(super) fn path(&self, program: &str) -> PathBuf {
        match &self.directory {
            Some(directory) => directory.join(program),
            None => PathBuf::from(program),
        }
    }

    /// The major version, when all three programs are there and run.
    fn major(&self) -> Option<u32> {
        let major = version(&self.path("postgres"))?;
        ["initdb", "pg_ctl"]
            .iter()
            .all(|program| version(&self.path(program)) == Some(major))
            .then_some(major)
    }
}

/// Where to look, in this order, lazily: asking costs a process each.
fn candidates() -> impl Iterator<Item = Option<PathBuf>> {
    let on_path = std::iter::once_with(|| Some(None));
    let configured = std::iter::once_with(|| {
        let output = Command::new("pg_config").arg("--bindir").stdin(Stdio::null()).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| Some(PathBuf::from(text.trim())))
    });
    on_path.chain(configured).flatten().chain(debian().into_iter().map(Some))
}

/// Debian's versions, newest first.
fn debian() -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(DEBIAN) else {
        return Vec::new();
    };
    let mut majors: Vec<u32> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    majors.sort_unstable_by(|a, b| b.cmp(a));
    majors.into_iter().map(|major| Path::new(DEBIAN).join(major.to_string()).join("bin")).collect()
}

fn version(program: &Path) -> Option<u32> {
    let output =
        Command::new(program).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    major_of(std::str::from_utf8(&output.stdout).ok()?)
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`, `initdb (PostgreSQL) 17beta1`.
fn major_of(text: &str) -> Option<u32> {
    let (_name, number) = text.split_once("(PostgreSQL) ")?;
    let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::major_of;

    #[test]
    fn the_major_version_is_read_from_what_the_programs_say() {
        for (text, major) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some(15)),
            ("initdb (PostgreSQL) 17beta1\n", Some(17)),
            ("postgres (PostgreSQL) 14\n", Some(14)),
            ("postgres (PostgreSQL) devel\n", None),
            ("something else 15\n", None),
            ("", None),
        ] {
            assert_eq!(major_of(text), major, "{text}");
        }
    }
}
