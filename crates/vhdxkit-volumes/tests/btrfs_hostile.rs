//! A btrfs that contradicts itself frees nothing, and says what is wrong: checksums are right in all of these.

use vhdxkit_volumes::Trouble;

#[path = "common/btrfs_nodes.rs"]
#[allow(dead_code, unreachable_pub)]
mod btrfs_nodes;
mod common;

use btrfs_nodes::{Btrfs, ROOT_ITEM, SUPERBLOCK};
use common::{Mounted, can_mount, have, sh};

const ROOTS: u64 = 1;
const EXTENTS: u64 = 2;
const CHUNKS: u64 = 3;
const DEVICE: u64 = 4;
const EXTENT_ITEMS: [u8; 2] = [168, 169];
const BLOCK_GROUP: u8 = 192;
const DEVICE_EXTENT: u8 = 204;
const DEVICE_ITEM: u8 = 216;
const CHUNK: u8 = 228;
const MIB: u64 = 1 << 20;

fn is_extent(key: btrfs_nodes::Key) -> bool {
    EXTENT_ITEMS.contains(&key.1)
}

/// What was done to it, and a part of what must be said of it.
struct Case {
    what: &'static str,
    said: &'static str,
    change: Box<dyn Fn(&mut Btrfs)>,
}

fn case(what: &'static str, said: &'static str, change: impl Fn(&mut Btrfs) + 'static) -> Case {
    Case { what, said, change: Box::new(change) }
}

/// A number of the superblock.
fn superblock(
    what: &'static str,
    said: &'static str,
    at: usize,
    length: usize,
    change: impl Fn(u64) -> u64 + Clone + 'static,
) -> Case {
    case(what, said, move |fs| {
        let change = change.clone();
        fs.change_superblock(move |fs| {
            fs.put(SUPERBLOCK + at, change(fs.number(SUPERBLOCK + at, length)), length);
        });
    })
}

fn of_the_superblock() -> Vec<Case> {
    vec![
        superblock("a log", "log of fsyncs was not replayed", 0x60, 8, |_| 30 << 20),
        superblock("an error", "has met an error", 0x38, 8, |flags| flags | 4),
        superblock("a seed", "state 0x100000000", 0x38, 8, |flags| flags | 1 << 32),
        superblock("an identifier that changes", "state", 0x38, 8, |flags| flags | 1 << 35),
        superblock("devices", "it has 7 devices", 0x88, 8, |_| 7),
        superblock("zones", "feature zoned", 0xBC, 8, |flags| flags | 1 << 12),
        superblock("many extent trees", "feature extent tree v2", 0xBC, 8, |flags| flags | 1 << 13),
        superblock("stripes", "feature raid stripe tree", 0xBC, 8, |flags| flags | 1 << 14),
        superblock("the unknown", "feature 0x10000000000", 0xBC, 8, |flags| flags | 1 << 40),
        superblock("the unknown, read-only", "read-only features 0x100", 0xB4, 8, |f| f | 1 << 8),
        superblock("no tree of its groups", "no block group tree", 0xB4, 8, |flags| flags | 8),
        superblock("old extents", "before 2009", 0xBC, 8, |flags| flags & !1),
        superblock("a checksum", "checksum 9 is not known", 0xC4, 2, |_| 9),
        superblock("sectors", "cannot be", 0x90, 4, |_| 0),
        superblock("odd sectors", "cannot be", 0x90, 4, |_| 4097),
        superblock("nodes", "cannot be", 0x94, 4, |_| 1 << 31),
        superblock("small nodes", "cannot be", 0x94, 4, |_| 512),
        superblock("its size", "its only device", 0x70, 8, |bytes| bytes * 2),
        case("a size beyond its place", "bytes where there are", |fs| {
            fs.change_superblock(|fs| {
                for at in [0x70, 0xD1] {
                    fs.put(SUPERBLOCK + at, u64::MAX, 8);
                }
            });
        }),
        superblock("its use", "the superblock says", 0x78, 8, |bytes| bytes - 4096),
        superblock("its device", "another device", 0x10B, 4, |uuid| !uuid),
        superblock("the device's use", "has not given out", 0xD9, 8, |bytes| bytes + 4096)
            .or_earlier("is not the superblock's"),
        superblock("its generation", "another generation", 0x48, 8, |number| number + 1),
        superblock("an earlier generation", "another generation", 0x48, 8, |number| number - 1),
        superblock("its root", "in no chunk", 0x50, 8, |_| u64::MAX - 100),
        superblock("a root where another lies", "", 0x50, 8, |at| at ^ 0x10000),
        superblock("a deep root", "of level 200", 0xC6, 1, |_| 200),
        superblock("a root of another level", "is of another level", 0xC6, 1, |_| 1),
        superblock("a deep chunk tree", "of level 8", 0xC7, 1, |_| 8),
        superblock("an array that is too long", "", 0xA0, 4, |_| u32::MAX.into()),
        superblock("an array that is cut off", "cut off", 0xA0, 4, |bytes| bytes - 1),
        superblock("no array", "in no chunk", 0xA0, 4, |_| 0),
        superblock("stripes without an end", "cut off", 0x32B + 17 + 44, 2, |_| 0xFFFF),
        superblock("another system chunk", "", 0x32B + 17 + 48 + 8, 8, |at| at + (1 << 20)),
    ]
}

