//! The command `vhdx`.
fn main() {}
