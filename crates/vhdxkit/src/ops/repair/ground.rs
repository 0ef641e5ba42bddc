//! What everything else stands on: identifier, headers, log. Judged first, since nothing behind them means
//! anything before.

use std::ops::Range;
use std::sync::Arc;

use zerocopy::IntoBytes;
use zerocopy::little_endian::U16;

use crate::defect::{Defect, Severity};
use crate::findings::Findings;
use crate::format::header::LOG_VERSION;
use crate::format::identifier::SIGNATURE;
use crate::format::{Guid, HEADER_OFFSETS, HEADER_SECTION_LENGTH};
use crate::image::find_lost_log;
use crate::log::{Log, LogState};
use crate::storage::{Overlay, Storage, StorageExt};
use crate::view::headers::HeaderPair;
use crate::{Error, Result};

use super::report::{Report, hex};
use super::{RepairOptions, Word};

const WHY_NOT_OVER_AN_ORPHAN: &str = "the lost header may have named a log whose newest entries are not in place, and \
                                      what a repair logs is written over them; `vhdx recover` uses them";

/// The file as it is once identifier, headers and log are in order, and what has to be done for that.
pub(super) struct Ground {
    /// Replayed, and its header names no log.
    pub(super) storage: Arc<dyn Storage>,
    /// As they lie in the file; the one that counts has been chosen.
    pub(super) headers: HeaderPair,
    pub(super) log: Log,
    /// The identifier's signature has to be written.
    pub(super) identifier: bool,
    /// The log is given up.
    pub(super) discard: bool,
    /// The log has changes to be put in place.
    pub(super) replay: bool,
    /// A file that was cut off gets this length before its log is replayed.
    pub(super) extend_first: Option<u64>,
    /// The part of it that is lost; empty for a file that was not cut off.
    pub(super) missing: Range<u64>,
    /// What was in the log is lost, at least in part.
    pub(super) log_lost: bool,
    /// A log has to be made elsewhere.
    pub(super) new_log: bool,
    /// Something about the headers alone is worth a session.
    pub(super) heal_headers: bool,
}

/// Judges them. `None` when there is nothing to stand on; the report says why.
pub(super) fn read(
    file: &Arc<dyn Storage>,
    options: &RepairOptions,
    report: &mut Report,
) -> Result<Option<Ground>> {
    let scratch = over(file)?;
    let Some(identifier) = judge_identifier(&scratch, options, report)? else { return Ok(None) };
    let mut findings = Findings::tolerant();
    let headers = match choose(&scratch, options, &mut findings, report)? {
        Some(headers) => headers,
        None => return Ok(None),
    };
    let (headers, lost) = find_lost_log(file, headers, &findings)?;
    if let Some(orphan) = lost.filter(|lost| matches!(lost, Defect::LogOrphan { .. }))
        && !judge_orphan(&orphan, options, report)
    {
        return Ok(None);
    }
    let log = Log::read_pending(&scratch, &headers)?;
    let mut ground = Ground {
        storage: Arc::clone(file),
        log,
        identifier,
        discard: false,
        replay: false,
        extend_first: None,
        missing: 0..0,
        log_lost: false,
        new_log: false,
        heal_headers: false,
        headers,
    };
    if !ground.take_headers(&findings, report) || !ground.take_log(&scratch, options, report)? {
        return Ok(None);
    }
    let scratch: Arc<dyn Storage> = Arc::new(scratch);
    let replayed = match ground.replay {
        true => ground.log.replay_in_memory(scratch)?,
        false => scratch,
    };
    ground.storage = Arc::new(ground.clean(&replayed)?);
    Ok(Some(ground))
}

/// Whether one can go on beside a log that the lost header may have named.
fn judge_orphan(orphan: &Defect, options: &RepairOptions, report: &mut Report) -> bool {
    if orphan.severity() < Severity::Error {
        report.beyond(orphan, WHY_NOT_OVER_AN_ORPHAN);
        return true;
    }
    if !options.discard_log {
        report.needs(orphan, Word::DiscardLog, WHY_NOT_OVER_AN_ORPHAN);
        return false;
    }
    report.step(
        orphan,
        "go on without the entries of the log".to_owned(),
        "you said that they are not wanted; what is logged next is written over them",
    );
    true
}

/// How the entries that a replay does not reach are saved.
fn save_entries(gap: &Defect) -> String {
    let (first, more) = match gap {
        Defect::UnreachableEntries { first, last, .. } if last > first => {
            (*first, format!(", and so on up to {last}"))
        }
        Defect::UnreachableEntries { first, .. } => (*first, String::new()),
        _ => (0, String::new()),
    };
    format!(
        "a replay in the file would give up what these entries hold; `vhdx log extract IMAGE --entry {first} -o \
         entry-{first}.bin` saves one{more}"
    )
}

