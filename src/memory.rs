//! The system's allocator, which is told that large pieces are wanted in large pages, and which keeps a few of them for the next.
//! In: requests for memory. Out: memory.
//!
//! A tensor of 40 MB touches ten thousand pages of 4 KiB, each an interruption of the first pass over it. With pages of 2 MiB
//! it is twenty; but the system's allocator gives large blocks back whenever they are freed, and pages that come anew are filled
//! with zeros first: a third of the time of an averaging round went there, since each round takes the same few tensors again.
//! So the last large blocks that were freed are kept. The kernel may take their pages away whenever it needs some, and until it
//! does the next one finds them as they were. Where the system has no such pages, or uses them by itself, nothing changes.

use std::alloc::{GlobalAlloc, Layout, System};

#[cfg(any(target_os = "linux", target_os = "android"))]
use self::shelf::Shelf;

pub struct Large;

// SAFETY: all memory comes from the system's allocator and goes back to it with the layout it was asked for, which follows from
// the layout that the caller names alone. A block on the shelf is nobody's, and is taken from it by one caller.
#[cfg(any(target_os = "linux", target_os = "android"))]
unsafe impl GlobalAlloc for Large {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match Shelf::block(layout) {
            // SAFETY: as the caller promised.
            None => unsafe { System.alloc(layout) },
            // SAFETY: a block is not of size 0.
            Some(block) => SHELF.take(block).unwrap_or_else(|| unsafe { shelf::fresh(block) }),
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(block) = Shelf::block(layout) else {
            // SAFETY: as the caller promised.
            return unsafe { System.alloc_zeroed(layout) };
        };
        match SHELF.take(block) {
            // SAFETY: the block is as long as its layout says, and nobody else's.
            Some(pointer) => unsafe {
                pointer.write_bytes(0, layout.size());
                pointer
            },
            // SAFETY: pages that come anew are zero.
            None => unsafe { shelf::fresh_zeroed(block) },
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the new size is valid for the alignment.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (Shelf::block(layout), Shelf::block(new)) {
            // SAFETY: as the caller promised.
            (None, None) => unsafe { System.realloc(pointer, layout, size) },
            (before, after) if before == after => pointer,
            // The system moves pages rather than what is in them.
            // SAFETY: the block was made with the layout `before`, and the new size is that of a block.
            (Some(before), Some(after)) => unsafe { shelf::longer(pointer, before, after) },
            // SAFETY: both blocks are as long as their layouts say, they do not overlap, and the old one is the caller's to give.
            _ => unsafe {
                let moved = self.alloc(new);
                if !moved.is_null() {
                    pointer.copy_to_nonoverlapping(moved, layout.size().min(size));
                    self.dealloc(pointer, layout);
                }
                moved
            },
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        match Shelf::block(layout) {
            // SAFETY: as the caller promised.
            None => unsafe { System.dealloc(pointer, layout) },
            // SAFETY: the block was made with this layout, and the caller gives it up.
            Some(block) => unsafe { SHELF.put(pointer, block) },
        }
    }
}

// SAFETY: it is the system's allocator.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
unsafe impl GlobalAlloc for Large {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller promised.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
static SHELF: Shelf = Shelf::new();

/// Large blocks that were freed last.
#[cfg(any(target_os = "linux", target_os = "android"))]
mod shelf {
    use std::{
        alloc::{GlobalAlloc, Layout, System},
        sync::{Mutex, PoisonError},
    };

    /// Bytes of a request that is worth it.
    const LARGE: usize = 4 << 20;
    /// A large page; blocks are as long as a number of them.
    const PAGE: usize = 2 << 20;
    /// What every block is aligned to: more would have the system fill it with zeros by hand where it is asked for zeros.
    const ALIGN: usize = 16;
    /// Blocks that are kept, and their bytes: what a round of a stage of 40 MB takes.
    const PLACES: usize = 8;
    const BYTES: usize = 256 << 20;

    pub struct Shelf(Mutex<Places>);

    /// The blocks, the oldest first, without gaps.
    struct Places([Option<Kept>; PLACES]);

    #[derive(Clone, Copy)]
    struct Kept {
        /// Its address.
        block: usize,
        size: usize,
    }

    impl Places {
        fn remove(&mut self, at: usize) -> Option<Kept> {
            let kept = self.0[at].take();
            self.0[at..].rotate_left(1);
            kept
        }

        fn bytes(&self) -> usize {
            self.0.iter().flatten().map(|kept| kept.size).sum()
        }
    }

    impl Shelf {
        pub const fn new() -> Shelf {
            Shelf(Mutex::new(Places([None; PLACES])))
        }

        /// The layout of the block that holds a request; nothing where the request is not large.
        pub fn block(layout: Layout) -> Option<Layout> {
            let size = layout.size().checked_next_multiple_of(PAGE).filter(|size| *size >= LARGE)?;
            Layout::from_size_align(size, ALIGN).ok().filter(|_| layout.align() <= ALIGN)
        }

        /// A block of this layout, which is the caller's from now on.
        pub fn take(&self, block: Layout) -> Option<*mut u8> {
            let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let at = places.0.iter().rposition(|place| place.is_some_and(|kept| kept.size == block.size()))?;
            places.remove(at).map(|kept| std::ptr::with_exposed_provenance_mut(kept.block))
        }

