//! What others wrote is read as they meant it; what is damaged or made to hurt gives a clear error, never a
//! panic, and costs what its bytes cost.

mod common;
mod vhd;

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use sha2::{Digest, Sha256};
use vhd::{patch_footers, patch_header, seal};
use vhdxkit::ops::compare::compare;
use vhdxkit::ops::disk::{Disk, DiskFormat, Raw, Source};
use vhdxkit::ops::import_vhd::to_vhd;
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit::vhd::{Vhd, VhdOptions};
use vhdxkit::{ErrorKind, OpenOptions};

const MIB: u64 = 1 << 20;

fn open(bytes: Vec<u8>) -> vhdxkit::Result<Vhd> {
    OpenOptions::new().open_vhd_storage(Arc::new(MemoryStorage::new(bytes)))
}

fn whole(disk: &Vhd) -> vhdxkit::Result<Vec<u8>> {
    let mut bytes = vec![0xEE; disk.virtual_size() as usize];
    disk.read_at(0, &mut bytes)?;
    Ok(bytes)
}

fn guest() -> Vec<u8> {
    let mut bytes = vec![0; 5 * MIB as usize + 1536];
    bytes[700..9000].fill(7);
    let end = bytes.len();
    bytes[4 * MIB as usize - 512..4 * MIB as usize + 4096].fill(9);
    bytes[end - 512..].fill(3);
    bytes
}

/// A dynamic file of ours with blocks 0, 1 and 2.
fn dynamic() -> Vec<u8> {
    let source = Disk::Raw(Raw {
        size: guest().len() as u64,
        storage: Arc::new(MemoryStorage::new(guest())),
    });
    let target = MemoryStorage::empty();
    to_vhd(&source, &target, &VhdOptions::for_copy(source.size(), false), &mut ()).unwrap();
    target.to_vec()
}

fn fixed() -> Vec<u8> {
    let source = Disk::Raw(Raw {
        size: guest().len() as u64,
        storage: Arc::new(MemoryStorage::new(guest())),
    });
    let target = MemoryStorage::empty();
    to_vhd(&source, &target, &VhdOptions::new(source.size()).fixed(true), &mut ()).unwrap();
    target.to_vec()
}

/// A child without its parent at hand, with some sectors of its own.
fn child() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (parent, path) = (dir.path().join("p.vhd"), dir.path().join("c.vhd"));
    std::fs::write(&parent, dynamic()).unwrap();
    let parent = Vhd::open(&parent).unwrap();
    VhdOptions::child_of(&parent, &path).unwrap().create(&path).unwrap();
    let child = OpenOptions::new().write(true).open_vhd(&path).unwrap();
    child.write_at(1024, &[5; 1024]).unwrap();
    child.flush().unwrap();
    drop(child);
    std::fs::read(path).unwrap()
}

#[test]
fn images_of_others_give_their_guests_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for (packed, sha256) in [
        ("fixed.vhd.gz", "459325ab1fcd1d5ec9854cba790ee26378317cda177ffc1072008a1df88e6463"),
        ("dynamic.vhd.gz", "ecff2ef6615a3cddc6a6885f1c6d9cf13a232697e1dc6575f2c2f01f57247784"),
    ] {
        let Some(path) = common::unpack(packed, dir.path()) else { continue };
        let before = std::fs::read(&path).unwrap();
        assert_eq!(DiskFormat::recognise(&path).unwrap(), DiskFormat::Vhd, "{packed}");
        let disk = Vhd::open(&path).unwrap();
        let bytes = whole(&disk).unwrap();
        let sum: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!((bytes.len(), sum.as_str()), (10_485_760, sha256), "{packed}");
        assert!(disk.remarks().is_empty(), "{packed}: {:?}", disk.remarks());
        assert!(vhd::read(std::slice::from_ref(&before)) == bytes);
        // The runs tell nothing wrong: a copy by them is the same disk.
        let copy = MemoryStorage::empty();
        to_vhd(&disk, &copy, &VhdOptions::for_copy(disk.virtual_size(), false), &mut ()).unwrap();
        assert!(vhd::read(&[copy.to_vec()]) == bytes, "{packed}");
        drop(disk);
        assert!(std::fs::read(&path).unwrap() == before, "{packed} was changed by reading");
    }
}

