//! Keys of the advisory locks. They are transaction-level locks, and the same in all versions of
//! the server. Any number serves as a key; these begin with "aurore" in ASCII.

/// One server at a time migrates.
pub(super) const MIGRATE: i64 = 0x6175_726f_7265_0001;
/// One server at a time creates partitions.
pub(super) const PARTITION: i64 = 0x6175_726f_7265_0002;
/// One server at a time sweeps or repairs counts.
pub(super) const SWEEP: i64 = 0x6175_726f_7265_0003;
/// One process at a time replays dead letters.
pub(super) const REPLAY_DEAD: i64 = 0x6175_726f_7265_0004;
