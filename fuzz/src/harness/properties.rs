//! What must hold for any file whatsoever. A breach is a panic.

use std::sync::Arc;

use vhdxkit::defect::{Defect, Severity};
use vhdxkit::findings::Findings;
use vhdxkit::log::{Log, LogState, replay_in_place};
use vhdxkit::ops::recover::{Fate, Salvage, SalvageOptions};
use vhdxkit::ops::{check, inspect, timeline};
use vhdxkit::storage::{Overlay, Storage};
use vhdxkit::{Error, ErrorKind, ExtentState, Image, OpenOptions};

/// A file may be opened or refused; if opened it can be read, checked and recovered.
pub fn open(file: &Arc<dyn Storage>) {
    let opened = OpenOptions::new().open_storage(Arc::clone(file));
    let found = check::check(Arc::clone(file), &mut ()).expect("a check goes on to the end");
    judge_findings(&found);
    match opened {
        Ok(image) => {
            look_at(&image);
            judge_findings(image.findings());
            if image.log().state() == LogState::Dirty {
                recover(file, &image);
            }
        }
        Err(error) => {
            let defect = judge_refusal(&error);
            let listed = found.list().iter().any(|other| other.code() == defect.code());
            assert!(listed, "open says {error}, check does not: {:?}", found.list());
        }
    }
    if let Err(error) = inspect::inspect_storage(Arc::clone(file)) {
        judge_refusal(&error);
    }
}

/// Whatever is left of a file can be looked through; what is had is an image without errors, and no larger than
/// the file. Of a file that opens, and with which nothing is wrong, blocks that count as intact or absent show
/// what they show.
pub fn salvage(file: &Arc<dyn Storage>) {
    let salvage = match Salvage::read(Arc::clone(file), &SalvageOptions::new(), &mut ()) {
        Ok(salvage) => salvage,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
            return;
        }
    };
    let report = salvage.report();
    assert!(report.share() <= 10_000 && report.recovered <= file.len().unwrap() + (1 << 20));
    let Some(view) = salvage.image().expect("the view opens") else { return };
    assert_eq!(report.fates.total(), view.geometry().blocks());
    let found = check::check(Arc::clone(view.storage()), &mut ()).expect("a check goes on");
    let errors = found.list().iter().filter(|defect| defect.severity() == Severity::Error);
    assert_eq!(errors.collect::<Vec<_>>(), Vec::<&Defect>::new());
    let Ok(original) = OpenOptions::new().open_storage(Arc::clone(file)) else { return };
    let found = check::check(Arc::clone(file), &mut ()).expect("a check goes on");
    if found.has_problems() || original.geometry().is_differencing() {
        return;
    }
    assert_eq!(view.geometry(), original.geometry());
    for run in report.fates.runs.iter().take(32) {
        if !matches!(run.fate, Fate::Intact | Fate::Absent) {
            continue;
        }
        for block in [run.blocks.start, run.blocks.end - 1] {
            let start = block * u64::from(view.geometry().block_size());
            let length = (view.virtual_size() - start).min(8192) as usize;
            let (mut was, mut is) = (vec![0; length], vec![0; length]);
            original.read_at(start, &mut was).expect("no problem was found");
            view.read_at(start, &mut is).expect("the view can be read");
            assert!(was == is, "block {block} is called {}", run.fate.name());
        }
    }
}

/// A log may be read or refused; if read, every entry can be told.
pub fn log(file: &Arc<dyn Storage>) {
    let log = match Log::read(&**file) {
        Ok(log) => log,
        Err(error) => {
            judge_refusal(&error);
            return;
        }
    };
    let sectors = log.place().map_or(0, |place| u64::from(place.length) / 4096);
    assert!(log.sectors_judged() <= 2 * sectors, "{} of {sectors}", log.sectors_judged());
    assert!(log.entries().len() as u64 <= sectors);
    for entry in log.entries() {
        let mut count = 0;
        let told = log.updates(&**file, entry, |_| {
            count += 1;
            Ok(())
        });
        let raw = log.raw_entry(&**file, entry);
        if let Some(fault) = &entry.fault {
            assert!(told.is_err() && !fault.to_string().is_empty());
            continue;
        }
        told.expect("a valid entry has updates");
        assert_eq!(count, entry.info.descriptors);
        assert_eq!(raw.expect("a valid entry has bytes").len(), entry.info.length as usize);
    }
    if let Some(active) = log.active() {
        assert!(active.entries().windows(2).all(|pair| pair[1].sequence == pair[0].sequence + 1));
        assert_eq!(active.head().unwrap().tail, active.entries()[0].log_offset);
    }
    let image = inspect::inspect_storage(Arc::clone(file)).ok();
    for image in [image.as_ref(), None] {
        let mut told = 0;
        timeline::for_each_entry(&**file, &log, image, |_| {
            told += 1;
            Ok(())
        })
        .expect("a log that was read can be told");
        assert_eq!(told, log.entries().len());
    }
}