impl Case {
    /// Something else is found first, which is as good.
    fn or_earlier(mut self, said: &'static str) -> Self {
        self.said = said;
        self
    }
}

/// Contents of the chunk with this flag: 1 data, 2 system, 4 metadata.
fn chunk(
    what: &'static str,
    said: &'static str,
    flag: u64,
    change: impl Fn(&mut Btrfs, &btrfs_nodes::Item) + Clone + 'static,
) -> Case {
    case(what, said, move |fs| {
        let leaf = fs.leaves(CHUNKS)[0];
        let mut chunks = fs.items(leaf).into_iter().filter(|item| item.key.1 == CHUNK);
        let key = chunks.find(|item| fs.number(item.at + 24, 8) & flag != 0).unwrap().key;
        fs.change_item(CHUNKS, |found| found == key, change.clone());
    })
}

fn of_chunks() -> Vec<Case> {
    let far = 1 << 50;
    vec![
        chunk("far away", "outside of the device", 1, move |fs, item| fs.put(item.at + 56, far, 8)),
        chunk("at the end of numbers", "outside of the device", 1, |fs, item| {
            fs.put(item.at + 56, u64::MAX - 4095, 8);
        }),
        chunk("longer than its place", "", 4, move |fs, item| fs.put(item.at, far, 8)),
        // The neighbour is not always so near.
        chunk("over its neighbour", "", 1, |fs, item| {
            fs.put(item.at, fs.number(item.at, 8) + 4096, 8);
        }),
        chunk("as long as all numbers", "malformed", 1, |fs, item| fs.put(item.at, !4095, 8)),
        chunk("of nothing", "malformed", 1, |fs, item| fs.put(item.at, 0, 8)),
        chunk("of odd bytes", "malformed", 1, |fs, item| fs.put(item.at, 4097, 8)),
        chunk("for nothing", "malformed", 1, |fs, item| fs.put(item.at + 24, 0, 8)),
        chunk("RAID", "profile RAID5", 1, |fs, item| fs.put(item.at + 24, 1 | 1 << 7, 8)),
        chunk("unknown", "profile unknown", 1, |fs, item| fs.put(item.at + 24, 1 | 1 << 40, 8)),
        chunk("twice with one place", "number of places", 1, |fs, item| {
            fs.put(item.at + 24, 1 | 1 << 5, 8);
        }),
        chunk("of another device", "another device", 1, |fs, item| fs.put(item.at + 48, 2, 8)),
        chunk("where another lies", "in dispute", 1, |fs, item| {
            let leaf = fs.leaves(CHUNKS)[0];
            let mut others = fs.items(leaf).into_iter().filter(|item| item.key.1 == CHUNK);
            let other = others.find(|other| other.key != item.key).unwrap();
            fs.put(item.at + 56, fs.number(other.at + 56, 8), 8);
        }),
        chunk("moved", "in dispute", 1, |fs, item| {
            fs.put(item.at + 56, fs.number(item.at + 56, 8) + 4096, 8);
        }),
        case("of another key", "another key", |fs| {
            fs.change(CHUNKS, |fs, leaf| {
                let last = fs.items(leaf).pop().unwrap();
                fs.put(last.header + 8, 229, 1);
            });
        }),
        case("a second device", "device", |fs| {
            fs.change_item(
                CHUNKS,
                |key| key.1 == DEVICE_ITEM,
                |fs, item| {
                    fs.put(item.header + 9, 2, 8);
                },
            );
        }),
        case("a smaller device", "is not the superblock's", |fs| {
            fs.change_item(
                CHUNKS,
                |key| key.1 == DEVICE_ITEM,
                |fs, item| {
                    fs.put(item.at + 8, 1 << 20, 8);
                },
            );
        }),
        case("less given out", "in dispute", |fs| {
            fs.change_item(
                DEVICE,
                |key| key.1 == DEVICE_EXTENT,
                |fs, item| {
                    fs.put(item.at + 24, fs.number(item.at + 24, 8) - 4096, 8);
                },
            );
        }),
        case("given out to another", "in dispute", |fs| {
            fs.change_item(
                DEVICE,
                |key| key.1 == DEVICE_EXTENT,
                |fs, item| {
                    fs.put(item.at + 16, 4096, 8);
                },
            );
        }),
    ]
}

