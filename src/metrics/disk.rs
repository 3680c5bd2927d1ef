//! Room on the disk of the data directory. The sampler looks; a scrape reads what it saw.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Zero until it has been looked at, or where the kernel does not tell.
#[derive(Debug, Default)]
pub struct DiskRoom {
    free_bytes: AtomicU64,
    bytes: AtomicU64,
}

impl DiskRoom {
    pub fn look(&self, directory: &Path) {
        if let Ok(found) = rustix::fs::statvfs(directory) {
            // What an unprivileged process may still write.
            self.free_bytes.store(found.f_bavail.saturating_mul(found.f_frsize), Ordering::Relaxed);
            self.bytes.store(found.f_blocks.saturating_mul(found.f_frsize), Ordering::Relaxed);
        }
    }

    /// Free, and in all.
    pub fn bytes(&self) -> (u64, u64) {
        (self.free_bytes.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_room_and_a_missing_one_says_nothing() {
        let disk = DiskRoom::default();
        disk.look(Path::new("/nowhere/at/all"));
        assert_eq!(disk.bytes(), (0, 0));
        disk.look(&std::env::temp_dir());
        let (free, all) = disk.bytes();
        assert!(all > 0 && free <= all, "{free} of {all}");
    }
}
