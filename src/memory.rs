//! The system's allocator, which is told that large pieces are wanted in large pages, and counts what is held. In: requests for
//! memory. Out: memory, and how much of it there is.
//!
//! A tensor of 40 MB touches ten thousand pages of 4 KiB, each an interruption of the first pass over it, and the kernel gives
//! large blocks back whenever they are freed: half of the time of an averaging round went there. With pages of 2 MiB it is
//! twenty. Where the system has no such pages, or uses them by itself, nothing changes.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Bytes of a request that is worth it: at least one whole large page lies inside, wherever it begins.
const LARGE: usize = 4 << 20;

/// Requests of so many bytes are counted: tensors and bodies. Smaller ones are many, and little together.
const COUNTED: usize = 16 << 10;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

/// Bytes of blocks that this process holds now, and the most that it ever held. Nothing where another allocator is in use.
pub fn held() -> Option<(u64, u64)> {
    let most = MOST.load(Relaxed) as u64;
    (most > 0).then(|| (HELD.load(Relaxed) as u64, most))
}

fn taken(pointer: *mut u8, size: usize) -> *mut u8 {
    if size >= COUNTED && !pointer.is_null() {
        MOST.fetch_max(HELD.fetch_add(size, Relaxed) + size, Relaxed);
    }
    pointer
}

fn given_back(size: usize) {
    if size >= COUNTED {
        HELD.fetch_sub(size, Relaxed);
    }
}

pub struct Large;

// SAFETY: all memory comes from the system's allocator and goes back to it, as it was asked for; advice and counts change none of it.
unsafe impl GlobalAlloc for Large {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promised.
        taken(advised(unsafe { System.alloc(layout) }, layout.size()), layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promised.
        taken(advised(unsafe { System.alloc_zeroed(layout) }, layout.size()), layout.size())
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller promised.
        let moved = advised(unsafe { System.realloc(pointer, layout, size) }, size);
        if !moved.is_null() {
            given_back(layout.size());
        }
        taken(moved, size)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        given_back(layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Asks for large pages where whole ones lie inside.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn advised(pointer: *mut u8, size: usize) -> *mut u8 {
    const PAGE: usize = 2 << 20;
    if size >= LARGE && !pointer.is_null() {
        let skipped = pointer.align_offset(PAGE);
        let whole = size.saturating_sub(skipped) / PAGE * PAGE;
        // SAFETY: the range lies inside memory that was just given to us. A refusal is none of our business.
        unsafe { libc::madvise(pointer.wrapping_add(skipped).cast(), whole, libc::MADV_HUGEPAGE) };
    }
    pointer
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn advised(pointer: *mut u8, size: usize) -> *mut u8 {
    let _ = (size, LARGE);
    pointer
}