#[test]
fn the_large_empty_disk_of_hyper_v_is_walked_without_reading() {
    let dir = tempfile::tempdir().unwrap();
    let Some(path) = common::unpack("hyperv2012r2-dynamic.vhd.bz2", dir.path()) else { return };
    let disk = Disk::open(&path, None, false).unwrap();
    assert_eq!(disk.size(), 136_365_211_648);
    let begun = Instant::now();
    assert!(disk.runs().all(|run| !run.unwrap().data));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

/// QEMU makes disks whose geometry is smaller than what was asked for, and means the geometry.
#[test]
fn disks_of_qemu_have_the_size_that_qemu_gives_them() {
    if !common::have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for options in [
        "subformat=dynamic",
        "subformat=fixed",
        "subformat=dynamic,force_size=on",
        "subformat=fixed,force_size=on",
    ] {
        let path = dir.path().join("q.vhd");
        let name = path.to_str().unwrap();
        common::run("qemu-img", &["create", "-q", "-f", "vpc", "-o", options, name, "10000384"]);
        common::run(
            "qemu-io",
            &["-f", "vpc", "-c", "write -P 7 4096 70000", "-c", "write -P 9 5M 4k", name],
        );
        let raw = dir.path().join("q.raw");
        common::run(
            "qemu-img",
            &["convert", "-f", "vpc", "-O", "raw", name, raw.to_str().unwrap()],
        );
        let (ours, theirs) = (Vhd::open(&path).unwrap(), std::fs::read(&raw).unwrap());
        assert_eq!(ours.virtual_size(), theirs.len() as u64, "{options}");
        assert!(whole(&ours).unwrap() == theirs, "{options}");
        // An old creator, a geometry smaller than the size: QEMU follows the geometry, and so do we.
        drop(ours);
        let mut bytes = std::fs::read(&path).unwrap();
        if options == "subformat=dynamic" {
            patch_footers(&mut bytes, 28, b"vpc ");
            let larger = be_larger(&bytes);
            patch_footers(&mut bytes, 48, &larger);
            std::fs::write(&path, &bytes).unwrap();
            let info = common::run("qemu-img", &["info", "--output=json", "-f", "vpc", name]);
            let ours = Vhd::open(&path).unwrap();
            let size = format!("\"virtual-size\": {}", ours.virtual_size());
            assert!(info.contains(&size), "{info}");
            assert_eq!(ours.virtual_size(), theirs.len() as u64);
            assert!(ours.remarks()[0].contains("geometry"), "{:?}", ours.remarks());
        }
    }
}

fn be_larger(bytes: &[u8]) -> [u8; 8] {
    (vhd::be64(bytes, 48) + 512).to_be_bytes()
}

#[test]
fn a_damaged_footer_is_replaced_by_its_copy_and_that_is_told() {
    let sound = dynamic();
    let mut damaged = sound.clone();
    let end = damaged.len() - 512;
    damaged[end + 100] ^= 1;
    let disk = open(damaged).unwrap();
    assert!(disk.remarks()[0].contains("copy at the head"), "{:?}", disk.remarks());
    assert!(whole(&disk).unwrap() == guest());
    // Cut off, as a full disk does it.
    let disk = open(sound[..end].to_vec()).unwrap();
    assert!(whole(&disk).unwrap() == guest());
    // The copy is damaged: nobody needs it.
    let mut damaged = sound.clone();
    damaged[100] ^= 1;
    let disk = open(damaged).unwrap();
    assert!(disk.remarks().is_empty() && whole(&disk).unwrap() == guest());
    // Old versions of Virtual PC left out the last byte.
    for whole_file in [sound, fixed()] {
        let disk = open(whole_file[..whole_file.len() - 1].to_vec()).unwrap();
        assert!(disk.remarks()[0].contains("511"), "{:?}", disk.remarks());
        assert!(whole(&disk).unwrap() == guest());
    }
}

/// The guest of a fixed disk writes what it likes into its first sector.
#[test]
fn a_fixed_disk_that_holds_a_footer_is_itself() {
    let mut file = fixed();
    let inner = file[file.len() - 512..].to_vec();
    file[..512].copy_from_slice(&inner);
    let disk = open(file.clone()).unwrap();
    assert!(whole(&disk).unwrap()[..512] == inner);
    // Without its own footer it is no VHD any more, whatever its guest wrote.
    file.truncate(file.len() - 512);
    assert_eq!(open(file).err().unwrap().kind(), ErrorKind::WrongFormat);
}

/// Each row: what was done, the sort of error, a word of its text; at the open or at the first read.
#[test]
fn hostile_files_give_clear_errors() {
    use ErrorKind::{Corrupt, Unsupported, WrongFormat};
    let patched = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut file = dynamic();
        change(&mut file);
        file
    };
    let footers = |at: usize, bytes: &'static [u8]| patched(&|file| patch_footers(file, at, bytes));
    let header = |at: usize, bytes: &'static [u8]| patched(&|file| patch_header(file, at, bytes));
    let entry =
        |value: u32| patched(&|file| file[1536..1540].copy_from_slice(&value.to_be_bytes()));
    let rows = [
        ("empty", WrongFormat, "no VHD", Vec::new()),
        ("a VHDX", WrongFormat, "no VHD", b"vhdxfile".repeat(100)),
        ("cut", WrongFormat, "no VHD", dynamic()[..400].to_vec()),
        (
            "both checksums",
            Corrupt,
            "checksum",
            patched(&|file| {
                let end = file.len() - 512;
                file[70] ^= 1;
                file[end + 70] ^= 1;
            }),
        ),
        ("disk type", Unsupported, "disk type 9", footers(60, &[0, 0, 0, 9])),
        ("version", Unsupported, "0x90000", footers(12, &[0, 9, 0, 0])),
        ("size", Corrupt, "larger than", footers(48, &[0xFF; 8])),
        ("size beyond the BAT", Corrupt, "entries", footers(48, &[0, 0, 0, 0xFF, 0, 0, 0, 0])),
        ("header outside", Corrupt, "outside", footers(16, &[0xFF; 8])),
        ("header on the footer", Corrupt, "cxsparse", footers(16, &[0; 8])),
        ("header's checksum", Corrupt, "checksum", patched(&|file| file[600] ^= 1)),
        ("header version", Unsupported, "header version", header(24, &[0, 2, 0, 0])),
        ("block size 0", Corrupt, "blocks of 0", header(32, &[0; 4])),
        ("block size odd", Corrupt, "power of two", header(32, &[0, 0x30, 0, 0])),
        ("block size huge", Corrupt, "power of two", header(32, &[0x80, 0, 0, 0])),
        ("BAT outside", Corrupt, "outside", header(16, &[0x7F; 8])),
        ("BAT on the header", Corrupt, "overlap", header(16, &[0, 0, 0, 0, 0, 0, 2, 0])),
        ("BAT on the footer", Corrupt, "overlap", header(16, &[0; 8])),
        ("too few entries", Corrupt, "entries", header(28, &[0, 0, 0, 1])),
        ("block outside", Corrupt, "outside", entry(0x7FFF_FFFF)),
        ("block at the end", Corrupt, "outside", entry((dynamic().len() / 512) as u32 - 2)),
        ("block on the tables", Corrupt, "tables", entry(0)),
        ("block on the BAT", Corrupt, "tables", entry(3)),
        ("fixed, too short", Corrupt, "in front of", {
            let mut file = fixed();
            file.drain(..4096);
            file
        }),
    ];
    for (name, kind, word, file) in rows {
        let result = open(file).and_then(|disk| whole(&disk));
        let error = result.err().unwrap_or_else(|| panic!("{name}: it was read"));
        assert!(error.kind() == kind && error.to_string().contains(word), "{name}: {error}");
    }
}