fn extent(
    what: &'static str,
    said: &'static str,
    change: impl Fn(&mut Btrfs, &btrfs_nodes::Item) + Clone + 'static,
) -> Case {
    case(what, said, move |fs| fs.change_item(EXTENTS, is_extent, change.clone()))
}

fn group(
    what: &'static str,
    said: &'static str,
    change: impl Fn(&mut Btrfs, &btrfs_nodes::Item) + Clone + 'static,
) -> Case {
    case(what, said, move |fs| {
        fs.change_item(EXTENTS, |key| key.1 == BLOCK_GROUP, change.clone());
    })
}

fn of_extents() -> Vec<Case> {
    vec![
        extent("of another length", "", |fs, item| {
            fs.put(item.header + 8, 168, 1);
            fs.put(item.header + 9, 8192, 8);
        }),
        extent("over the next chunk", "in no chunk", |fs, item| {
            fs.put(item.header + 8, 168, 1);
            fs.put(item.header + 9, 1 << 30, 8);
        }),
        extent("of all numbers", "no chunk", |fs, item| {
            fs.put(item.header + 8, 168, 1);
            fs.put(item.header + 9, !4095, 8);
        }),
        extent("of odd bytes", "no sectors", |fs, item| {
            fs.put(item.header + 8, 168, 1);
            fs.put(item.header + 9, 17, 8);
        }),
        extent("of nothing", "no sectors", |fs, item| {
            fs.put(item.header + 8, 168, 1);
            fs.put(item.header + 9, 0, 8);
        }),
        extent("of an unknown kind", "items of type 170", |fs, item| {
            fs.put(item.header + 8, 170, 1);
        }),
        extent("forgotten", "its extents", |fs, item| fs.put(item.header + 8, 176, 1)),
        case("in no chunk", "in no chunk", |fs| {
            fs.change(EXTENTS, |fs, leaf| {
                let mut items = fs.contents(leaf);
                items.push(((1 << 60, EXTENT_ITEMS[1], 0), vec![0; 33]));
                fs.set_items(leaf, &items);
            });
        }),
        case("over the one before", "begins before", |fs| {
            fs.change(EXTENTS, |fs, leaf| {
                let mut items = fs.contents(leaf);
                let last = items.iter().rposition(|(key, _)| is_extent(*key)).unwrap();
                items.insert(last, ((items[last].0.0, EXTENT_ITEMS[0], 4096), vec![0; 33]));
                fs.set_items(leaf, &items);
            });
        }),
        case("not where the extent tree lies", "said to be free", |fs| {
            let own = fs.root_of(EXTENTS);
            fs.change(EXTENTS, move |fs, leaf| {
                let mut items = fs.contents(leaf);
                let last = items.iter().rfind(|(key, _)| is_extent(*key)).unwrap().0;
                let of_node = items.iter_mut().find(|(key, _)| key.0 == own).unwrap();
                of_node.0.0 = last.0 + 8 * fs.node_size as u64;
                items.sort();
                fs.set_items(leaf, &items);
            });
        }),
        group("of other use", "bytes are in use", |fs, item| fs.put(item.at, 1 << 20, 8)),
        group("without a chunk", "has no chunk", |fs, item| fs.put(item.header + 9, 4096, 8)),
        group("for something else", "has no chunk", |fs, item| {
            fs.put(item.at + 16, fs.number(item.at + 16, 8) ^ 0b111, 8);
        }),
        case("missing", "no block group", |fs| {
            fs.change(EXTENTS, |fs, leaf| {
                let mut items = fs.contents(leaf);
                let first = items.iter().position(|(key, _)| key.1 == BLOCK_GROUP).unwrap();
                items.remove(first);
                fs.set_items(leaf, &items);
            });
        }),
    ]
}