fn over(file: &Arc<dyn Storage>) -> Result<Overlay> {
    Overlay::new(Arc::clone(file)).map_err(|e| Error::io_whole("cannot tell the file's length", e))
}

fn put(scratch: &Overlay, offset: u64, bytes: &[u8]) -> Result<()> {
    scratch.write_at(offset, bytes).map_err(|e| Error::io("cannot keep a change", offset, e))
}

/// Whether the signature has to be written; `None` when this is no VHDX file.
fn judge_identifier(
    scratch: &Overlay,
    options: &RepairOptions,
    report: &mut Report,
) -> Result<Option<bool>> {
    let length = scratch.length()?;
    let mut start = vec![0; 64 << 10];
    scratch.read_zero_filled(0, &mut start)?;
    if start.starts_with(&SIGNATURE) && length >= HEADER_SECTION_LENGTH {
        return Ok(Some(false));
    }
    let mut found = SIGNATURE;
    found.iter_mut().zip(&start).for_each(|(to, from)| *to = *from);
    if length < HEADER_SECTION_LENGTH {
        report.beyond(&Defect::FileTooShort { length }, "there is no header section to go by");
        return Ok(None);
    }
    let defect = Defect::NotVhdx { found };
    if start.iter().all(|byte| *byte == 0) && !options.allow_data_loss {
        report.needs(
            &defect,
            Word::AllowDataLoss,
            "the file starts with nothing but zeros: whoever made it may never have finished, and then \
             what it holds is not complete",
        );
        return Ok(None);
    }
    put(scratch, 0, &SIGNATURE)?;
    report.step(
        &defect,
        "write the signature \"vhdxfile\" at offset 0".to_owned(),
        "headers, tables and the block table are those of a VHDX file, and only the signature is damaged",
    );
    Ok(Some(true))
}

/// The headers with the one that counts chosen.
fn choose(
    scratch: &Overlay,
    options: &RepairOptions,
    findings: &mut Findings,
    report: &mut Report,
) -> Result<Option<HeaderPair>> {
    let headers = match HeaderPair::read(scratch, findings) {
        Ok(headers) => headers,
        Err(error) => {
            let Some(defect) = error.defect() else { return Err(error) };
            report.beyond(defect, "without a header nothing says which log and which tables count");
            return Ok(None);
        }
    };
    let tie = findings.list().iter().find(|found| matches!(found, Defect::HeaderTie { .. }));
    let Some(tie) = tie.cloned() else { return Ok(Some(headers)) };
    let Defect::HeaderTie { fields, .. } = &tie else { return Ok(Some(headers)) };
    // Which session wrote the file last is the one thing that nothing else depends on.
    let harmless = fields == "FileWriteGuid";
    let chosen = match options.header {
        Some(copy @ (1 | 2)) => copy,
        Some(_) => return Err(Error::invalid("there are two header copies, 1 and 2")),
        None if harmless => 1,
        None => {
            let why = format!(
                "nothing in the file says which of the two is right (they differ in {fields}): \
                 look at both (`vhdx dump IMAGE header`)"
            );
            report.needs(&tie, Word::UseHeader, &why);
            return Ok(None);
        }
    };
    report.step(
        &tie,
        format!("let header copy {chosen} count, and rewrite the other one"),
        match harmless {
            true => "they differ only in the number of the last session, on which nothing depends",
            false => "you named the copy that counts",
        },
    );
    if chosen == 1 {
        return Ok(Some(headers));
    }
    let [first, _] = HEADER_OFFSETS;
    put(scratch, first, &[0; 4])?;
    let chosen = read_chosen(scratch, findings)?;
    findings.note(tie);
    Ok(Some(chosen))
}

/// Reads the headers again, one copy having been put aside.
fn read_chosen(scratch: &Overlay, findings: &mut Findings) -> Result<HeaderPair> {
    let mut again = Findings::tolerant();
    let headers = HeaderPair::read(scratch, &mut again)?;
    *findings = Findings::tolerant();
    let others =
        again.list().iter().filter(|defect| !matches!(defect, Defect::HeaderCopyInvalid { .. }));
    others.for_each(|defect| findings.note(defect.clone()));
    Ok(headers)
}