/// A child is opened alone unless somebody allows its parent; then what only the parent knows is an error.
#[test]
fn a_child_without_its_parent_says_what_it_lacks() {
    let disk = open(child()).unwrap();
    let mut own = [0; 1024];
    disk.read_at(1024, &mut own).unwrap();
    assert_eq!(own, [5; 1024]);
    for at in [0, 2048, 3 * MIB] {
        let error = disk.read_at(at, &mut [0; 512]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ParentNeeded);
        let id = disk.parent_link().unwrap().unique_id.to_string();
        assert!(error.to_string().contains(&id), "{error}");
    }
    let mut nobody = child();
    patch_header(&mut nobody, 40, &[0; 16]);
    assert_eq!(open(nobody).err().unwrap().kind(), ErrorKind::Corrupt);
    // Locators that lie outside of the file, or are endless: left out, and told.
    for (at, bytes) in [(576 + 16, [0xFF; 8]), (576 + 4, [0xFF; 8])] {
        let mut file = child();
        patch_header(&mut file, at, &bytes);
        let disk = open(file).unwrap();
        assert!(disk.remarks()[0].contains("W2ru"), "{:?}", disk.remarks());
        // The name is still there.
        assert_eq!(disk.parent_link().unwrap().relative_path(), Some("p.vhd"));
    }
}

