//! Opens an image, clean or crashed, and prints its first sector.
//!
//! `cargo run --example read_sector -- disk.vhdx`

use vhdxkit::Image;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).unwrap_or("testdata/crashed.vhdx".into());
    let image = Image::open(&path)?;
    println!("{path}: {} bytes, log {}", image.virtual_size(), image.log().state().name());

    let mut sector = vec![0; image.geometry().logical_sector_size() as usize];
    image.read_at(0, &mut sector)?;
    for (number, line) in sector.chunks(16).enumerate().take(8) {
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("{:04x}  {}", number * 16, hex.join(" "));
    }
    Ok(())
}