impl Ground {
    /// Steps for what the headers say; whether one can go on.
    fn take_headers(&mut self, findings: &Findings, report: &mut Report) -> bool {
        for defect in findings.list() {
            match defect {
                Defect::HeaderCopyInvalid { at, .. }
                | Defect::HeaderReservedDamaged { at }
                | Defect::HeaderPairDiffers { at, .. } => {
                    self.heal_headers = true;
                    report.step(
                        defect,
                        format!("rewrite the header copy at {} from the current one", hex(*at)),
                        "the current copy is whole, and only its fields are used",
                    );
                }
                Defect::HeaderTwins { .. } => {
                    self.heal_headers = true;
                    report.step(
                        defect,
                        "rewrite both header copies, with numbers that differ".to_owned(),
                        "they say the same",
                    );
                }
                Defect::LogVersion { dirty: false, .. } => {
                    self.heal_headers = true;
                    report.step(
                        defect,
                        "write log version 0 into the header".to_owned(),
                        "the log is empty, so there is nothing that another version could mean",
                    );
                }
                Defect::LogGeometry { dirty: false, .. } => {
                    self.new_log = true;
                    report.step(
                        defect,
                        "make a new log of 1 MiB at the end of the file".to_owned(),
                        "the log is empty, so nothing is lost with the old one",
                    );
                }
                // The choice is made, and takes effect with the next header.
                Defect::HeaderTie { .. } => self.heal_headers = true,
                // Judged with the log, which cannot be read.
                Defect::LogGeometry { .. } => {}
                other => {
                    report.beyond(other, "this version does not know what the file then means");
                    return false;
                }
            }
        }
        true
    }

    /// Steps for the log; whether one can go on.
    fn take_log(
        &mut self,
        scratch: &Overlay,
        options: &RepairOptions,
        report: &mut Report,
    ) -> Result<bool> {
        match self.log.state() {
            LogState::Clean => Ok(true),
            LogState::Invalid => Ok(self.discard_log(options, report)),
            LogState::Dirty => {
                if let Some(gap) = self.log.unreachable_entries() {
                    if !options.allow_data_loss {
                        let why = save_entries(&gap);
                        report.needs(&gap, Word::AllowDataLoss, &why);
                        return Ok(false);
                    }
                    self.log_lost = true;
                    report.step(
                        &gap,
                        "replay what can be replayed".to_owned(),
                        "you allowed that the newer entries are given up",
                    );
                }
                self.judge_length(scratch, report)?;
                let entries = self.log.active().map_or(0, |active| active.entries().len());
                report.step_of(
                    "I-DIRTY",
                    format!("replay the log ({entries} entries) and retire it"),
                    "the changes were made durable in the log, and every reader applies them",
                );
                self.replay = true;
                Ok(true)
            }
        }
    }

    fn discard_log(&mut self, options: &RepairOptions, report: &mut Report) -> bool {
        let defect = self.log.no_active_sequence();
        let nothing_written = matches!(defect, Defect::NoActiveSequence { valid: 0, torn: 0, .. });
        if !options.discard_log {
            report.needs(
                &defect,
                Word::DiscardLog,
                match nothing_written {
                    true => "most likely nothing is lost with it: no entry was ever written",
                    false => {
                        "what the last writer meant to change since its last flush is lost with it"
                    }
                },
            );
            return false;
        }
        self.discard = true;
        self.log_lost = !nothing_written;
        // A log that cannot be where the header says it is.
        self.new_log |= self.log.place().is_none() && self.headers.current().log_length.get() != 0;
        report.step(
            &defect,
            "discard the log: write a header that names none".to_owned(),
            match nothing_written {
                true => "no entry of it was ever written, and without it the file is consistent",
                false => "without it the file is consistent; it may lack what was being changed at the end",
            },
        );
        report.keep_only_if_clean(&defect);
        true
    }

    /// V9: a file that was cut off is made as long as it was.
    fn judge_length(&mut self, scratch: &Overlay, report: &mut Report) -> Result<()> {
        let length = scratch.length()?;
        let Err(error) = self.log.judge(length) else { return Ok(()) };
        let Some(defect) = error.defect() else { return Err(error) };
        let Defect::Truncated { flushed, .. } = defect else { return Err(error) };
        scratch.set_len(*flushed).map_err(|e| Error::io_whole("cannot keep a length", e))?;
        self.extend_first = Some(*flushed);
        self.missing = length..*flushed;
        report.step(
            defect,
            format!("extend the file with zeros to {}, then replay its log", hex(*flushed)),
            "what was cut off is gone; with it, the file has its length again and the log can be replayed",
        );
        report.keep_only_if_clean(defect);
        Ok(())
    }

    /// The replayed file with a header that names no log.
    fn clean(&self, replayed: &Arc<dyn Storage>) -> Result<Overlay> {
        let clean = over(replayed)?;
        let mut header = self.headers.current().clone();
        header.log_guid = Guid::ZERO;
        header.log_version = U16::new(LOG_VERSION);
        let at = HEADER_OFFSETS.get(self.headers.current_copy()).copied().unwrap_or_default();
        put(&clean, at, header.sealed().as_bytes())?;
        Ok(clean)
    }

    /// Whether headers and log alone are something to be written.
    pub(super) fn has_work(&self) -> bool {
        self.identifier || self.discard || self.replay || self.new_log || self.heal_headers
    }
}
