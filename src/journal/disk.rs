//! The few operations on files that the journal needs, so that a test can make each of them fail, or cut the power
//! between any two. [`Directory`] is the real one.

use std::fmt::Debug;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A directory of files that only grow.
pub trait Disk: Send + Sync + Debug {
    /// The names of all files.
    fn names(&self) -> io::Result<Vec<String>>;
    /// A new file, empty. It is an error that there is one of this name.
    fn create(&self, name: &str) -> io::Result<Box<dyn File>>;
    fn open(&self, name: &str) -> io::Result<Box<dyn File>>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// After it, the names of the files that were made survive a power cut.
    fn sync(&self) -> io::Result<()>;
}

/// One file. It is written by one thread and may be synced by another meanwhile.
pub trait File: Send + Sync + Debug {
    /// Writes all of `bytes` at `at`, at the end of the file or before. After an error, any part of them may be there.
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// After it, what was written before it began survives a power cut. After an error, nothing is known of it, and
    /// trying again may succeed without having written anything.
    fn sync(&self) -> io::Result<()>;
    fn bytes(&self) -> io::Result<u64>;
    /// Fills `into` from `at`; it is an error that the file ends before.
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()>;
}

/// A directory of the operating system's.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    pub fn open(path: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&path)?;
        // What is synced within is lost all the same if its own name is.
        if let Some(parent) = path.parent() {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            fs::File::open(parent)?.sync_all()?;
        }
        Ok(Self(path))
    }

    /// Without making it.
    pub fn open_existing(path: PathBuf) -> io::Result<Self> {
        fs::read_dir(&path)?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Disk for Directory {
    fn names(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.0)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let file = fs::OpenOptions::new().write(true).read(true).create_new(true).open(self.0.join(name))?;
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

    fn sync(&self) -> io::Result<()> {
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