        /// # Safety
        /// The block was made with this layout, and nobody uses it any more.
        pub unsafe fn put(&self, pointer: *mut u8, block: Layout) {
            // The kernel may drop the pages when it needs some.
            advise(pointer, block, libc::MADV_FREE);
            let new = Kept { block: pointer.expose_provenance(), size: block.size() };
            // What finds no place any more: the oldest, and the new one where it is larger than the shelf.
            let mut out = [None; PLACES + 1];
            {
                let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let mut gone = 0;
                while places.0[PLACES - 1].is_some() || places.bytes() + new.size > BYTES && places.0[0].is_some() {
                    out[gone] = places.remove(0);
                    gone += 1;
                }
                match places.0.iter_mut().find(|place| place.is_none()).filter(|_| new.size <= BYTES) {
                    Some(place) => *place = Some(new),
                    None => out[gone] = Some(new),
                }
            }
            for kept in out.into_iter().flatten() {
                // SAFETY: every block on the shelf was made with the layout of its size.
                unsafe {
                    let layout = Layout::from_size_align_unchecked(kept.size, ALIGN);
                    System.dealloc(std::ptr::with_exposed_provenance_mut(kept.block), layout);
                }
            }
        }
    }

    /// # Safety
    /// The block is of a size above 0.
    pub unsafe fn fresh(block: Layout) -> *mut u8 {
        // SAFETY: as the caller promised.
        advised(unsafe { System.alloc(block) }, block)
    }

    /// # Safety
    /// The block is of a size above 0.
    pub unsafe fn fresh_zeroed(block: Layout) -> *mut u8 {
        // SAFETY: as the caller promised.
        advised(unsafe { System.alloc_zeroed(block) }, block)
    }

    /// # Safety
    /// The block was made with the layout `before`; it is the caller's to give.
    pub unsafe fn longer(pointer: *mut u8, before: Layout, after: Layout) -> *mut u8 {
        // SAFETY: as the caller promised; both layouts have one alignment.
        advised(unsafe { System.realloc(pointer, before, after.size()) }, after)
    }

    /// Asks for large pages.
    fn advised(pointer: *mut u8, block: Layout) -> *mut u8 {
        if !pointer.is_null() {
            advise(pointer, block, libc::MADV_HUGEPAGE);
        }
        pointer
    }

    /// Tells the kernel about the large pages that lie inside a block, which is ours.
    fn advise(pointer: *mut u8, block: Layout, advice: libc::c_int) {
        let skipped = pointer.align_offset(PAGE);
        let whole = block.size().saturating_sub(skipped) / PAGE * PAGE;
        // SAFETY: the range lies inside the block, and neither advice changes what somebody still reads. A refusal is none of our
        // business.
        unsafe { libc::madvise(pointer.wrapping_add(skipped).cast(), whole, advice) };
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::*;

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, 4).expect("a layout")
    }

    #[test]
    fn a_large_block_that_was_freed_is_the_next_of_its_length() {
        let shelf = Shelf::new();
        let block = Shelf::block(layout(9 << 20)).expect("it is large");
        assert_eq!(Some(block), Shelf::block(layout((10 << 20) - 1)), "lengths are rounded up");
        // SAFETY: the block is made and given up with its own layout, and used between as long as it is.
        unsafe {
            let pointer = shelf::fresh(block);
            pointer.write_bytes(7, block.size());
            shelf.put(pointer, block);
            assert_eq!(shelf.take(Shelf::block(layout(5 << 20)).expect("it is large")), None, "another length");
            assert_eq!(shelf.take(block), Some(pointer));
            assert_eq!(shelf.take(block), None, "it is one caller's");
            System.dealloc(pointer, block);
        }
    }

    #[test]
    fn no_more_is_kept_than_the_shelf_holds() {
        let shelf = Shelf::new();
        let block = Shelf::block(layout(100 << 20)).expect("it is large");
        // SAFETY: as above; what finds no place goes back to the system.
        unsafe {
            (0..3).map(|_| shelf::fresh(block)).collect::<Vec<_>>().into_iter().for_each(|one| shelf.put(one, block));
            let kept: Vec<*mut u8> = std::iter::from_fn(|| shelf.take(block)).collect();
            assert_eq!(kept.len(), 2);
            kept.into_iter().for_each(|one| System.dealloc(one, block));
        }
    }

    #[test]
    fn the_oldest_makes_room() {
        let shelf = Shelf::new();
        let blocks: Vec<_> = (2..12).map(|n| Shelf::block(layout(n << 21)).expect("it is large")).collect();
        // SAFETY: as above.
        unsafe {
            blocks.iter().for_each(|block| shelf.put(shelf::fresh(*block), *block));
            let kept: Vec<bool> = blocks
                .iter()
                .map(|block| match shelf.take(*block) {
                    None => false,
                    Some(one) => {
                        System.dealloc(one, *block);
                        true
                    }
                })
                .collect();
            assert_eq!(kept, [false, false, true, true, true, true, true, true, true, true]);
        }
    }

    #[test]
    fn zeros_are_zeros_and_what_grows_keeps_its_values() {
        for _ in 0..3 {
            let mut values = vec![0u8; 8 << 20];
            assert!(values.iter().all(|v| *v == 0));
            values.fill(9);
            values.reserve_exact(24 << 20);
            values.shrink_to(1 << 20);
            assert!(values.iter().all(|v| *v == 9));
        }
    }

    #[test]
    fn what_is_small_or_aligned_to_more_is_the_systems() {
        assert_eq!(Shelf::block(layout(1 << 20)), None);
        assert_eq!(Shelf::block(Layout::from_size_align(64 << 20, 4096).expect("a layout")), None);
        assert_eq!(Shelf::block(layout(isize::MAX as usize - 3)), None);
    }
}
