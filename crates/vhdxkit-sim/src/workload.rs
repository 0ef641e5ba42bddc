//! What a guest does before the crash.

use crate::start::{CHUNK, MIB, Start};
use vhdxkit_testkit::random::Random;

/// Which half of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// The first.
    Lower,
    /// The second.
    Upper,
}

/// One thing that a guest, or who runs it, does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Write a whole block.
    Block(u64),
    /// Write a part of a block: its second sector and the one in the middle.
    Part(u64),
    /// Write half a block: when the other half was written before, a child has all of it now.
    WriteHalf(u64, Half),
    /// Write across the border of this block and the next one.
    Across(u64),
    /// Write zeros to a whole block.
    Zero(u64),
    /// Write zeros to half a block.
    ZeroHalf(u64, Half),
    /// Discard a whole block.
    Discard(u64),
    /// Discard the second half of a block.
    DiscardPart(u64),
    /// Make it durable.
    Flush,
    /// Close cleanly and open again.
    Close,
    /// The process dies; what it wrote is all there. Open again.
    Kill,
    /// Write a part of a block and make it durable.
    Store(u64),
    /// Write the first half of a block, make it durable, then the other likewise: a block that becomes whole
    /// by its last sectors.
    Complete(u64),
    /// Write a part of a block, discard the block, and make that durable: it had a place and has none.
    Trim(u64),
    /// Write the first sector of a block; while its bytes are on their way, another thread flushes.
    FlushDuringWrite(u64),
    /// Write a whole block; while its bytes are on their way, another thread flushes.
    FlushDuringBlock(u64),
    /// Flush; while that is on its way, another thread discards the first block and writes the other.
    ChurnDuringFlush(u64, u64),
    /// Write to a block that has a place; while the bytes are on their way, another thread discards that
    /// block, flushes, and writes the other block.
    ReuseDuringWrite(u64, u64),
    /// Write a part of a block and flush; the process dies in a sync on the way, the first, second or
    /// third. Open again.
    KillInSync(u64, u64),
    /// Another size, in bytes. What is cut off may be anything.
    Resize(u64),
    /// The disk gets another identity towards its guest.
    DiskId,
    /// The guest is told another sector size of the medium.
    PhysicalSectorSize,
    /// The image is left as it is, and the child told another way to its parent, of so many characters.
    Relink(usize),
    /// A smaller size, in bytes, and whole blocks written: what was behind the end is used again.
    Refill(u64),
    /// Write zeros to a whole block, as data.
    Blank(u64),
    /// Write a whole block again with what it shows: a child has what its parent has.
    Rewrite(u64),
    /// Give space back, close, and open again.
    Compact,
    /// Likewise; nobody needs this block any more.
    CompactFree(u64),
}

/// A start and what follows.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Where it begins.
    pub start: Start,
    /// So many commits before that, which are not crashed: they fill the log.
    pub commits: usize,
    /// What is done.
    pub operations: Vec<Operation>,
}

/// The operations of short workloads.
#[must_use]
pub fn alphabet(start: Start) -> Vec<Operation> {
    use Operation::*;
    let [a, b, c] = start.blocks();
    let mut operations = vec![
        Part(a),
        Part(b),
        Store(a),
        Across(a),
        ZeroHalf(a, Half::Upper),
        Zero(a),
        Discard(a),
        Discard(b),
        FlushDuringWrite(a),
        ChurnDuringFlush(a, b),
        ReuseDuringWrite(a, b),
        Flush,
        Close,
        Kill,
        KillInSync(a, 1),
        KillInSync(a, 2),
        KillInSync(b, 3),
    ];
    if !start.is_border() {
        operations.extend([Block(a), Block(b), DiscardPart(b), FlushDuringBlock(b)]);
    }
    if start.is_child() {
        // The third block is partial when there was a commit before.
        operations.extend([Complete(a), Complete(b), Trim(a), Store(c), FlushDuringWrite(c)]);
        operations.extend([WriteHalf(a, Half::Upper), WriteHalf(b, Half::Lower)]);
    }
    operations
}

