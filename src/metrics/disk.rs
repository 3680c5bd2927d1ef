//! Free space of the data directory's file system. The sampler refreshes it; a scrape reads the
//! last sample.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Zero before the first sample, or if statvfs fails.
#[derive(Debug, Default)]
pub struct DiskSpace {
    free_bytes: AtomicU64,
    bytes: AtomicU64,
}

impl DiskSpace {
    pub fn refresh(&self, directory: &Path) {
        if let Ok(found) = rustix::fs::statvfs(directory) {
            // Blocks available to an unprivileged process.
            self.free_bytes.store(found.f_bavail.saturating_mul(found.f_frsize), Ordering::Relaxed);
            self.bytes.store(found.f_blocks.saturating_mul(found.f_frsize), Ordering::Relaxed);
        }
    }

    /// Free and total bytes.
    pub fn bytes(&self) -> (u64, u64) {
        (self.free_bytes.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refresh_reads_a_directory_and_ignores_a_missing_one() {
        let disk = DiskSpace::default();
        disk.refresh(Path::new("/nowhere/at/all"));
        assert_eq!(disk.bytes(), (0, 0));
        disk.refresh(&std::env::temp_dir());
        let (free, all) = disk.bytes();
        assert!(all > 0 && free <= all, "{free} of {all}");
    }
}
