//! Keeps the allocator small: many threads, each of which allocates little.

/// Asks the allocator to share one arena among all threads and to give large blocks back at once. Without it
/// glibc keeps an arena per thread, and whatever once was a large buffer.
#[cfg(target_env = "gnu")]
pub(crate) fn keep_small() {
    const LARGE: libc::c_int = 64 * 1024;
    // SAFETY: mallopt takes two integers, touches only the allocator's own settings, and is called from `main`
    // before another thread exists, which is when glibc allows it.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 2 * LARGE);
    }
}

/// Nothing to do: this C library's allocator has no arenas.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn keep_small() {}
