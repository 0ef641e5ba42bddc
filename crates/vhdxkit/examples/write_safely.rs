//! Makes a disk, writes to it, and shows that what was flushed survives a program that just stops.
//!
//! `cargo run --example write_safely -- new.vhdx`

use vhdxkit::{CreateOptions, OpenOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("which file should be made?")?;
    CreateOptions::new(10 << 30).block_size(1 << 20).create(&path)?;

    let disk = OpenOptions::new().write(true).open(&path)?;
    disk.write_at(5 << 30, &[42; 4096])?;
    disk.flush()?;
    // No close: as if the program had been killed.
    drop(disk);

    // For reading, the log is replayed in memory; for writing, in the file.
    let disk = OpenOptions::new().write(true).open(&path)?;
    let mut bytes = [0; 4096];
    disk.read_at(5 << 30, &mut bytes)?;
    assert_eq!(bytes, [42; 4096]);
    println!("{path}: found what was flushed; the log was {}", disk.log().state().name());
    disk.close()?;
    Ok(())
}
