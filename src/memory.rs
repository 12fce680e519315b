//! The system's allocator, which is told that large pieces are wanted in large pages, gives them back when they are freed, and counts
//! what is held. In: requests for memory. Out: memory, and how much of it there is.
//!
//! A tensor of 40 MB touches ten thousand pages of 4 KiB, each an interruption of the first pass over it: half of the time of an
//! averaging round went there. With pages of 2 MiB it is twenty. Where the system has no such pages, or uses them by itself, nothing
//! changes.
//!
//! Left to itself the allocator of glibc keeps blocks of up to 32 MiB once one of that size was freed, among others that are in use,
//! and a process holds up to half more than it asked for. Here blocks of [`GIVEN_BACK`] and more leave when they are freed, but for a
//! few of the latest, which wait for a request of the same size: bodies that come one after the other find their pages.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Bytes of a request that is worth large pages: at least one whole page lies inside, wherever it begins.
const LARGE: usize = 4 << 20;

/// Requests of so many bytes are counted: tensors and bodies. Smaller ones are many, and little together.
const COUNTED: usize = 16 << 10;

/// Freed blocks of so many bytes go back to the system.
pub const GIVEN_BACK: usize = 1 << 20;

/// Bytes that a heap keeps at its end for what comes next.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: usize = 8 << 20;

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
        let waited = waiting::take(layout);
        if !waited.is_null() {
            return taken(waited, layout.size());
        }
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
        unsafe {
            if !waiting::put(pointer, layout) {
                System.dealloc(pointer, layout);
            }
        }
    }
}

/// Has the system's allocator do so. Before the first thread begins.
pub fn give_back_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: these set numbers of the allocator. A refusal leaves it as it was.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, GIVEN_BACK as libc::c_int);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT as libc::c_int);
    }
}

/// Freed blocks that wait for a request of the same size.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod waiting {
    use std::{
        alloc::{GlobalAlloc, Layout, System},
        sync::Mutex,
    };

    /// Bytes of all of them, and of one.
    const ALL: usize = 32 << 20;
    const ONE: usize = 16 << 20;
    const PLACES: usize = 32;
    /// What every one of them is aligned to, at least.
    const ALIGN: usize = 16;

    #[derive(Clone, Copy)]
    struct Block {
        /// Its address; 0: the place is empty.
        at: usize,
        size: usize,
    }

    struct Blocks {
        places: [Block; PLACES],
        /// The place that is filled next, which has waited for longest.
        next: usize,
        bytes: usize,
    }

    const NONE: Block = Block { at: 0, size: 0 };
    static BLOCKS: Mutex<Blocks> = Mutex::new(Blocks { places: [NONE; PLACES], next: 0, bytes: 0 });

    fn may_wait(layout: Layout) -> bool {
        (super::GIVEN_BACK..=ONE).contains(&layout.size()) && layout.align() <= ALIGN
    }

    /// A block of this size that was freed; null if none waits. Who is at the list does nothing that takes time.
    pub fn take(layout: Layout) -> *mut u8 {
        if !may_wait(layout) {
            return std::ptr::null_mut();
        }
        let Ok(mut blocks) = BLOCKS.lock() else { return std::ptr::null_mut() };
        let Some(found) = blocks.places.iter().position(|block| block.size == layout.size()) else {
            return std::ptr::null_mut();
        };
        let block = std::mem::replace(&mut blocks.places[found], NONE);
        blocks.bytes -= block.size;
        std::ptr::with_exposed_provenance_mut(block.at)
    }

    /// Has a freed block wait, and gives back those that waited for longest. False: it is the caller's to give back.
    ///
    /// # Safety
    /// The block is of the system's allocator by this layout, and nobody uses it any more.
    pub unsafe fn put(pointer: *mut u8, layout: Layout) -> bool {
        if !may_wait(layout) {
            return false;
        }
        let Ok(mut blocks) = BLOCKS.lock() else { return false };
        let mut gone = [NONE; PLACES];
        let mut count = 0;
        let mut room = |blocks: &mut Blocks| {
            let next = blocks.next;
            let old = std::mem::replace(&mut blocks.places[next], NONE);
            blocks.bytes -= old.size;
            gone[count] = old;
            count += 1;
            next
        };
        let mut place = room(&mut blocks);
        blocks.places[place] = Block { at: pointer.expose_provenance(), size: layout.size() };
        blocks.bytes += layout.size();
        blocks.next = (place + 1) % PLACES;
        while blocks.bytes > ALL {
            place = room(&mut blocks);
            blocks.next = (place + 1) % PLACES;
        }
        drop(blocks);
        for block in gone.into_iter().filter(|block| block.size > 0) {
            let layout = Layout::from_size_align(block.size, ALIGN).expect("it was one before");
            // SAFETY: it was put here, and its place is empty since.
            unsafe { System.dealloc(std::ptr::with_exposed_provenance_mut(block.at), layout) };
        }
        true
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod waiting {
    use std::alloc::Layout;

    pub fn take(_: Layout) -> *mut u8 {
        std::ptr::null_mut()
    }

    pub unsafe fn put(_: *mut u8, _: Layout) -> bool {
        false
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_was_freed_waits_for_the_next_of_its_size() {
        let layout = |size| Layout::from_size_align(size, 8).unwrap();
        let (odd, other) = (layout(GIVEN_BACK + 4321), layout(GIVEN_BACK + 9999));
        // SAFETY: what is allocated is freed once, by its own layout, and not used after that.
        unsafe {
            let first = Large.alloc(odd);
            first.write(7);
            Large.dealloc(first, odd);
            let unlike = Large.alloc(other);
            let like = Large.alloc(odd);
            assert_ne!(unlike, like);
            if cfg!(all(target_os = "linux", target_env = "gnu")) {
                assert_eq!(like, first);
            }
            let zeroed = Large.alloc_zeroed(odd);
            assert_eq!(zeroed.read(), 0);
            for (pointer, layout) in [(like, odd), (unlike, other), (zeroed, odd)] {
                Large.dealloc(pointer, layout);
            }
            // More than may wait: those that waited for longest leave, and none twice.
            let many: Vec<_> = (0..100).map(|i| layout(GIVEN_BACK + 64 * i)).map(|l| (Large.alloc(l), l)).collect();
            many.iter().for_each(|(pointer, _)| pointer.write(1));
            many.iter().for_each(|(pointer, layout)| Large.dealloc(*pointer, *layout));
            let again: Vec<_> = many.iter().map(|(_, layout)| (Large.alloc(*layout), *layout)).collect();
            let mut addresses: Vec<_> = again.iter().map(|(pointer, _)| *pointer).collect();
            addresses.sort();
            addresses.dedup();
            assert_eq!(addresses.len(), 100);
            again.into_iter().for_each(|(pointer, layout)| Large.dealloc(pointer, layout));
        }
    }
}
