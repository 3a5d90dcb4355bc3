//! Where the program's memory comes from: a piece of its own image, handed out from one end to the
//! other. The process lives for a millisecond or two, in which a general allocator would ask the
//! kernel for pages and give them back some seventy times. What does not fit (a dump of thousands
//! of links) comes from that allocator all the same.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes. Only the pages that are written to are ever there.
const SIZE: usize = 512 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Arena {
    bytes: UnsafeCell<[MaybeUninit<u8>; SIZE]>,
    /// What is behind is free.
    next: AtomicUsize,
}

// SAFETY: no two callers ever get the same bytes: every change of `next` is one atomic exchange.
unsafe impl Sync for Arena {}

impl Arena {
    /// Everything is free.
    pub(crate) const fn new() -> Arena {
        Arena {
            bytes: UnsafeCell::new([MaybeUninit::uninit(); SIZE]),
            next: AtomicUsize::new(0),
        }
    }

    fn base(&self) -> *mut u8 {
        self.bytes.get().cast()
    }

    /// Where in the arena a pointer points to, if it does.
    fn offset(&self, block: *mut u8) -> Option<usize> {
        let offset = (block as usize).checked_sub(self.base() as usize)?;
        (offset < SIZE).then_some(offset)
    }

    /// Moves the end of the block that begins at `offset`, if it is the last one.
    fn resize(&self, offset: usize, from: usize, to: usize) -> bool {
        let end = offset + to;
        end <= SIZE
            && (self.next)
                .compare_exchange(offset + from, end, Relaxed, Relaxed)
                .is_ok()
    }
}

// SAFETY: a block from the arena is inside it, aligned, and behind everything handed out before;
// every other one is the system allocator's, and goes back to it.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let base = self.base() as usize;
        let start_of = |next: usize| (base + next).next_multiple_of(layout.align()) - base;
        let taken = self.next.fetch_update(Relaxed, Relaxed, |next| {
            let end = start_of(next).checked_add(layout.size())?;
            (end <= SIZE).then_some(end)
        });
        match taken {
            // SAFETY: the start is below SIZE, or the block is empty and at its end.
            Ok(next) => unsafe { self.base().add(start_of(next)) },
            // SAFETY: the caller's layout is passed on.
            Err(_) => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match self.offset(block) {
            Some(offset) => {
                // One that is not the last stays until the process ends.
                self.resize(offset, layout.size(), 0);
            }
            // SAFETY: what is not in the arena is the system allocator's.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(offset) = self.offset(block) else {
            // SAFETY: what is not in the arena is the system allocator's.
            return unsafe { System.realloc(block, layout, size) };
        };
        if self.resize(offset, layout.size(), size) || size <= layout.size() {
            return block;
        }
        // SAFETY: the size is the caller's, who sees to it that it does not overflow.
        let new = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !new.is_null() {
            // SAFETY: both blocks have at least that many bytes, and they are two.
            unsafe { ptr::copy_nonoverlapping(block, new, layout.size()) };
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_grow_in_place_at_the_end_and_spill_over() {
        static ARENA: Arena = Arena::new();
        let layout = |size, align| Layout::from_size_align(size, align).unwrap();
        // SAFETY: every block is used within its layout, and given back with it.
        unsafe {
            let small = ARENA.alloc(layout(3, 1));
            let wide = ARENA.alloc(layout(64, 64));
            assert_eq!(wide as usize % 64, 0);
            wide.write_bytes(7, 64);
            assert_eq!(ARENA.realloc(wide, layout(64, 64), 4096), wide);
            let moved = ARENA.realloc(small, layout(3, 1), 100);
            assert_ne!(moved, small);
            let last = ARENA.alloc(layout(100, 1));
            ARENA.dealloc(last, layout(100, 1));
            assert_eq!(
                ARENA.alloc(layout(50, 1)),
                last,
                "the last one is free again"
            );
            assert_eq!((*wide, *wide.add(63)), (7, 7));
            let large = ARENA.alloc(layout(SIZE, 1));
            assert_eq!(ARENA.offset(large), None);
            let larger = ARENA.realloc(large, layout(SIZE, 1), 2 * SIZE);
            ARENA.dealloc(larger, layout(2 * SIZE, 1));
        }
    }
}
