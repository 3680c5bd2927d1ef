//! The format of append-only files of checksummed records: a file header, then records that begin
//! with the random tag of their file. The journal's segments and the gateway's logs and snapshots
//! have this format; a [`FileFormat`] holds the constants in which they differ. All integers are
//! little-endian, all checksums are CRC32C (Castagnoli).
//!
//! ```text
//! header  magic (8) | version (4) | [kind (4)] | number (8) | tag (8) | [created at, us since 1970 (8)] | CRC32C of these (4)
//! record  tag (8) | bytes of payload (4) | count and flag (4) | CRC32C of number, the fields before and the payload (4) | payload
//! ```
//!
//! The checksum of a record includes the number of its file, so that a stale record of another file
//! is not valid. The tag is random and unknown to clients, so that no payload can contain a valid
//! record. Corruption loses only the records it hits: [`Scan`] resumes at the next occurrence of
//! the tag that begins a record with a matching checksum.
//!
//! It must not depend on the meaning of a payload.

mod header;
mod record;
mod scan;

pub use header::{DecodeHeaderError, FileFormat, FileHeader};
pub use record::{RECORD_HEADER_BYTES, RecordHeader, append_record};
pub use scan::{Damage, OpenError, ReadAt, Scan};

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("the slice has 4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("the slice has 8 bytes"))
}
