//! `compare`: do two disks show the guest the same bytes?

use crate::Result;

use super::disk::{DiskRun, Source};
use super::progress::{Progress, advance};

/// What comparing found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Comparison {
    /// Bytes of the first disk.
    pub size_a: u64,
    /// Bytes of the second disk.
    pub size_b: u64,
    /// The first byte that differs, within the part both disks have.
    pub first_difference: Option<u64>,
}

impl Comparison {
    /// Whether size and contents are the same.
    #[must_use]
    pub fn identical(&self) -> bool {
        self.size_a == self.size_b && self.first_difference.is_none()
    }
}

const CHUNK: u64 = 256 << 10;

/// Compares two disks up to their first difference. What both say is zero is not read. Progress
/// counts bytes of the disk.
///
/// # Errors
/// One of the disks cannot be read; the work was stopped.
pub fn compare(a: &dyn Source, b: &dyn Source, progress: &mut dyn Progress) -> Result<Comparison> {
    let (size_a, size_b) = (a.size(), b.size());
    let common = size_a.min(size_b);
    let (mut runs_a, mut runs_b) = (a.runs(), b.runs());
    let nothing = || DiskRun { range: 0..0, data: false, place: None };
    let (mut run_a, mut run_b) = (nothing(), nothing());
    let (mut buf_a, mut buf_b) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < common {
        run_at(&mut run_a, at, &mut runs_a)?;
        run_at(&mut run_b, at, &mut runs_b)?;
        let both = run_a.range.end.min(run_b.range.end).min(common);
        let mut end = both;
        if run_a.data || run_b.data {
            end = both.min(at.saturating_add(CHUNK));
            let length = usize::try_from(end.saturating_sub(at)).unwrap_or_default();
            fill(a, &run_a, at, length, &mut buf_a)?;
            fill(b, &run_b, at, length, &mut buf_b)?;
            if buf_a != buf_b {
                let same = buf_a.iter().zip(&buf_b).take_while(|(a, b)| a == b).count();
                let first = at.saturating_add(u64::try_from(same).unwrap_or_default());
                return Ok(Comparison { size_a, size_b, first_difference: Some(first) });
            }
        }
        advance(progress, end.saturating_sub(at))?;
        if end == at {
            break;
        }
        at = end;
    }
    Ok(Comparison { size_a, size_b, first_difference: None })
}

/// Moves on to the run that holds `at`.
fn run_at(
    run: &mut DiskRun,
    at: u64,
    runs: &mut impl Iterator<Item = Result<DiskRun>>,
) -> Result<()> {
    while run.range.end <= at {
        match runs.next() {
            Some(next) => *run = next?,
            None => *run = DiskRun { range: at..u64::MAX, data: true, place: None },
        }
    }
    Ok(())
}

fn fill(disk: &dyn Source, run: &DiskRun, at: u64, length: usize, buf: &mut Vec<u8>) -> Result<()> {
    buf.clear();
    buf.resize(length, 0);
    if run.data { disk.read_at(at, buf) } else { Ok(()) }
}
