//! Every state that a crash can leave of a window.
//!
//! What was done since the last sync is divided into *atoms*, each of which survives or not: 4 KiB of
//! a write (large writes: their first and last 4 KiB and what is between), a change of length, a hole.
//! Of up to [`ALL_SUBSETS`] atoms every subset is made; of more every prefix (what a killed process
//! leaves), every single loss, every single survivor, and seeded subsets. On top, surviving
//! writes are torn, one at a time and all at once: the first 512 bytes new, the rest old; or, where no
//! guest data is concerned, the rest garbage.

use std::ops::Range;
use std::sync::Arc;

use crate::disk::{Event, Window};
use crate::medium::{Medium, PAGE};
use vhdxkit_testkit::random::Random;

/// So many atoms are taken apart completely.
pub const ALL_SUBSETS: usize = 10;
/// Up to so many atoms, each survivor is torn in turn.
const ALL_TORN: usize = 6;
/// Seeded subsets of a larger window.
const SEEDED: usize = 48;

#[derive(Debug, Clone)]
struct Atom {
    disk: usize,
    change: Change,
}

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Arc<[u8]>, Range<usize>),
    SetLen(u64),
    Punch(Range<u64>),
}

/// How a write is torn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tear {
    /// The first 512 bytes are new, the rest old.
    Old,
    /// The first 512 bytes are new, the rest garbage.
    Garbage,
}

/// Which atoms of a window survive: enough to make the state again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survivors {
    /// By number, in order.
    pub atoms: Vec<usize>,
    /// Those of them that are torn: none, one, or all that can be.
    pub torn: Vec<(usize, Tear)>,
}

/// A window's atoms.
pub struct Atoms<'a> {
    window: &'a Window,
    atoms: Vec<Atom>,
    /// File offsets below this hold metadata: guest data is never garbage.
    metadata_end: u64,
}

impl<'a> Atoms<'a> {
    /// Divides a window. Blocks of guest data lie at or behind `metadata_end`.
    #[must_use]
    pub fn new(window: &'a Window, metadata_end: u64) -> Self {
        let mut atoms = Vec::new();
        for (disk, event) in &window.events {
            let atom = |change| Atom { disk: *disk, change };
            match event {
                Event::SetLen(length) => atoms.push(atom(Change::SetLen(*length))),
                Event::Punch(range) => atoms.push(atom(Change::Punch(range.clone()))),
                Event::Write(offset, bytes) => {
                    let parts = split(bytes.len()).into_iter();
                    let write = |part| Change::Write(*offset, Arc::clone(bytes), part);
                    atoms.extend(parts.map(write).map(atom));
                }
            }
        }
        Self { window, atoms, metadata_end }
    }

    /// What survives in each of the states, the seed choosing among too many.
    #[must_use]
    pub fn survivors(&self, seed: u64) -> Vec<Survivors> {
        let count = self.atoms.len();
        let mut sets: Vec<Vec<usize>> = Vec::new();
        if count <= ALL_SUBSETS {
            let subset = |bits: usize| (0..count).filter(|i| bits >> i & 1 == 1).collect();
            sets.extend((0..1usize << count).map(subset));
        } else {
            let mut random = Random::new(seed);
            sets.extend((0..=count).map(|end| (0..end).collect()));
            sets.extend((0..count).map(|lost| (0..count).filter(|&i| i != lost).collect()));
            sets.extend((0..count).map(|one| vec![one]));
            let seeded = |random: &mut Random| {
                let share = 1 + random.below(7);
                (0..count).filter(|_| random.below(8) < share).collect()
            };
            sets.extend((0..SEEDED).map(|_| seeded(&mut random)));
        }
        let mut all = Vec::new();
        for atoms in sets {
            let torn: Vec<usize> = match count <= ALL_TORN {
                true => atoms.clone(),
                false => atoms.last().copied().into_iter().collect(),
            };
            for atom in torn {
                for tear in self.tears(atom) {
                    all.push(Survivors { atoms: atoms.clone(), torn: vec![(atom, tear)] });
                }
            }
            let last = |atom: &usize| Some((*atom, self.tears(*atom).pop()?));
            let every: Vec<(usize, Tear)> = atoms.iter().filter_map(last).collect();
            if every.len() > 1 {
                all.push(Survivors { atoms: atoms.clone(), torn: every });
            }
            all.push(Survivors { atoms, torn: Vec::new() });
        }
        all
    }

    fn tears(&self, atom: usize) -> Vec<Tear> {
        match &self.atoms[atom].change {
            Change::Write(_, _, part) if part.len() <= 512 => Vec::new(),
            Change::Write(offset, ..) if *offset < self.metadata_end => {
                vec![Tear::Old, Tear::Garbage]
            }
            Change::Write(..) => vec![Tear::Old],
            _ => Vec::new(),
        }
    }

    /// What is left of each disk.
    #[must_use]
    pub fn state(&self, survivors: &Survivors) -> Vec<Medium> {
        let mut media = self.window.durable.clone();
        let mut lengths: Vec<u64> = media.iter().map(Medium::len).collect();
        for &number in &survivors.atoms {
            let Atom { disk, change } = &self.atoms[number];
            let (medium, length) = (&mut media[*disk], &mut lengths[*disk]);
            match change {
                Change::SetLen(to) => {
                    *length = *to;
                    if *length < medium.len() {
                        medium.set_len(*length);
                    }
                }
                Change::Punch(range) => medium.zero(range.clone()),
                Change::Write(offset, bytes, part) => {
                    let torn = survivors.torn.iter().find(|(torn, _)| *torn == number).copied();
                    write(medium, *offset, &bytes[part.clone()], part.start, torn);
                }
            }
        }
        for (medium, length) in media.iter_mut().zip(lengths) {
            medium.settle(length);
        }
        media
    }

    /// What an atom is, for people.
    #[must_use]
    pub fn describe(&self, number: usize) -> String {
        let Atom { disk, change } = &self.atoms[number];
        let what = match change {
            Change::SetLen(length) => format!("length {length:#x}"),
            Change::Punch(range) => format!("hole {:#x}..{:#x}", range.start, range.end),
            Change::Write(offset, _, part) => {
                format!("write {:#x}+{:#x}", offset + part.start as u64, part.len())
            }
        };
        match self.window.durable.len() {
            1 => what,
            _ => format!("{what} disk {disk}"),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.atoms.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.atoms.is_empty()
    }
}

fn write(
    medium: &mut Medium,
    offset: u64,
    bytes: &[u8],
    start: usize,
    torn: Option<(usize, Tear)>,
) {
    let at = offset + start as u64;
    match torn {
        None => medium.write(at, bytes),
        Some((number, tear)) => {
            medium.write(at, &bytes[..512]);
            if tear == Tear::Garbage {
                let garbage: Vec<u8> =
                    (512..bytes.len()).map(|i| (i * 31 + number * 7 + 13) as u8 | 1).collect();
                medium.write(at + 512, &garbage);
            }
        }
    }
}

fn split(length: usize) -> Vec<Range<usize>> {
    let page = PAGE as usize;
    if length <= 4 * page {
        return (0..length).step_by(page).map(|at| at..(at + page).min(length)).collect();
    }
    vec![0..page, page..length - page, length - page..length]
}