/// Those of workloads with changes of size: within the table, and beyond what it holds.
#[must_use]
pub fn resizes(start: Start) -> Vec<Operation> {
    use Operation::*;
    let others = [Part(0), Store(0), Store(4), Block(1), Across(0), Discard(0), Close, Kill];
    let sizes = match start.is_child() {
        false => &[2 * MIB, 5 * MIB, 7 * MIB, 129 << 30, 300 << 30][..],
        // Away with the second sector bitmap, down to half a block; within a block, up to what the parent
        // has, beyond that; beyond what the table holds.
        true => {
            &[5 * MIB / 2, 5 * MIB, CHUNK + MIB / 2, CHUNK + 2 * MIB, CHUNK + 4 * MIB, 129 << 30][..]
        }
    };
    let resizes = sizes.iter().map(|size| Resize(*size)).chain(others);
    let [_, _, last] = start.blocks();
    match start.is_child() {
        false => resizes.collect(),
        true => {
            let behind = [Store(last), Part(last + 1), Discard(last + 1), Refill(5 * MIB)];
            resizes.chain(behind).collect()
        }
    }
}

/// Those of workloads with changes of metadata items.
#[must_use]
pub fn items(start: Start) -> Vec<Operation> {
    use Operation::*;
    let [a, b, _] = start.blocks();
    let mut operations = vec![DiskId, PhysicalSectorSize];
    if start.is_child() {
        // One of another length moves the item.
        operations.extend([Relink(9), Relink(10), Relink(200)]);
    }
    operations.extend([Store(a), Part(b), Discard(a), Close, Kill, KillInSync(a, 1)]);
    operations
}

/// Those of workloads that give space back.
#[must_use]
pub fn compactions(start: Start) -> Vec<Operation> {
    use Operation::*;
    let [a, b, c] = start.blocks();
    let mut operations = vec![
        Compact,
        CompactFree(a),
        CompactFree(c),
        Store(a),
        Store(b),
        Part(c),
        Zero(a),
        Discard(b),
        Trim(a),
        Close,
        Kill,
    ];
    if !start.is_border() {
        operations.extend([Block(a), Block(b), Block(c), Blank(a), Blank(c)]);
    }
    if start.is_child() {
        operations.extend([Rewrite(a), Rewrite(b), Complete(a)]);
    }
    if start == Start::Fresh {
        // The table moves away, and back.
        operations.push(Resize(129 << 30));
    }
    operations
}

/// Those of workloads that begin with an almost full log.
#[must_use]
pub fn at_the_end_of_an_epoch() -> Vec<Operation> {
    use Operation::{
        ChurnDuringFlush, Close, Discard, Flush, FlushDuringWrite, Kill, KillInSync, Part, Store,
    };
    vec![
        Store(0),
        Store(1),
        Part(1),
        Discard(0),
        Flush,
        FlushDuringWrite(1),
        ChurnDuringFlush(0, 1),
        KillInSync(1, 1),
        KillInSync(1, 2),
        Kill,
        Close,
    ]
}

/// A long workload: enough flushes to fill the log several times.
#[must_use]
pub fn long(start: Start, seed: u64, length: usize) -> Workload {
    use Operation::*;
    let mut random = Random::new(seed);
    let blocks = start.blocks();
    let small = !start.is_border();
    let halves = small && start.is_child();
    let operations = (0..length).map(|_| {
        let block = blocks[random.below(3) as usize];
        match random.below(40) {
            0..=7 => Part(block),
            8..=10 if small => Block(block),
            11..=12 => Across(block),
            13 => Zero(block),
            14 => ZeroHalf(block, Half::Upper),
            15..=18 => Discard(block),
            19 => DiscardPart(block),
            21 => FlushDuringWrite(block),
            28 if small => FlushDuringBlock(block),
            22 => ChurnDuringFlush(block, blocks[0] + 3),
            23 => ReuseDuringWrite(block, blocks[0] + 3),
            24..=25 if halves => WriteHalf(block, Half::Lower),
            26 if start.is_child() => Complete(block),
            27 if start.is_child() => Trim(block),
            20 if random.below(6) == 0 => Close,
            20 if random.below(4) == 0 => Kill,
            _ => Flush,
        }
    });
    Workload { start, commits: 0, operations: operations.collect() }
}
