//! Writes the sample images of `testdata/` into a folder.

use std::path::PathBuf;
use std::process::ExitCode;

use vhdxkit_testkit::samples;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [folder] = arguments.as_slice() else {
        eprintln!("usage: vhdxkit-testkit FOLDER\nWrites the sample images into FOLDER.");
        return ExitCode::from(2);
    };
    let folder = PathBuf::from(folder);
    if let Err(error) = std::fs::create_dir_all(&folder) {
        eprintln!("{}: {error}", folder.display());
        return ExitCode::FAILURE;
    }
    for sample in samples::all() {
        let path = folder.join(sample.name);
        sample.image.build_file(&path);
        println!("{}", path.display());
    }
    ExitCode::SUCCESS
}
