//! Every state that a crash can leave of a window.
//!
//! What was done since the last sync is divided into *atoms*, each of which survives or not: 4 KiB of
//! a write (large writes: their first and last 4 KiB and what is between), a change of length, a hole.
//! Of up to [`ALL_SUBSETS`] atoms every subset is made; of more every prefix (what a killed process
//! leaves), every single loss, every single survivor, and seeded subsets. On top, surviving
//! writes are torn, one at a time and all at once, as the [device](Device) tears them.

use std::ops::Range;
use std::sync::Arc;

use crate::device::{Device, Tear};
use crate::disk::{Event, Window};
use crate::medium::{Medium, PAGE};
use crate::model::garbage;
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

/// Which atoms of a window survive: enough to make the state again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survivors {
    /// By number, in order.
    pub atoms: Vec<usize>,
    /// Those of them that are torn: none, one, or all that can be.
    pub torn: Vec<(usize, Tear)>,
    /// One that goes to another offset than its own.
    pub stray: Option<(usize, u64)>,
}

/// A window's atoms.
pub struct Atoms<'a> {
    window: &'a Window,
    atoms: Vec<Atom>,
    /// File offsets below this hold metadata.
    metadata_end: u64,
    device: Device,
}

impl<'a> Atoms<'a> {
    /// Divides a window. Blocks of guest data lie at or behind `metadata_end`.
    #[must_use]
    pub fn new(window: &'a Window, metadata_end: u64, device: Device) -> Self {
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
        Self { window, atoms, metadata_end, device }
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
                    let torn = vec![(atom, *tear)];
                    all.push(Survivors { atoms: atoms.clone(), torn, stray: None });
                }
            }
            let last = |atom: &usize| Some((*atom, *self.tears(*atom).last()?));
            let every: Vec<(usize, Tear)> = atoms.iter().filter_map(last).collect();
            if every.len() > 1 {
                all.push(Survivors { atoms: atoms.clone(), torn: every, stray: None });
            }
            all.push(Survivors { atoms, torn: Vec::new(), stray: None });
        }
        let atoms: Vec<usize> = (0..count).collect();
        for atom in 0..count {
            let strayed = self.strays(atom).into_iter().map(|to| Some((atom, to)));
            all.extend(strayed.map(|stray| Survivors {
                atoms: atoms.clone(),
                torn: Vec::new(),
                stray,
            }));
        }
        all
    }

    fn tears(&self, atom: usize) -> &'static [Tear] {
        match &self.atoms[atom].change {
            Change::Write(offset, _, part) => {
                self.device.tears(part.len(), *offset < self.metadata_end)
            }
            _ => &[],
        }
    }

    fn strays(&self, atom: usize) -> Vec<u64> {
        let Atom { disk, change } = &self.atoms[atom];
        match change {
            Change::Write(offset, ..) => {
                self.device.strays(*offset, self.window.durable[*disk].len())
            }
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
                    let stray = survivors.stray.filter(|(stray, _)| *stray == number);
                    let at = stray.map_or(*offset, |(_, to)| to) + part.start as u64;
                    write(medium, at, &bytes[part.clone()], torn);
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

fn write(medium: &mut Medium, at: u64, bytes: &[u8], torn: Option<(usize, Tear)>) {
    let Some((number, tear)) = torn else { return medium.write(at, bytes) };
    let (first, rest) = bytes.split_at(bytes.len().min(512));
    let behind = at + first.len() as u64;
    let noise = |length| (0..length).map(move |i| (i * 31 + number * 7 + 13) as u8 | 1);
    match tear {
        Tear::FirstNew => medium.write(at, first),
        Tear::FirstOld => medium.write(behind, rest),
        Tear::RestGarbage => {
            medium.write(at, first);
            medium.write(behind, &noise(rest.len()).collect::<Vec<u8>>());
        }
        Tear::FirstGarbage => {
            medium.write(at, &noise(first.len()).collect::<Vec<u8>>());
            medium.write(behind, rest);
        }
        Tear::GuestGarbage => {
            medium.write(at, &garbage()[..first.len()]);
            medium.write(behind, rest);
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