/// Sectors that a dynamic disk's bitmap does not claim are zeros, whatever lies in the file.
#[test]
fn sectors_that_were_never_written_are_zeros() {
    let mut file = dynamic();
    let bitmap = vhd::be32(&file, 1536) as usize * 512;
    file[bitmap] = 0b1011_1111;
    let disk = open(file.clone()).unwrap();
    let mut expected = guest();
    expected[512..1024].fill(0);
    assert!(whole(&disk).unwrap() == expected);
    assert!(vhd::read(&[file]) == expected);
}

/// A disk of 2040 GiB with the smallest blocks, its table a hole or its blocks all the same place: memory is
/// bounded by what is read, and nothing takes minutes.
#[test]
fn absurd_disks_cost_little() {
    let begun = Instant::now();
    let mut file = dynamic();
    file.truncate(2048);
    let size = 2040u64 << 30;
    file[48..56].copy_from_slice(&size.to_be_bytes());
    file[60..64].copy_from_slice(&3u32.to_be_bytes());
    seal(&mut file[..512], 64);
    let entries = (size / 4096) as u32;
    patch_header(&mut file, 28, &entries.to_be_bytes());
    patch_header(&mut file, 32, &4096u32.to_be_bytes());
    let medium = MemoryStorage::new(file);
    medium.set_len(8 << 30).unwrap();
    let disk = OpenOptions::new().open_vhd_storage(Arc::new(medium)).unwrap();
    // A hole reads as entries of zero, which lead to the footer.
    assert_eq!(disk.count_blocks().unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(disk.read_at(size - 512, &mut [0; 512]).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(disk.runs().any(|run| run.is_err()));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

/// What can be done with a file that was opened, whatever it says.
fn use_it(disk: &Vhd) {
    let _ = disk.count_blocks();
    let mut buf = vec![0; 70_000];
    let size = disk.virtual_size();
    for at in [0, size / 2, size.saturating_sub(70_000)] {
        if at + 70_000 <= size {
            let _ = disk.read_at(at, &mut buf);
        }
    }
    for run in disk.runs().take(2000) {
        let Ok(run) = run else { break };
        assert!(run.range.start < run.range.end && run.range.end <= size);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any bytes of the tables changed, checksums right or wrong.
    #[test]
    fn mutated_files_do_not_panic(
        which in 0..3,
        changes in prop::collection::vec((0usize..2600, any::<u8>()), 1..12),
        sealed in any::<bool>(),
        cut in prop::option::of(0usize..3000),
    ) {
        let mut file = match which { 0 => dynamic(), 1 => fixed(), _ => child() };
        let end = file.len() - 512;
        for (at, byte) in changes {
            // The last part of the range falls on the footer at the end.
            let at = if at >= 2088 { end + at - 2088 } else { at };
            file[at] = byte;
        }
        if sealed {
            if which != 1 {
                seal(&mut file[..512], 64);
                seal(&mut file[512..1536], 36);
            }
            seal(&mut file[end..], 64);
        }
        if let Some(cut) = cut {
            file.truncate(file.len() - cut);
        }
        if let Ok(disk) = open(file.clone()) {
            use_it(&disk);
        }
        let writable = OpenOptions::new().write(true).open_vhd_storage(Arc::new(MemoryStorage::new(file)));
        if let Ok(disk) = writable {
            if disk.virtual_size() >= 4096 {
                let _ = disk.write_at(512, &[1; 1024]);
            }
            use_it(&disk);
        }
    }
}

#[test]
fn compare_needs_no_format() {
    let (a, b) = (open(dynamic()).unwrap(), open(fixed()).unwrap());
    assert!(compare(&a, &b, &mut ()).unwrap().identical());
    let mut other = fixed();
    other[800] ^= 1;
    let result = compare(&a, &open(other).unwrap(), &mut ()).unwrap();
    assert_eq!(result.first_difference, Some(800));
}
