//! The file operations of the journal, as traits, so that a test can fail each operation or
//! simulate a power cut between any two. [`OsDirectory`] is the implementation on the operating
//! system.

use std::fmt::Debug;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A flat directory of append-only files.
pub trait Filesystem: Send + Sync + Debug {
    /// Returns the names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Creates an empty file. Fails if a file of this name exists.
    fn create(&self, name: &str) -> io::Result<Box<dyn File>>;
    fn open(&self, name: &str) -> io::Result<Box<dyn File>>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Syncs the directory: afterwards, the names of the files created before survive a power cut.
    fn sync_dir(&self) -> io::Result<()>;
}

/// One file. One thread writes it; another may sync it at the same time.
pub trait File: Send + Sync + Debug {
    /// Writes all of `bytes` at offset `at`, which is at most the length of the file. After an
    /// error, any part of `bytes` may have been written.
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Syncs the data: afterwards, all bytes written before the call survive a power cut. After an
    /// error, their state is unknown, and a retry may succeed without having written anything.
    fn sync(&self) -> io::Result<()>;
    fn bytes(&self) -> io::Result<u64>;
    /// Fills `into` from offset `at`. Fails if the file ends before.
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()>;
}

/// A directory of the operating system.
#[derive(Debug)]
pub struct OsDirectory(PathBuf);

impl OsDirectory {
    /// Opens the directory, creating it if needed, and syncs its parent. The files contain events:
    /// other users must not read them.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        if fs::metadata(&path)?.permissions().mode() & 0o077 != 0
            && let Err(error) = fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
        {
            log::warn!("other users can read {}: {error}", path.display());
        }
        // Without this sync, a power cut could lose the directory itself, with the files synced in
        // it.
        if let Some(parent) = path.parent() {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            fs::File::open(parent)?.sync_all()?;
        }
        Ok(Self(path))
    }

    /// Opens the directory without creating it.
    pub fn open_existing(path: PathBuf) -> io::Result<Self> {
        fs::read_dir(&path)?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Filesystem for OsDirectory {
    fn list(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.0)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.write(true).read(true).create_new(true).mode(0o600);
        let file = options.open(self.0.join(name))?;
        Ok(Box::new(file))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        Ok(Box::new(fs::File::open(self.0.join(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.0.join(from), self.0.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.0.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        fs::File::open(&self.0)?.sync_all()
    }
}

impl File for fs::File {
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(into, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn other_users_cannot_read_the_directory_and_its_files() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/journal");
        OsDirectory::open(path.clone()).unwrap().create("1").unwrap();
        assert_eq!((mode(&path), mode(&path.join("1"))), (0o700, 0o600));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        OsDirectory::open(path.clone()).unwrap();
        assert_eq!(mode(&path), 0o700, "a directory of an older version is restricted");
    }
}
