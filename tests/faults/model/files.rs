//! A simulated directory: its state in the page cache and on disk, and the effect of a power cut.
//!
//! Written data is dirty until a sync. A failed sync leaves the data readable and clean, and no
//! later sync writes it, as on Linux. A name is on disk once the directory was synced after the
//! change. A power cut keeps arbitrary dirty sectors and arbitrary changes of names. The module
//! does not depend on the contents of the files.

use std::collections::BTreeMap;
use std::ops::Range;

use rand::RngExt;
use rand::rngs::StdRng;

/// The unit of a disk write; a power cut may tear only the last one.
const SECTOR_BYTES: usize = 512;

#[derive(Debug, Default)]
struct Content {
    /// The contents that a reader gets.
    kernel: Vec<u8>,
    /// The contents after a power cut.
    disk: Vec<u8>,
    /// Ranges that the next sync writes.
    dirty: Vec<Range<usize>>,
    /// Ranges that the running sync writes.
    in_flight: Vec<Range<usize>>,
    /// Ranges that a failed sync left clean and unwritten.
    dropped_dirty: Vec<Range<usize>>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Create(String, usize),
    Remove(String),
    Rename(String, String),
}

type Names = BTreeMap<String, usize>;

/// The directory.
#[derive(Debug, Default)]
pub(super) struct SimDirectory {
    contents: Vec<Content>,
    kernel: Names,
    disk: Names,
    /// Changes that the next sync of the directory writes.
    dirty: Vec<NameChange>,
}

impl SimDirectory {
    pub(super) fn names(&self) -> Vec<String> {
        self.kernel.keys().cloned().collect()
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.kernel.get(name).copied()
    }

    /// None if a file of this name exists.
    pub(super) fn create(&mut self, name: &str) -> Option<usize> {
        if self.kernel.contains_key(name) {
            return None;
        }
        self.contents.push(Content::default());
        let file = self.contents.len() - 1;
        self.change(NameChange::Create(name.to_owned(), file));
        Some(file)
    }

    /// Whether there was such a file.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        let there = self.kernel.contains_key(name);
        if there {
            self.change(NameChange::Remove(name.to_owned()));
        }
        there
    }

    /// Whether there was such a file.
    pub(super) fn rename(&mut self, from: &str, to: &str) -> bool {
        let there = self.kernel.contains_key(from);
        if there {
            self.change(NameChange::Rename(from.to_owned(), to.to_owned()));
        }
        there
    }

    fn change(&mut self, name_change: NameChange) {
        apply(&mut self.kernel, &name_change);
        self.dirty.push(name_change);
    }

    pub(super) fn sync_names(&mut self) {
        for name_change in self.dirty.drain(..) {
            apply(&mut self.disk, &name_change);
        }
    }

    /// Any of the changes may be on disk; a later sync does not write them.
    pub(super) fn fail_names_sync(&mut self, rng: &mut StdRng) {
        for name_change in std::mem::take(&mut self.dirty) {
            if rng.random() {
                apply(&mut self.disk, &name_change);
            }
        }
    }

    /// Writes at the end of the file or before.
    pub(super) fn write(&mut self, file: usize, at: usize, bytes: &[u8]) {
        let content = &mut self.contents[file];
        let range = at..at + bytes.len();
        assert!(at <= content.kernel.len(), "a hole of {} bytes", at - content.kernel.len());
        if content.kernel.len() < range.end {
            content.kernel.resize(range.end, 0);
        }
        content.kernel[range.clone()].copy_from_slice(bytes);
        content.dirty.push(range);
    }

    pub(super) fn content(&self, file: usize) -> &[u8] {
        &self.contents[file].kernel
    }

    /// Later writes belong to the next sync.
    pub(super) fn begin_sync(&mut self, file: usize) {
        let content = &mut self.contents[file];
        content.in_flight.append(&mut content.dirty);
    }

    pub(super) fn end_sync(&mut self, file: usize) {
        let content = &mut self.contents[file];
        for range in std::mem::take(&mut content.in_flight) {
            content.write_back(range);
        }
    }

    /// Any sectors may be on disk; a later sync does not write them.
    pub(super) fn fail_sync(&mut self, file: usize, rng: &mut StdRng) {
        let content = &mut self.contents[file];
        for range in std::mem::take(&mut content.in_flight) {
            content.dropped_dirty.push(range.clone());
            content.write_some_back(range, rng);
        }
    }

    /// Whether readable data or names exist that no sync will write.
    pub(super) fn has_unwritable_data(&self) -> bool {
        let mut disk = self.disk.clone();
        self.dirty.iter().for_each(|name_change| apply(&mut disk, name_change));
        let is_unwritten = |(name, file): (&String, &usize)| {
            disk.get(name) != Some(file) || !self.contents[*file].dropped_dirty.is_empty()
        };
        self.kernel.iter().any(is_unwritten)
    }

    /// Evicts the page cache: clean data is read from disk again.
    pub(super) fn evict(&mut self) {
        for content in &mut self.contents {
            for range in std::mem::take(&mut content.dropped_dirty) {
                for at in range {
                    content.kernel[at] = content.disk.get(at).copied().unwrap_or(0);
                }
            }
        }
    }

    pub(super) fn power_cut(&mut self, rng: &mut StdRng) {
        // Nothing, all, a prefix, or any subset survives.
        let dirty = std::mem::take(&mut self.dirty);
        let mode = rng.random_range(0..4);
        let prefix = rng.random_range(0..=dirty.len());
        for (nth, name_change) in dirty.iter().enumerate() {
            let survives = match mode {
                0 => false,
                1 => true,
                2 => nth < prefix,
                _ => rng.random(),
            };
            if survives {
                apply(&mut self.disk, name_change);
            }
        }
        self.kernel = self.disk.clone();
        for content in &mut self.contents {
            let mut dirty = std::mem::take(&mut content.in_flight);
            dirty.append(&mut content.dirty);
            let mode = rng.random_range(0..3);
            for range in dirty {
                match mode {
                    0 => {}
                    1 => content.write_back(range),
                    _ => content.write_some_back(range, rng),
                }
            }
            content.dropped_dirty.clear();
            content.kernel = content.disk.clone();
        }
    }
}

impl Content {
    fn write_back(&mut self, range: Range<usize>) {
        if self.disk.len() < range.end {
            self.disk.resize(range.end, 0);
        }
        self.disk[range.clone()].copy_from_slice(&self.kernel[range]);
    }

    /// Writes an arbitrary subset of the sectors of the range, perhaps the last one in part.
    fn write_some_back(&mut self, range: Range<usize>, rng: &mut StdRng) {
        let end = rng.random_range(range.start..=range.end);
        let mut at = range.start;
        while at < end {
            let next = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
            if rng.random() {
                self.write_back(at..next);
            }
            at = next;
        }
    }
}

fn apply(names: &mut Names, name_change: &NameChange) {
    match name_change {
        NameChange::Create(name, file) => {
            names.insert(name.clone(), *file);
        }
        NameChange::Remove(name) => {
            names.remove(name);
        }
        NameChange::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
    }
}
