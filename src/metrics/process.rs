//! CPU time and memory of the process, read from /proc. Called by the sampler only.

use std::time::Duration;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessUsage {
    /// User and system time of all threads.
    pub cpu: Duration,
    /// Resident memory.
    pub memory_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
pub struct Process {
    ticks_per_second: u64,
    page_bytes: u64,
}

impl Process {
    /// `USER_HZ` has been 100 on every architecture this runs on (proc(5), `utime`); pages are 4
    /// KiB on x86-64 and on nearly all arm64.
    pub const fn new() -> Self {
        Self { ticks_per_second: 100, page_bytes: 4096 }
    }

    /// Zero if /proc cannot be read.
    pub fn usage(&self) -> ProcessUsage {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // Field 2 is a name in parentheses that may contain spaces and parentheses: skip to its
        // end. utime and stime are fields 14 and 15 of proc(5).
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let ticks: u64 =
            fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
        ProcessUsage {
            cpu: Duration::from_millis(ticks * 1000 / self.ticks_per_second),
            memory_bytes: pages * self.page_bytes,
        }
    }
}

impl Default for Process {
    fn default() -> Self {
        Self::new()
    }
}
