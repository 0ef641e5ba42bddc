//! A server is killed under clients that remember what it acknowledged: all of that is there, in QEMU's
//! eyes too.
#![cfg(all(target_os = "linux", feature = "serve"))]

use std::process::Command;

#[test]
fn twenty_kills_of_a_server_lose_nothing_acknowledged() {
    let program = env!("CARGO_BIN_EXE_vhdxkit-sim");
    let output = Command::new(program).args(["serve-kill", "--runs", "20"]).output().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
