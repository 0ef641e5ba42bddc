//! Which file system lies somewhere: what has survived there from earlier days must not be believed.

use vhdxkit_volumes::{Survey, Trouble, recognise};

mod common;

use common::{have, sh, survey_of};

fn survey(disk: &Vec<u8>) -> Result<Survey, Trouble> {
    vhdxkit_volumes::survey(disk, 0..disk.len() as u64)
}

fn put(disk: &mut [u8], at: usize, bytes: &[u8]) {
    disk[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Every file system made over every other, as people do who use a partition again.
#[test]
fn a_new_file_system_is_never_taken_for_the_one_before() {
    const MAKERS: [(&str, &str); 9] = [
        ("ext4", "mkfs.ext4 -q -F"),
        ("ext4", "mkfs.ext4 -q -F -b 1024"),
        ("XFS", "mkfs.xfs -q -f"),
        ("btrfs", "mkfs.btrfs -q -f"),
        ("btrfs", "mkfs.btrfs -q -f -m single -n 4096"),
        ("NTFS", "mkntfs -q -F -f"),
        ("FAT", "mkfs.fat"),
        ("exFAT", "mkfs.exfat"),
        ("swap", "mkswap -q -f"),
    ];
    let tools = ["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "mkntfs", "mkfs.fat", "mkfs.exfat"];
    if !tools.into_iter().all(have) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let (mut alone, mut ambiguous) = (0, Vec::new());
    for (old, make_old) in MAKERS {
        for (new, make_new) in MAKERS {
            sh(&format!(
                "rm -f {0}; truncate -s 320M {0}; {make_old} {0} >/dev/null; {make_new} {0} >/dev/null",
                path.display()
            ));
            let found = survey_of(&path);
            match &found {
                Ok(survey) => {
                    let name = survey.name.to_lowercase();
                    // FAT has several names, and so have ext2 to ext4.
                    let right = name.starts_with(&new.to_lowercase())
                        || new == "ext4" && name.starts_with("ext");
                    assert!(right, "{new} over {old} was taken for {name}");
                    alone += 1;
                }
                Err(Trouble::NotKnown(what)) if what.contains("signatures") => {
                    assert!(what.contains(old) && what.contains(new), "{new} over {old}: {what}");
                    ambiguous.push(format!("{new} over {old}"));
                }
                Err(other) => panic!("{new} over {old}: {other}"),
            }
        }
    }
    println!("{alone} were told apart; kept as ambiguous: {ambiguous:?}");
    assert!(alone > 60, "{alone}");
}

/// Two signatures at once: nobody may guess.
#[test]
fn what_has_two_signatures_is_neither() {
    type Sign = (&'static str, &'static [(usize, &'static [u8])]);
    const SIGNS: [Sign; 9] = [
        ("ext4", &[(0x400, &[1]), (0x404, &[1]), (0x438, &[0x53, 0xEF])]),
        ("XFS", &[(0, b"XFSB")]),
        ("btrfs", &[(0x10040, b"_BHRfS_M")]),
        ("NTFS", &[(3, b"NTFS    ")]),
        ("FAT", &[(0x36, b"FAT16"), (510, &[0x55, 0xAA])]),
        ("LVM", &[(0x218, b"LVM2 001")]),
        ("LUKS", &[(0, b"LUKS\xBA\xBE")]),
        ("swap", &[(0xFF6, b"SWAPSPACE2")]),
        ("swap", &[(0xFFF6, b"S1SUSPEND")]),
    ];
    for (number, (one, bytes)) in SIGNS.iter().enumerate() {
        let mut single = vec![0; 1 << 20];
        bytes.iter().for_each(|(at, bytes)| put(&mut single, *at, bytes));
        let found = recognise(&single, 0..1 << 20).unwrap();
        assert_eq!(found.map(|found| found.name), Some(*one));
        for (other, more) in &SIGNS[number + 1..] {
            let same_place = bytes[0].0 < 8 && more[0].0 < 8 || one == other;
            if same_place {
                continue;
            }
            let mut both = single.clone();
            more.iter().for_each(|(at, bytes)| put(&mut both, *at, bytes));
            let said = survey(&both).unwrap_err().to_string();
            assert!(said.contains("signatures"), "{one} and {other}: {said}");
            assert!(said.contains(one) && said.contains(other), "{said}");
        }
    }
}

/// A journal that lies on a device of its own has a superblock without inodes: what was there before it may look
/// whole behind it, and is written over by the journal.
#[test]
fn an_external_journal_is_named_and_nothing_beside_it_is_believed() {
    let mut disk = vec![0; 1 << 20];
    for (at, bytes) in [
        (0x404, &[0, 1][..]),
        (0x438, &[0x53, 0xEF]),
        // The feature journal_dev.
        (0x460, &[8]),
    ] {
        put(&mut disk, at, bytes);
    }
    let found = recognise(&disk, 0..1 << 20).unwrap().expect("it is recognised");
    assert_eq!((found.name, found.end, found.needs_recovery), ("ext journal", 256 << 10, false));
    let said = survey(&disk).unwrap_err();
    assert!(matches!(said, Trouble::NotKnown(_)) && said.to_string().contains("journal"), "{said}");
    // The btrfs of earlier days.
    put(&mut disk, 0x10040, b"_BHRfS_M");
    let said = survey(&disk).unwrap_err().to_string();
    assert!(said.contains("ext journal and btrfs"), "{said}");
}

/// The magic number of ext4 has two bytes, and they may stand in what boots another system.
#[test]
fn two_bytes_alone_are_no_ext4() {
    let mut disk = vec![0; 1 << 20];
    put(&mut disk, 3, b"NTFS    ");
    put(&mut disk, 0x438, &[0x53, 0xEF]);
    assert_eq!(recognise(&disk, 0..1 << 20).unwrap().unwrap().name, "NTFS");
}

/// Whose free space nobody here knows is named, and nothing of it is free.
#[test]
fn what_is_not_known_is_said_in_words() {
    for (at, bytes, said) in [
        (0x218, &b"LVM2 001"[..], "the free space of LVM is not known"),
        (0x018, b"LVM2 001", "the free space of LVM is not known"),
        (0, b"LUKS\xBA\xBE", "the free space of LUKS is not known"),
        (3, b"-FVE-FS-", "the free space of BitLocker is not known"),
        (3, b"ReFS\0\0\0\0", "the free space of ReFS is not known"),
        (0, b"hsqs", "no known file system"),
    ] {
        let mut disk = vec![0; 1 << 20];
        put(&mut disk, at, bytes);
        let found = survey(&disk);
        let told = matches!(&found, Err(Trouble::NotKnown(what)) if what == said);
        assert!(told, "{found:?}");
    }
    for short in [0, 1, 511, 4096] {
        let found = survey(&vec![0; short]);
        assert!(matches!(found, Err(Trouble::NotKnown(_))), "{short}: {found:?}");
    }
}
