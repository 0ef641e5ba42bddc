//! Crashing a repair, and the undoing of one: of each fault that can be mended.
//!
//! Whatever a crash leaves, nothing that could be read shows anything but what it showed before or is to show
//! afterwards; a second repair comes to the end of the first; and the undo file restores every byte.

use std::sync::Arc;

use vhdxkit::OpenOptions;
use vhdxkit::defect::{Defect, Severity};
use vhdxkit::format::MIB;
use vhdxkit::ops::check::check as check_image;
use vhdxkit::ops::repair::{RepairOptions, Undo, plan};
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit_testkit::faults::{Fault, repairable};

use crate::complaint::Complaint;
use crate::disk::{SimDisk, Window};
use crate::medium::Medium;

/// The seeds of the repair that is crashed, and of the one that completes it.
const SEEDS: [u64; 2] = [0x7265_7061, 0x6167_6169];
/// Where blocks begin in all of these images, or later.
pub const METADATA_END: u64 = 4 * MIB;

/// An image with a fault, its repair, and the undo file of that.
pub struct Case {
    /// What is wrong with it.
    pub fault: Fault,
    /// The file before.
    pub broken: Medium,
    /// The file after.
    pub repaired: Medium,
    undo: MemoryStorage,
    /// What is read of the disk before, by sample and mebibyte; `None` where it cannot be.
    before: View,
}

type View = Vec<Option<Vec<u8>>>;

fn medium_of(bytes: &[u8]) -> Medium {
    let mut medium = Medium::default();
    medium.set_len(bytes.len() as u64);
    for (at, page) in (0..).step_by(4096).zip(bytes.chunks(4096)) {
        if page.iter().any(|byte| *byte != 0) {
            medium.write(at, page);
        }
    }
    medium.rebase();
    medium
}

fn options(fault: &Fault, seed: u64) -> RepairOptions {
    RepairOptions {
        discard_log: fault.discard_log,
        allow_data_loss: fault.allow_data_loss,
        header: fault.header,
        seed: Some(seed),
    }
}

/// How the disk is to be crashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// While it is repaired.
    Repair,
    /// While a repair is undone.
    Undo,
}

/// All of them.
#[must_use]
pub fn cases() -> Vec<Case> {
    repairable().into_iter().map(Case::new).collect()
}

impl Case {
    /// Repairs the image once.
    ///
    /// # Panics
    /// When it cannot be repaired: other tests tell why.
    #[must_use]
    pub fn new(fault: Fault) -> Self {
        let broken = medium_of(&fault.bytes);
        let disk = Arc::new(SimDisk::new(broken.clone()));
        let plan = plan(disk.clone(), &options(&fault, SEEDS[0]), &mut ()).expect("a plan");
        let undo = MemoryStorage::empty();
        plan.write_undo(&*disk, "disk.vhdx", &undo).expect("an undo file");
        plan.carry_out(&*disk, &mut ()).expect("a repair");
        let before = view(&disk, &fault);
        let mut case = Self { repaired: disk.view(), broken, undo, before, fault };
        case.before = view(&Arc::new(SimDisk::new(case.broken.clone())), &case.fault);
        case
    }

    /// Carries it out once more, and gives what a crash could interrupt.
    ///
    /// # Errors
    /// It fails.
    pub fn windows(&self, what: What) -> Result<Vec<Window>, String> {
        match what {
            What::Repair => {
                let disk = Arc::new(SimDisk::new(self.broken.clone()));
                let options = options(&self.fault, SEEDS[0]);
                let plan = plan(disk.clone(), &options, &mut ()).map_err(|e| e.to_string())?;
                disk.record(0, &Arc::default());
                plan.carry_out(&*disk, &mut ()).map_err(|e| e.to_string())?;
                Ok(disk.windows())
            }
            What::Undo => {
                let disk = SimDisk::new(self.repaired.clone());
                disk.record(1, &Arc::default());
                self.undo().restore(&disk, false).map_err(|e| e.to_string())?;
                Ok(disk.windows())
            }
        }
    }

