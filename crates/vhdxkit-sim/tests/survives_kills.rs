//! A process that writes is killed; what it leaves opens, in QEMU too.
#![cfg(unix)]

use std::process::Command;

#[test]
fn twenty_kills_lose_nothing() {
    let program = env!("CARGO_BIN_EXE_vhdxkit-sim");
    let output = Command::new(program).args(["kill", "--runs", "20"]).output().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
