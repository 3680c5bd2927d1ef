//! Finds PostgreSQL's programs: on the PATH, in `pg_config --bindir`, or in Debian's directories.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::ClusterError;
use super::paths::ClusterPaths;

/// The oldest supported major version.
const MAJOR_MIN: u32 = 14;
/// Debian installs each version in a subdirectory, outside of the PATH.
const DEBIAN_DIR: &str = "/usr/lib/postgresql";

/// A directory with `initdb` and `postgres` of one version.
#[derive(Debug)]
pub(super) struct Programs {
    /// None when the programs are on the PATH.
    directory: Option<PathBuf>,
}

impl Programs {
    /// Finds the programs of the version that created the cluster, or the first supported version
    /// when there is no cluster.
    pub(super) fn find(paths: &ClusterPaths) -> Result<Self, ClusterError> {
        let required = paths.version();
        let mut found = Vec::new();
        for directory in candidates() {
            let programs = Self { directory };
            let Some(major) = programs.major().filter(|major| *major >= MAJOR_MIN) else {
                continue;
            };
            match &required {
                Some(required) if *required != major.to_string() => found.push(major.to_string()),
                Some(_) | None => return Ok(programs),
            }
        }
        match required {
            Some(cluster_version) if !found.is_empty() => {
                found.dedup();
                let installed = found.join(" and ");
                Err(ClusterError::VersionMismatch {
                    directory: paths.cluster().to_owned(),
                    cluster_version,
                    installed,
                })
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

    /// Returns the major version when both programs exist, run and agree on it.
    fn major(&self) -> Option<u32> {
        let major = version(&self.path("postgres"))?;
        (version(&self.path("initdb")) == Some(major)).then_some(major)
    }
}

/// Lists the directories to search, lazily, since each check starts a process.
fn candidates() -> impl Iterator<Item = Option<PathBuf>> {
    let on_path = std::iter::once_with(|| Some(None));
    let configured = std::iter::once_with(|| {
        let output = Command::new("pg_config").arg("--bindir").stdin(Stdio::null()).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| Some(PathBuf::from(text.trim())))
    });
    on_path.chain(configured).flatten().chain(debian_directories().into_iter().map(Some))
}

/// Lists the directories of Debian's versions, newest first.
fn debian_directories() -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(DEBIAN_DIR) else {
        return Vec::new();
    };
    let mut majors: Vec<u32> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    majors.sort_unstable_by(|a, b| b.cmp(a));
    majors.into_iter().map(|major| Path::new(DEBIAN_DIR).join(major.to_string()).join("bin")).collect()
}

fn version(program: &Path) -> Option<u32> {
    let output =
        Command::new(program).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    parse_major(std::str::from_utf8(&output.stdout).ok()?)
}

/// Parses `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` or `initdb (PostgreSQL) 17beta1`.
fn parse_major(text: &str) -> Option<u32> {
    let (_name, number) = text.split_once("(PostgreSQL) ")?;
    let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::parse_major;

    #[test]
    fn major_version_is_parsed_from_the_version_output() {
        for (text, major) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some(15)),
            ("initdb (PostgreSQL) 17beta1\n", Some(17)),
            ("postgres (PostgreSQL) 14\n", Some(14)),
            ("postgres (PostgreSQL) devel\n", None),
            ("something else 15\n", None),
            ("", None),
        ] {
            assert_eq!(parse_major(text), major, "{text}");
        }
    }
}
