//! Pins: who may still be reading or writing file space that the mapping has given up.
//!
//! A read or write resolves a block to a place and then does I/O there. If the block is trimmed and
//! its place handed to another block in between, the I/O would land in foreign data. So every such
//! operation holds a pin, and freed space waits until all pins are gone that could have seen it.
//!
//! # The rule
//! Pins belong to generations. A pin counts itself in the present generation, then checks that it
//! still is the present one, and only then looks at the mapping. The generation may advance from `g`
//! to `g + 1` only when no pin of `g - 1` is left, so two sets of counters, used in turn, are enough.
//! Space that was unmapped while the generation was `g` can have been seen by pins of `g` and before;
//! in generation `g + 2` all of those are gone.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Counters per generation: threads spread over them, so that pinning does not make them meet.
const SHARDS: usize = 16;

#[derive(Debug, Default)]
#[repr(align(64))]
struct Shard(AtomicU64);

/// The pins of one open image.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    generation: AtomicU64,
    /// By parity of the generation.
    active: [[Shard; SHARDS]; 2],
}

/// While this lives, space seen through the mapping is not reused.
#[derive(Debug)]
pub(crate) struct Pin<'a>(&'a AtomicU64);

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Pins {
    /// To be taken before the mapping is looked at, and kept until the I/O is done.
    pub(crate) fn pin(&self) -> Pin<'_> {
        loop {
            let generation = self.generation.load(Ordering::SeqCst);
            let counter = self.counter(generation);
            counter.fetch_add(1, Ordering::SeqCst);
            let pin = Pin(counter);
            if self.generation.load(Ordering::SeqCst) == generation {
                return pin;
            }
        }
    }

    /// The present generation: what is unmapped now is free two generations later.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Advances as far as the pins allow, and gives the generation before which (inclusive) nothing
    /// that was unmapped is pinned any more; `None` when everything may be.
    pub(crate) fn advance(&self) -> Option<u64> {
        for _ in 0..2 {
            let generation = self.generation();
            let before = self.set(generation.wrapping_add(1));
            if before.iter().any(|shard| shard.0.load(Ordering::SeqCst) != 0) {
                break;
            }
            let next = generation.wrapping_add(1);
            let (done, failed) = (Ordering::SeqCst, Ordering::SeqCst);
            // When somebody else has advanced it, all the better.
            let _ = self.generation.compare_exchange(generation, next, done, failed);
        }
        self.generation().checked_sub(2)
    }

    fn set(&self, generation: u64) -> &[Shard; SHARDS] {
        let [even, odd] = &self.active;
        if generation & 1 == 0 { even } else { odd }
    }

    fn counter(&self, generation: u64) -> &AtomicU64 {
        let set = self.set(generation);
        let [first, ..] = set;
        &set.get(shard()).unwrap_or(first).0
    }
}

/// This thread's shard.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: usize = NEXT.fetch_add(1, Ordering::Relaxed) & SHARDS.saturating_sub(1);
    }
    SHARD.with(|shard| *shard)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C8b, C9: an operation that resolved a block before it was trimmed.
    #[test]
    fn space_waits_for_the_pins_that_could_have_seen_it() {
        let pins = Pins::default();
        let early = pins.pin();
        let freed = pins.generation();
        assert!(pins.advance().is_none_or(|free| free < freed));
        let late = pins.pin();
        assert!(pins.advance().is_none_or(|free| free < freed));
        drop(early);
        // The late pin came after the space was unmapped, and must not hold it for ever.
        pins.advance();
        assert!(pins.advance().is_some_and(|free| free >= freed));
        drop(late);
    }

    #[test]
    fn without_pins_nothing_waits() {
        let pins = Pins::default();
        for _ in 0..10 {
            let freed = pins.generation();
            assert_eq!(pins.advance(), Some(freed));
        }
    }

    /// A place that is handed from owner to owner while others use what they resolved: nobody may
    /// meet another owner's value.
    #[test]
    fn a_place_is_never_reused_under_a_pin() {
        use std::sync::atomic::AtomicBool;
        let pins = Pins::default();
        let (mapped, place) = (AtomicU64::new(1), [const { AtomicU64::new(0) }; 2]);
        place[1].store(1, Ordering::SeqCst);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let _pin = pins.pin();
                        let owner = mapped.load(Ordering::SeqCst);
                        let seen = place[(owner & 1) as usize].load(Ordering::SeqCst);
                        assert_eq!(seen, owner, "the place was reused while it was in use");
                    }
                });
            }
            for owner in 2..20_000u64 {
                place[(owner & 1) as usize].store(owner, Ordering::SeqCst);
                mapped.store(owner, Ordering::SeqCst);
                let freed = pins.generation();
                while pins.advance().is_none_or(|free| free < freed) {
                    std::hint::spin_loop();
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