    /// The windows of the repair that completes a crashed one.
    ///
    /// # Errors
    /// It fails.
    pub fn again(&self, state: &Medium) -> Result<Vec<Window>, String> {
        let disk = Arc::new(SimDisk::new(state.clone()));
        let options = options(&self.fault, SEEDS[1]);
        let plan = plan(disk.clone(), &options, &mut ()).map_err(|e| e.to_string())?;
        disk.record(0, &Arc::default());
        plan.carry_out(&*disk, &mut ()).map_err(|e| e.to_string())?;
        Ok(disk.windows())
    }

    fn undo(&self) -> Undo<'_> {
        Undo::read(&self.undo).expect("it was whole")
    }

    /// What must hold of every state that a crash leaves. `first` tells whether it is one of the repair that the
    /// undo file belongs to.
    ///
    /// # Errors
    /// What does not hold.
    pub fn check(&self, state: &Medium, what: What, first: bool) -> Result<(), Complaint> {
        if first {
            self.can_be_undone(state)?;
        }
        if what == What::Repair {
            self.shows_old_or_new(state)?;
            self.can_be_completed(state)?;
        }
        Ok(())
    }

    fn can_be_undone(&self, state: &Medium) -> Result<(), Complaint> {
        let disk = SimDisk::new(state.clone());
        self.undo().restore(&disk, false).map_err(Complaint::told("cannot be undone"))?;
        match disk.view().hash() == self.broken.hash() {
            true => Ok(()),
            false => Err(Complaint::Wrong("undone, it is not what it was".to_owned())),
        }
    }

    fn shows_old_or_new(&self, state: &Medium) -> Result<(), Complaint> {
        let seen = view(&Arc::new(SimDisk::new(state.clone())), &self.fault);
        let expected = self.fault.guest.iter().flat_map(|(_, bytes)| bytes.chunks(MIB as usize));
        for (number, (seen, (old, new))) in
            seen.iter().zip(self.before.iter().zip(expected)).enumerate()
        {
            let fits = match seen {
                // Before, as little as now; or a table that has not been mended yet.
                None => true,
                Some(seen) => old.as_ref() == Some(seen) || seen == new,
            };
            if !fits {
                return Err(Complaint::Wrong(format!("sample {number} shows other bytes")));
            }
        }
        Ok(())
    }

    fn can_be_completed(&self, state: &Medium) -> Result<(), Complaint> {
        let disk = Arc::new(SimDisk::new(state.clone()));
        let options = options(&self.fault, SEEDS[1]);
        let plan = plan(disk.clone(), &options, &mut ())
            .map_err(Complaint::told("no repair can be thought out"))?;
        plan.carry_out(&*disk, &mut ()).map_err(Complaint::told("cannot be repaired again"))?;
        let storage: Arc<dyn Storage> = disk.clone();
        let findings = check_image(storage, &mut ()).map_err(Complaint::told("no check"))?;
        let bad = findings.list().iter().find(|defect| self.counts(defect));
        if let Some(bad) = bad {
            return Err(Complaint::Told(format!("repaired again, check finds {bad}")));
        }
        let seen = view(&disk, &self.fault);
        let expected = self.fault.guest.iter().flat_map(|(_, bytes)| bytes.chunks(MIB as usize));
        match seen.iter().zip(expected).all(|(seen, new)| seen.as_deref() == Some(new)) {
            true => Ok(()),
            false => Err(Complaint::Wrong("repaired again, it shows other bytes".to_owned())),
        }
    }

    fn counts(&self, defect: &Defect) -> bool {
        // Free space is given back only once nothing else is wrong: by a repair after the next.
        let rest = defect.code() == self.fault.code && defect.code() != "V35";
        defect.severity() > Severity::Info || rest
    }
}

/// What is read of the samples, a mebibyte at a time; `None` for what cannot be read.
fn view(disk: &Arc<SimDisk>, fault: &Fault) -> View {
    let storage: Arc<dyn Storage> = disk.clone();
    let image = OpenOptions::new().without_parents().open_storage(storage).ok();
    let read = |offset: u64, length: usize| {
        let mut bytes = vec![0; length];
        image.as_ref()?.read_at(offset, &mut bytes).ok()?;
        Some(bytes)
    };
    let chunks = fault.guest.iter().flat_map(|(offset, bytes)| {
        let lengths = bytes.chunks(MIB as usize).map(<[u8]>::len);
        (*offset..).step_by(MIB as usize).zip(lengths)
    });
    chunks.map(|(offset, length)| read(offset, length)).collect()
}
