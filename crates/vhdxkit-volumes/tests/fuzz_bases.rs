//! Makes the disks that the fuzz targets' inputs start from, with the file systems' own tools. Only when
//! asked to (`--ignored`): what is committed stays as it is, for the corpus counts on its pieces.

use std::fs;
use std::path::{Path, PathBuf};

mod common;
#[path = "../../../fuzz/src/volumes/map.rs"]
#[allow(dead_code, unreachable_pub)]
mod map;

use common::{FileDisk, sh};

/// Longer runs of bytes are tables that are the same on every disk.
const LONGEST: usize = 48 << 10;

/// Files, folders and gaps, of zeros: `$dir` is the mounted file system.
const FILL: &str = r#"
    mkdir -p "$dir/folder"
    for n in $(seq 1 24); do head -c "${n}7000" /dev/zero >"$dir/folder/$n"; done
    sync
    rm "$dir"/folder/*[13579]
    sync
"#;

/// Target, name, size, the line that makes it of `$img`, whether it is mounted (with what) and filled.
const DISKS: [(&str, &str, &str, &str, &str); 25] = [
    ("ext", "ext2-1k", "24M", "mkfs.ext2 -q -b 1024 $img", ""),
    ("ext", "ext3", "64M", "mkfs.ext3 -q -b 4096 $img", "mount -o loop"),
    ("ext", "ext4", "160M", "mkfs.ext4 -q -b 4096 $img", "mount -o loop"),
    ("ext", "ext4-1k", "40M", "mkfs.ext4 -q -b 1024 -O ^64bit,^metadata_csum,uninit_bg $img", ""),
    ("ext", "ext4-bigalloc", "256M", "mkfs.ext4 -q -O bigalloc -C 65536 $img", "mount -o loop"),
    ("xfs", "v4", "300M", "mkfs.xfs -q -m crc=0 $img", ""),
    ("xfs", "v5", "300M", "mkfs.xfs -q $img", ""),
    ("xfs", "v5-plain", "300M", "mkfs.xfs -q -b size=1024 -m rmapbt=0,reflink=0,finobt=0 $img", ""),
    // Never mounted: its log would be the most of the map.
    (
        "xfs",
        "v5-filled",
        "300M",
        "head -c 90000 /dev/zero >$dir/f; { printf '/\\n0 0\\nd--755 0 0\\n'; for n in $(seq 90); do echo f$n ---644 0 0 $dir/f; done; echo '$'; } >$dir/p; mkfs.xfs -q -p $dir/p $img",
        "",
    ),
    ("btrfs", "dup", "128M", "mkfs.btrfs -q $img", ""),
    ("btrfs", "single", "128M", "mkfs.btrfs -q -m single -n 4096 $img", "mount -o loop"),
    ("btrfs", "mixed", "64M", "mkfs.btrfs -q -M -n 4096 $img", "mount -o loop"),
    ("btrfs", "filled", "256M", "mkfs.btrfs -q -m single $img", "mount -o loop"),
    ("ntfs", "empty", "16M", "mkntfs -q -F -f $img", ""),
    ("ntfs", "cluster-512", "8M", "mkntfs -q -F -f -c 512 $img", ""),
    ("ntfs", "filled", "32M", "mkntfs -q -F -f $img", "ntfs-3g"),
    ("fat", "fat12", "2M", "mkfs.fat -F 12 $img", ""),
    ("fat", "fat16", "16M", "mkfs.fat -F 16 $img", ""),
    ("fat", "fat32", "40M", "mkfs.fat -F 32 -s 1 $img", ""),
    (
        "fat",
        "filled",
        "24M",
        "mkfs.fat -F 16 $img; head -c 300000 /dev/zero >$dir/f; mcopy -i $img $dir/f ::a; mcopy -i $img $dir/f ::b; mdel -i $img ::a",
        "",
    ),
    ("exfat", "empty", "16M", "mkfs.exfat $img", ""),
    ("exfat", "cluster-512", "4M", "mkfs.exfat -c 512 $img", ""),
    (
        "partitions",
        "mbr",
        "64M",
        "printf '1M,8M,7\\n9M,4M,83\\n16M,,5\\n17M,8M,82\\n32M,8M,c\\n' | sfdisk -q $img; mkfs.fat --offset 65536 -F 12 $img 8192",
        "",
    ),
    (
        "partitions",
        "gpt",
        "64M",
        "printf 'label: gpt\\n1M,8M,U\\n9M,4M,L\\n16M,8M,S\\n' | sfdisk -q $img; mkfs.fat --offset 2048 -F 12 $img 8192",
        "",
    ),
    (
        "partitions",
        "gpt-4k",
        "64M",
        "loop=$(losetup -b 4096 -f --show $img); printf 'label: gpt\\n1M,8M,U\\n9M,4M,L\\n' | sfdisk -q $loop; losetup -d $loop",
        "",
    ),
];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/bases")
}

#[test]
#[ignore = "writes the bases anew, as root"]
fn every_base_is_made_by_its_own_tools() {
    let only = std::env::var("ONLY_BASES").unwrap_or_default();
    for (target, name, size, make, mount) in DISKS {
        if !target.contains(&only) {
            continue;
        }
        let temp = tempfile::tempdir().unwrap();
        let img = temp.path().join("disk");
        let (img_text, dir) = (img.display(), temp.path().join("mnt"));
        let fill = match mount {
            "" => String::new(),
            // A test that fails leaves no mount behind.
            mount => format!("trap 'umount -l $dir' ERR; {mount} $img $dir; {FILL}\numount $dir"),
        };
        let dir_text = dir.display();
        sh(&format!(
            "img={img_text} dir={dir_text}; mkdir $dir; truncate -s {size} $img; {make} >/dev/null\n{fill}"
        ));
        write(target, name, &img);
    }
}

fn write(target: &str, name: &str, img: &Path) {
    let bytes = map::Map::encode(&FileDisk::open(img), LONGEST).unwrap();
    assert!(bytes.len() < 96 << 10, "{target}/{name}: {} bytes", bytes.len());
    println!("{target}/{name}: {} bytes", bytes.len());
    fs::create_dir_all(folder().join(target)).unwrap();
    fs::write(folder().join(target).join(format!("{name}.map")), bytes).unwrap();
}
