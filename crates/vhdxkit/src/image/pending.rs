//! A replay in place that is looked at before it is done.

use std::sync::Arc;

use super::orphan;
use crate::Result;
use crate::defect::Defect;
use crate::findings::Findings;
use crate::format::GuidSource;
use crate::log::{Log, ReplayReport};
use crate::storage::Storage;
use crate::view::headers::HeaderPair;

/// What a replay in place has to do, for those who look at it before it is done.
#[derive(Debug)]
pub struct PendingReplay {
    headers: HeaderPair,
    log: Log,
    found: bool,
}

impl PendingReplay {
    /// Reads headers and, when there is anything to replay, the log. One whose header is lost is looked for, as
    /// whoever opens the file for writing does.
    ///
    /// # Errors
    /// As [`Log::read`]; a lost header may have named a log, and what that holds is not certain.
    pub fn read(file: &Arc<dyn Storage>) -> Result<Self> {
        let mut findings = Findings::strict();
        let headers = HeaderPair::read(&**file, &mut findings)?;
        let (headers, lost) = orphan::find_lost_log(file, headers, &findings)?;
        let found = matches!(lost, Some(Defect::LostLogFound { .. }));
        lost.map_or(Ok(()), |defect| findings.report(defect))?;
        let log = Log::read_pending(&**file, &headers)?;
        Ok(Self { headers, log, found })
    }

    /// The log; without entries when the file is clean.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Whether the header that named the log is lost, and the log was found without it.
    #[must_use]
    pub fn was_found(&self) -> bool {
        self.found
    }

    /// [`replay_in_place`](crate::log::replay_in_place), into the file that was read.
    ///
    /// # Errors
    /// As `replay_in_place`.
    pub fn carry_out(self, file: &dyn Storage) -> Result<Option<ReplayReport>> {
        let replayed = self.log.replay_into_file(file, self.headers, &GuidSource::random())?;
        Ok(replayed.1)
    }
}