/// The file is in memory: whatever is refused is malformed, and the error says where.
pub fn judge_refusal(error: &Error) -> &Defect {
    let defect = error.defect().unwrap_or_else(|| panic!("no defect: {error:?}"));
    judge_defect(defect);
    assert_eq!(defect.severity(), Severity::Error);
    assert!(error.to_string().starts_with(defect.structure()), "{error}");
    assert!(defect.offset().is_some(), "no offset: {error}");
    defect
}

fn judge_defect(defect: &Defect) {
    assert!(!defect.to_string().is_empty() && !defect.structure().is_empty());
    assert!(!defect.code().is_empty() && !format!("{defect:?}").is_empty());
    let nowhere = matches!(
        defect,
        Defect::LeakedSpace { .. } | Defect::NamelessData { .. } | Defect::ChangeTracking { .. }
    );
    assert!(defect.offset().is_some() || nowhere, "no offset: {defect}");
}

/// Every finding can be told.
pub fn judge_findings(found: &Findings) {
    found.list().iter().for_each(judge_defect);
}

/// Reading fails only with a defect, or because the disk is a child.
fn judge_reading(error: &Error) -> ErrorKind {
    if error.kind() != ErrorKind::ParentNeeded {
        judge_refusal(error);
    }
    error.kind()
}

/// Reads all over the disk, and where its extents say its bytes lie.
pub fn look_at(image: &Image) {
    inspect::count_blocks(image, false).expect("the BAT can be read");
    let size = image.virtual_size();
    // A bounded number of blocks, at both ends.
    let span = u64::from(image.geometry().block_size()) * 5000;
    for range in [0..size.min(span), size.saturating_sub(span)..size] {
        let mut at = range.start;
        for extent in image.extents(range.clone()).take(10_000) {
            let extent = match extent {
                Ok(extent) => extent,
                Err(error) => {
                    judge_reading(&error);
                    at = range.end;
                    break;
                }
            };
            assert!(extent.start == at && extent.length > 0, "{extent:?} at {at:#x}");
            at = extent.end();
            if extent.state == ExtentState::Data {
                let length = extent.length.min(16) as usize;
                let (mut guest, mut file) = (vec![0; length], vec![1; length]);
                let there = image.storage().read_at(extent.file_offset.unwrap(), &mut file);
                assert_eq!(there.unwrap(), length);
                match image.read_at(extent.start, &mut guest) {
                    Ok(()) => assert_eq!(guest, file),
                    Err(error) => assert_eq!(judge_reading(&error), ErrorKind::ParentNeeded),
                }
            }
        }
        assert_eq!(at, range.end, "the extents of {range:?} end early");
    }
    sample(image);
}

/// A few ranges of the disk: bytes, or why there are none.
fn sample(image: &Image) -> Vec<Result<Vec<u8>, ErrorKind>> {
    let size = image.virtual_size();
    let block = u64::from(image.geometry().block_size());
    let starts = [0, 1, block - 700, block, 3 * block + 8000, size / 2, size.saturating_sub(3000)];
    let read = |start: u64| {
        let mut bytes = vec![0; size.saturating_sub(start).min(3000) as usize];
        match image.read_at(start, &mut bytes) {
            Ok(()) => Ok(bytes),
            Err(error) => Err(judge_reading(&error)),
        }
    };
    starts.into_iter().filter(|start| *start < size).map(read).collect()
}

/// Replay in place gives what replay in memory showed, once.
fn recover(file: &Arc<dyn Storage>, before: &Image) {
    let copy = Arc::new(Overlay::new(Arc::clone(file)).unwrap());
    let after = match replay_in_place(&*copy) {
        Ok(report) => {
            assert!(report.is_some(), "a dirty log has something to replay");
            OpenOptions::new().open_storage(Arc::clone(&copy) as _).expect("a replayed image opens")
        }
        Err(error) => {
            // Sequence numbers can be at their end. Then the file is as good as it was.
            assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
            let sequence = before.headers().current().sequence_number.get();
            assert!(sequence > u64::MAX - 3, "{error} at {sequence}");
            assert_eq!(
                copy.len().unwrap(),
                file.len().unwrap(),
                "a refused replay changes nothing"
            );
            return;
        }
    };
    assert_eq!(after.log().state(), LogState::Clean);
    assert_eq!(sample(before), sample(&after));
    let length = before.storage().len().unwrap();
    assert_eq!(length, copy.len().unwrap());
    // Everything behind the headers, where the two may not differ.
    let mut at = 192 << 10;
    while let Some(data) =
        before.storage().next_data(at).unwrap().filter(|data| data.start < 16 << 20)
    {
        let end = data.end.min(data.start + (64 << 10));
        let (mut one, mut two) =
            (vec![0; (end - data.start) as usize], vec![1; (end - data.start) as usize]);
        before.storage().read_at(data.start, &mut one).unwrap();
        copy.read_at(data.start, &mut two).unwrap();
        assert!(one == two, "the replayed file differs near {:#x}", data.start);
        at = end;
    }
    drop(after);
    let copy = Arc::into_inner(copy).expect("the image is closed").freeze();
    assert_eq!(replay_in_place(&copy).expect("nothing is written"), None);
}
