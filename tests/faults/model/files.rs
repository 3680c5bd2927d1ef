//! A directory as the kernel has it and as the disk has it, and what a power cut makes of the difference.
//!
//! What is appended is dirty until a sync. A sync that fails leaves it readable and never writes it again, as Linux
//! does; a name is on disk when the directory was synced after it was made. A power cut keeps any sectors of what is
//! dirty and any of the operations on names. Knows nothing of what the files hold.

use std::collections::BTreeMap;
use std::ops::Range;

use rand::RngExt;
use rand::rngs::StdRng;

/// What a disk writes whole, if it is not cut off within.
const SECTOR_BYTES: usize = 512;

#[derive(Debug, Default)]
struct Content {
    /// What a reader sees.
    kernel: Vec<u8>,
    /// What is there after a power cut.
    disk: Vec<u8>,
    /// What the next sync writes.
    dirty: Vec<Range<usize>>,
    /// What the sync under way writes.
    in_flight: Vec<Range<usize>>,
    /// What a failed sync left clean and unwritten.
    forsaken: Vec<Range<usize>>,
}

#[derive(Clone, Debug)]
enum Renaming {
    Create(String, usize),
    Remove(String),
    Rename(String, String),
}

type Names = BTreeMap<String, usize>;

/// The directory.
#[derive(Debug, Default)]
pub(super) struct Files {
    contents: Vec<Content>,
    kernel: Names,
    disk: Names,
    /// What the next sync of the directory writes.
    dirty: Vec<Renaming>,
}

impl Files {
    pub(super) fn names(&self) -> Vec<String> {
        self.kernel.keys().cloned().collect()
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.kernel.get(name).copied()
    }

    /// None when there is a file of this name.
    pub(super) fn create(&mut self, name: &str) -> Option<usize> {
        if self.kernel.contains_key(name) {
            return None;
        }
        self.contents.push(Content::default());
        let file = self.contents.len() - 1;
        self.change(Renaming::Create(name.to_owned(), file));
        Some(file)
    }

    /// Whether there was such a file.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        let there = self.kernel.contains_key(name);
        if there {
            self.change(Renaming::Remove(name.to_owned()));
        }
        there
    }

    /// Whether there was such a file.
    pub(super) fn rename(&mut self, from: &str, to: &str) -> bool {
        let there = self.kernel.contains_key(from);
        if there {
            self.change(Renaming::Rename(from.to_owned(), to.to_owned()));
        }
        there
    }

    fn change(&mut self, renaming: Renaming) {
        apply(&mut self.kernel, &renaming);
        self.dirty.push(renaming);
    }

    pub(super) fn sync_names(&mut self) {
        for renaming in self.dirty.drain(..) {
            apply(&mut self.disk, &renaming);
        }
    }

    /// Any of the names may have got there; a later sync does not try them again.
    pub(super) fn fail_to_sync_names(&mut self, chance: &mut StdRng) {
        for renaming in std::mem::take(&mut self.dirty) {
            if chance.random() {
                apply(&mut self.disk, &renaming);
            }
        }
    }

    /// At the end of the file or before.
    pub(super) fn write(&mut self, file: usize, at: usize, bytes: &[u8]) {
        let content = &mut self.contents[file];
        let range = at..at + bytes.len();
        assert!(at <= content.kernel.len(), "a hole of {} bytes is left", at - content.kernel.len());
        if content.kernel.len() < range.end {
            content.kernel.resize(range.end, 0);
        }
        content.kernel[range.clone()].copy_from_slice(bytes);
        content.dirty.push(range);
    }

    pub(super) fn content(&self, file: usize) -> &[u8] {
        &self.contents[file].kernel
    }

    /// What is written from here on is for the next sync.
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

    /// Any sectors may have got there; a later sync does not try them again.
    pub(super) fn fail_to_sync(&mut self, file: usize, chance: &mut StdRng) {
        let content = &mut self.contents[file];
        for range in std::mem::take(&mut content.in_flight) {
            content.forsaken.push(range.clone());
            content.write_some_back(range, chance);
        }
    }

    /// Whether something is readable that no sync will ever write.
    pub(super) fn has_forsaken(&self) -> bool {
        let mut disk = self.disk.clone();
        self.dirty.iter().for_each(|renaming| apply(&mut disk, renaming));
        let is_forsaken = |(name, file): (&String, &usize)| {
            disk.get(name) != Some(file) || !self.contents[*file].forsaken.is_empty()
        };
        self.kernel.iter().any(is_forsaken)
    }

    /// The kernel wants its memory back: what it holds for clean is read from disk again.
    pub(super) fn evict(&mut self) {
        for content in &mut self.contents {
            for range in std::mem::take(&mut content.forsaken) {
                for at in range {
                    content.kernel[at] = content.disk.get(at).copied().unwrap_or(0);
                }
            }
        }
    }

    pub(super) fn cut_power(&mut self, chance: &mut StdRng) {
        // Nothing, all, as far as the disk had come, or any of it.
        let dirty = std::mem::take(&mut self.dirty);
        let manner = chance.random_range(0..4);
        let come_to = chance.random_range(0..=dirty.len());
        for (nth, renaming) in dirty.iter().enumerate() {
            let survives = match manner {
                0 => false,
                1 => true,
                2 => nth < come_to,
                _ => chance.random(),
            };
            if survives {
                apply(&mut self.disk, renaming);
            }
        }
        self.kernel = self.disk.clone();
        for content in &mut self.contents {
            let mut dirty = std::mem::take(&mut content.in_flight);
            dirty.append(&mut content.dirty);
            let manner = chance.random_range(0..3);
            for range in dirty {
                match manner {
                    0 => {}
                    1 => content.write_back(range),
                    _ => content.write_some_back(range, chance),
                }
            }
            content.forsaken.clear();
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

    /// Some sectors of the range get to the disk, in no order, and the last of them perhaps in part.
    fn write_some_back(&mut self, range: Range<usize>, chance: &mut StdRng) {
        let end = chance.random_range(range.start..=range.end);
        let mut at = range.start;
        while at < end {
            let next = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
            if chance.random() {
                self.write_back(at..next);
            }
            at = next;
        }
    }
}

fn apply(names: &mut Names, renaming: &Renaming) {
    match renaming {
        Renaming::Create(name, file) => {
            names.insert(name.clone(), *file);
        }
        Renaming::Remove(name) => {
            names.remove(name);
        }
        Renaming::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
    }
}