/// The extent tree as a node that names itself: its root item says of what level.
fn names_itself(fs: &mut Btrfs, level: u64, said_to_be: u64) {
    let own = fs.root_of(EXTENTS);
    fs.change(EXTENTS, |fs, leaf| {
        let first = fs.items(leaf).remove(0).key;
        fs.bytes[leaf + 101..][..33].fill(0);
        fs.put(leaf + 0x60, 1, 4);
        fs.put(leaf + 0x64, level, 1);
        for (at, number, length) in [
            (101, first.0, 8),
            (109, first.1.into(), 1),
            (110, first.2, 8),
            (118, own, 8),
            (126, fs.number(leaf + 0x50, 8), 8),
        ] {
            fs.put(leaf + at, number, length);
        }
    });
    fs.change_item(
        ROOTS,
        |key| (key.0, key.1) == (EXTENTS, ROOT_ITEM),
        |fs, item| {
            fs.put(item.at + 238, said_to_be, 1);
        },
    );
}

fn of_nodes() -> Vec<Case> {
    let field = |what, said, at, length, number| {
        case(what, said, move |fs| fs.change(EXTENTS, |fs, leaf| fs.put(leaf + at, number, length)))
    };
    vec![
        case("that names itself", "is of another level", |fs| names_itself(fs, 1, 1)),
        case("that names itself at level 7", "is of another level", |fs| names_itself(fs, 7, 7)),
        case("of a level that is none", "is of level 8", |fs| names_itself(fs, 8, 8)),
        case("of level 255", "is of level 255", |fs| names_itself(fs, 255, 255)),
        field("of another file system", "another file system", 0x20, 4, 1),
        field("that lies elsewhere", "belongs elsewhere", 0x30, 8, 4096)
            .or_earlier("belongs elsewhere"),
        field("of another tree", "another tree", 0x58, 8, 5),
        field("of another generation", "another generation", 0x50, 8, 1),
        field("without items", "has 0 entries", 0x60, 4, 0),
        field("of too many items", "entries", 0x60, 4, u32::MAX.into()),
        field("of more items than there are", "", 0x60, 4, 100),
        field("whose items do not fit", "do not fit", 101 + 17, 4, u32::MAX.into()),
        field("whose items are too long", "do not fit", 101 + 21, 4, u32::MAX.into()),
        field("whose items overlap", "do not fit", 101 + 25 + 21, 4, 25),
        field("out of order", "not in order", 101, 8, u64::MAX),
        case("that has no root", "there is no extent tree", |fs| {
            fs.change_item(ROOTS, |key| key.0 == EXTENTS, |fs, item| fs.put(item.header, 1, 8));
        }),
        case("whose root is elsewhere", "in no chunk", |fs| {
            fs.change_item(
                ROOTS,
                |key| key.0 == EXTENTS,
                |fs, item| {
                    fs.put(item.at + 176, 1 << 55, 8);
                },
            );
        }),
        case("whose root is older", "another generation", |fs| {
            fs.change_item(ROOTS, |key| key.0 == EXTENTS, |fs, item| fs.put(item.at + 160, 1, 8));
        }),
    ]
}

