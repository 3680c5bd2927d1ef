//! Settings of the C library's allocator, so that freed memory goes back to the system.

/// Sets the sizes above which glibc gives memory back. Must be called before the first thread is
/// started.
///
/// Blocks of 1 MiB and more are mapped, and unmapped as soon as they are freed. By default glibc
/// raises its threshold, up to 32 MiB, with each freed block, and keeps later blocks of that size in
/// the arena of their thread: pages of 8 MiB left 100 MiB resident, 30 with these values. Requests
/// of common sizes need no larger block, so that they do not pay for the mapping.
#[cfg(target_env = "gnu")]
pub fn configure() {
    for (parameter, bytes) in [(libc::M_MMAP_THRESHOLD, 1 << 20), (libc::M_TRIM_THRESHOLD, 2 << 20)] {
        #[expect(unsafe_code, reason = "the only interface to these parameters")]
        // SAFETY: mallopt has no preconditions on its arguments, and no other thread runs yet.
        let accepted = unsafe { libc::mallopt(parameter, bytes) };
        debug_assert_eq!(accepted, 1, "BUG: glibc refused an allocator parameter");
    }
}

/// Other C libraries give memory back by themselves.
#[cfg(not(target_env = "gnu"))]
pub fn configure() {}