#[test]
fn a_file_system_that_contradicts_itself_frees_nothing_and_says_why() {
    if !have("mkfs.btrfs") {
        return;
    }
    let bases = [Btrfs::new("110M", "-m dup"), Btrfs::new("110M", "-m single -d single -n 4096")];
    for base in bases {
        assert_eq!(base.survey().unwrap().unclean, None);
        let mut places = vec![SUPERBLOCK];
        places.extend([ROOTS, EXTENTS, CHUNKS, DEVICE].map(|tree| base.leaves(tree)).concat());
        let mut fs = base.clone();
        for (kind, cases) in [
            ("superblock", of_the_superblock()),
            ("chunk", of_chunks()),
            ("extent", of_extents()),
            ("node", of_nodes()),
        ] {
            for case in cases {
                (case.change)(&mut fs);
                let refusal = fs.refusal();
                assert!(refusal.contains(case.said), "{kind} {}: {refusal}", case.what);
                println!("{kind} {}: {refusal}", case.what);
                for at in &places {
                    let node = *at..at + base.node_size;
                    fs.bytes[node.clone()].copy_from_slice(&base.bytes[node]);
                }
            }
        }
        assert!(fs.bytes == base.bytes, "a case has left something behind");
    }
}

/// Of two copies of a node, one may be bad. Not both.
#[test]
fn one_copy_of_a_node_is_enough() {
    if !have("mkfs.btrfs") {
        return;
    }
    let base = Btrfs::new("110M", "-m dup");
    let expected = base.survey().unwrap();
    for tree in [ROOTS, EXTENTS, CHUNKS, DEVICE] {
        let leaves = base.leaves(tree);
        assert_eq!(leaves.len(), 2);
        let mut both = base.clone();
        for leaf in leaves {
            let mut one = base.clone();
            one.bytes[leaf + 200] ^= 1;
            both.bytes[leaf + 200] ^= 1;
            assert_eq!(one.survey().unwrap(), expected);
        }
        assert!(both.refusal().contains("wrong checksum"), "{}", both.refusal());
    }
}

/// A commit that was cut off between the superblock's copies.
#[test]
fn a_newer_copy_of_the_superblock_is_unclean() {
    if !have("mkfs.btrfs") {
        return;
    }
    let mut fs = Btrfs::new("110M", "");
    let copy = 64 << 20;
    let newer = fs.number(copy + 0x48, 8) + 1;
    fs.put(copy + 0x48, newer, 8);
    assert_eq!(fs.survey().unwrap().unclean, None, "its checksum is wrong");
    let sum = crc32c::crc32c(&fs.bytes[copy + 32..copy + 4096]);
    fs.put(copy, sum.into(), 4);
    assert_eq!(fs.refusal(), "the copy of its superblock at 67108864 is newer");
    // One of an earlier file system tells nothing.
    fs.put(copy + 0x20, 7, 8);
    let sum = crc32c::crc32c(&fs.bytes[copy + 32..copy + 4096]);
    fs.put(copy, sum.into(), 4);
    assert_eq!(fs.survey().unwrap().unclean, None);
}

/// Block groups in a tree of their own, as newer tools make them. Those at hand may not: the tree of
/// subvolumes' identifiers gives its node for it. The kernel then mounts it, and finds its files.
#[test]
fn block_groups_may_have_a_tree_of_their_own() {
    if !have("mkfs.btrfs") || !can_mount() {
        return;
    }
    const IDENTIFIERS: u64 = 9;
    const FREE_SPACE: u64 = 10;
    const BLOCK_GROUPS: u64 = 11;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    sh(&format!("truncate -s 130M {0}; mkfs.btrfs -q -m single {0}", path.display()));
    {
        let mounted = Mounted::new(&path);
        sh(&format!("head -c 3000000 /dev/urandom >{}/f", mounted.path().display()));
    }
    let mut fs = Btrfs::load(&path);
    let before = fs.survey().unwrap();
    let (node, leaf) = (fs.root_of(IDENTIFIERS), fs.leaves(IDENTIFIERS)[0]);
    let extents = fs.contents(fs.leaves(EXTENTS)[0]);
    let (groups, mut others): (Vec<_>, Vec<_>) =
        extents.into_iter().partition(|(key, _)| key.1 == BLOCK_GROUP);
    assert!(groups.len() >= 3);
    for (key, contents) in &mut others {
        if key.0 == node {
            // The tree that the node's only reference is of.
            contents[25..33].copy_from_slice(&BLOCK_GROUPS.to_le_bytes());
        }
    }
    fs.change(EXTENTS, |fs, leaf| fs.set_items(leaf, &others));
    fs.set_items(leaf, &groups);
    fs.put(leaf + 0x58, BLOCK_GROUPS, 8);
    fs.seal(leaf);
    // The root items change places: those of one tree leave, those of the other come behind the third.
    fs.change(ROOTS, |fs, leaf| {
        let mut items = fs.contents(leaf);
        let at =
            |tree| items.iter().position(|(key, _)| (key.0, key.1) == (tree, ROOT_ITEM)).unwrap();
        let (one, other) = (at(IDENTIFIERS), at(FREE_SPACE));
        assert_eq!(one + 1, other);
        items.swap(one, other);
        items[other].0.0 = BLOCK_GROUPS;
        fs.set_items(leaf, &items);
    });
    assert!(fs.refusal().contains("no block group"), "{}", fs.refusal());
    fs.change_superblock(|fs| {
        let flags = fs.number(SUPERBLOCK + 0xB4, 8);
        fs.put(SUPERBLOCK + 0xB4, flags | 8, 8);
    });
    assert_eq!(fs.survey().unwrap(), before);
    let copy = folder.path().join("copy");
    std::fs::write(&copy, &fs.bytes).unwrap();
    for line in ["cmp $one/f $other/f", "sync; head -c 900000 /dev/urandom >$other/g; sync"] {
        let (one, other) = (Mounted::with(&path, "ro"), Mounted::with(&copy, "rw"));
        sh(&format!("one={}; other={}; {line}", one.path().display(), other.path().display()));
    }
    // The kernel has written to it, and it still adds up.
    let after = common::survey_of(&copy).unwrap();
    assert!(after.free.bytes() + 900_000 <= before.free.bytes());
    assert_eq!(after.unclean, None);
    assert!(after.free.ranges().iter().all(|range| range.start >= MIB));
}

/// Errors in reading are told as such, and free nothing either.
#[test]
fn a_disk_that_cannot_be_read_is_no_damaged_file_system() {
    struct Broken(Btrfs, u64);
    impl vhdxkit_volumes::Disk for Broken {
        fn size(&self) -> u64 {
            self.0.bytes.len() as u64
        }
        fn sector_size(&self) -> u32 {
            512
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
            if (offset..offset + buf.len() as u64).contains(&self.1) {
                return Err(std::io::Error::other("a bad sector"));
            }
            self.0.bytes.read_at(offset, buf)
        }
    }
    if !have("mkfs.btrfs") {
        return;
    }
    let fs = Btrfs::new("110M", "-m single");
    for tree in [ROOTS, EXTENTS, CHUNKS, DEVICE] {
        let disk = Broken(fs.clone(), fs.leaves(tree)[0] as u64 + 8000);
        let found = vhdxkit_volumes::survey(&disk, 0..fs.bytes.len() as u64);
        assert!(matches!(found, Err(Trouble::Io(_))), "{found:?}");
    }
}
