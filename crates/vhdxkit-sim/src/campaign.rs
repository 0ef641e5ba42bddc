//! Crashing everything: [classes](Class) of workloads, every state of every window, on all cores.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vhdxkit::{CreateOptions, ErrorKind, OpenOptions};

use crate::check::{ask_qemu, check_state, record_recovery, require_sound};
use crate::class::Class;
use crate::complaint::Complaint;
use crate::device::Device;
use crate::disk::{SimDisk, Window};
use vhdxkit_testkit::random::mix;

use crate::medium::Medium;
use crate::model::{Expectation, Model, SECTOR};
use crate::repair::What;
use crate::start::{Below, Scene, Start};
use crate::states::{Atoms, Survivors};
use crate::tally::{Outcome, Tally};
use crate::workload::Workload;
use crate::{guest, merge, repair};

/// How much to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Distinct states wanted of each class.
    pub states: usize,
    /// Of these classes.
    pub classes: Vec<Class>,
    /// On this kind of disk.
    pub device: Device,
    /// Seed of everything that is chosen.
    pub seed: u64,
    /// Threads.
    pub threads: usize,
    /// Every so many distinct states, the recovery is crashed as well.
    pub depth_two: usize,
    /// Every so many distinct states, QEMU is asked as well; never for zero.
    pub qemu: usize,
    /// Stop at the first failure.
    pub fail_fast: bool,
    /// No more than this.
    pub limit: Duration,
    /// Only this workload of each class.
    pub only: Option<usize>,
}

struct Shared<'a> {
    plan: &'a Plan,
    tallies: Vec<Mutex<Tally>>,
    stop: AtomicBool,
    started: Instant,
}

/// Crashes everything that the plan names.
#[must_use]
pub fn run(plan: &Plan) -> Outcome {
    let shared = Shared {
        plan,
        tallies: Class::ALL.iter().map(|_| Mutex::default()).collect(),
        stop: AtomicBool::new(false),
        started: Instant::now(),
    };
    for &class in &plan.classes {
        match class {
            Class::Create | Class::ChildCreate => shared.create(class),
            Class::Repair => shared.repairs(),
            Class::Recovery => {}
            _ => shared.class(class),
        }
    }
    let tally = |tally: Mutex<Tally>| tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    let tallies = Class::ALL.into_iter().zip(shared.tallies.into_iter().map(tally)).collect();
    Outcome { tallies, device: plan.device, time: shared.started.elapsed() }
}

impl Shared<'_> {
    fn tally(&self, class: Class, change: impl FnOnce(&mut Tally)) {
        let number = Class::ALL.iter().position(|c| *c == class).expect("all are there");
        change(&mut self.tallies[number].lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn enough(&self, class: Class) -> bool {
        let mut enough =
            self.stop.load(Ordering::Relaxed) || self.started.elapsed() > self.plan.limit;
        self.tally(class, |tally| enough |= tally.distinct.len() >= self.plan.states);
        enough
    }

    fn class(&self, class: Class) {
        let next = AtomicUsize::new(self.plan.only.unwrap_or(0));
        let scenes = Start::ALL.map(Start::scene);
        std::thread::scope(|scope| {
            for _ in 0..self.plan.threads.max(1) {
                scope.spawn(|| {
                    while !self.enough(class) {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if self.plan.only.is_some_and(|only| index > only) {
                            break;
                        }
                        let Some(work) = class.workload(index, self.plan.seed) else { break };
                        let scene = scenes.iter().find(|scene| scene.start == work.start);
                        self.workload(class, index, &work, scene.expect("every start has one"));
                    }
                });
            }
        });
    }

    fn workload(&self, class: Class, index: usize, work: &Workload, scene: &Scene) {
        self.tally(class, |tally| tally.workloads += 1);
        let told = || {
            let operations = match work.operations.len() {
                0..=12 => format!("{:?}", work.operations),
                n => format!("{n} operations"),
            };
            format!(
                "{}, {:?}, seed {}: {operations}\n    again: crash --class {class:?} --only {index} --seed {}",
                class.name(),
                work.start,
                self.plan.seed,
                self.plan.seed
            )
        };
        let run = if class == Class::Merge { merge::run } else { guest::run };
        match std::panic::catch_unwind(|| run(work, scene)) {
            Ok(Ok(windows)) => {
                let windows = self.plan.device.windows(windows);
                for (number, window) in windows.iter().enumerate() {
                    if self.stop.load(Ordering::Relaxed) {
                        return;
                    }
                    self.window(class, number, window, scene, &told);
                }
            }
            Ok(Err(error)) => self.fail(class, format!("{}\n    without a crash: {error}", told())),
            Err(_) => self.fail(class, format!("{}\n    it panicked", told())),
        }
    }

    fn window(
        &self,
        class: Class,
        number: usize,
        window: &Window,
        scene: &Scene,
        told: &dyn Fn() -> String,
    ) {
        let atoms = Atoms::new(window, scene.start.metadata_end(), self.plan.device);
        let expected = hash(&*window.expected);
        self.tally(class, |tally| tally.windows += 1);
        for survivors in atoms.survivors(mix(self.plan.seed ^ number as u64)) {
            let state = atoms.state(&survivors);
            let image = hash_of(&state);
            let (mut new, mut count) = (false, 0);
            self.tally(class, |tally| {
                tally.states += 1;
                tally.distinct.insert(image);
                new = tally.checked.insert(mix(image) ^ expected);
                count = tally.checked.len();
            });
            if !new {
                continue;
            }
            let mut judged = checked(&state, &scene.below, &window.expected);
            let for_qemu =
                self.plan.qemu > 0 && self.plan.device.is_honest() && scene.below.is_nothing();
            if judged.is_ok() && for_qemu && count.is_multiple_of(self.plan.qemu) {
                judged = ask_qemu(&state[0], &window.expected).map_err(Complaint::Told);
                self.tally(class, |tally| tally.qemu += 1);
            }
            if let Err(error) = self.excused(class, judged, &state) {
                let operation = window.operation;
                let what = describe(&atoms, &survivors);
                self.fail(
                    class,
                    format!(
                        "{}\n    window {number}, operation {operation}\n{what}    {error}",
                        told()
                    ),
                );
                return;
            }
            let one = !matches!(class, Class::Recovery | Class::Merge);
            let deeper =
                one && self.plan.device.is_honest() && count.is_multiple_of(self.plan.depth_two);
            if deeper && !self.enough(Class::Recovery) {
                self.recovery(&state[0], &window.expected, scene, told);
            }
        }
    }

    fn recovery(
        &self,
        state: &Medium,
        expected: &Arc<Expectation>,
        scene: &Scene,
        told: &dyn Fn() -> String,
    ) {
        self.tally(Class::Recovery, |tally| tally.workloads += 1);
        match record_recovery(state, &scene.below, expected) {
            Ok(windows) => {
                for (number, window) in windows.iter().enumerate() {
                    self.window(Class::Recovery, number, window, scene, told);
                }
            }
            Err(error) => self.fail(Class::Recovery, format!("{}\n    recovery: {error}", told())),
        }
    }

    /// A half-made image is no image; a whole one is good.
    fn create(&self, class: Class) {
        let parent = Start::Child.scene();
        for variant in 0.. {
            if self.enough(class) || variant >= 4000 {
                return;
            }
            let size = (1 + variant % 40) << 20;
            let child = class == Class::ChildCreate;
            let (below, (options, model)) = match child {
                true => (parent.below.clone(), parent.another_child(size)),
                false => (
                    Below::default(),
                    (CreateOptions::new(size), Model::new(size, [0, size - SECTOR])),
                ),
            };
            let options = options
                .block_size(1 << 20 << (variant % 9))
                .fixed(!child && variant % 3 == 0 && variant % 9 < 4)
                .reproducible(variant);
            let disk = SimDisk::default();
            disk.record(0, &model.expectation());
            self.tally(class, |tally| tally.workloads += 1);
            if let Err(error) = options.create_storage(&disk) {
                self.fail(class, format!("create, variant {variant}: {error}"));
                return;
            }
            for window in self.plan.device.windows(disk.windows()) {
                let atoms = Atoms::new(&window, u64::MAX, self.plan.device);
                self.tally(class, |tally| tally.windows += 1);
                for survivors in atoms.survivors(mix(self.plan.seed ^ variant)) {
                    let state = atoms.state(&survivors);
                    let image = hash_of(&state);
                    let mut new = false;
                    self.tally(class, |tally| {
                        tally.states += 1;
                        new = tally.distinct.insert(image);
                    });
                    if !new {
                        continue;
                    }
                    let judged = created(&state, &below, &window.expected);
                    if let Err(error) = self.excused(class, judged, &state) {
                        let what = describe(&atoms, &survivors);
                        self.fail(class, format!("create, variant {variant}\n{what}    {error}"));
                        return;
                    }
                }
            }
        }
    }

    /// Every state of the repair of each fault, and of undoing it; of some states, those of the repair that
    /// completes it.
    fn repairs(&self) {
        let next = AtomicUsize::new(self.plan.only.unwrap_or(0));
        let faults = vhdxkit_testkit::faults::repairable();
        std::thread::scope(|scope| {
            for _ in 0..self.plan.threads.max(1) {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let beyond = self.plan.only.is_some_and(|only| number > only);
                        let Some(fault) = faults.get(number).filter(|_| !beyond) else { break };
                        if self.enough(Class::Repair) {
                            break;
                        }
                        let case = repair::Case::new(fault.clone());
                        self.tally(Class::Repair, |tally| tally.workloads += 1);
                        for what in [What::Repair, What::Undo] {
                            match case.windows(what) {
                                Ok(windows) => self.repair(&case, what, windows, true),
                                Err(e) => self.fail(Class::Repair, format!("{}: {e}", fault.name)),
                            }
                        }
                    }
                });
            }
        });
    }

    fn repair(&self, case: &repair::Case, what: What, windows: Vec<Window>, first: bool) {
        let class = Class::Repair;
        let windows = self.plan.device.windows(windows);
        for (number, window) in windows.iter().enumerate() {
            if self.enough(class) {
                return;
            }
            let atoms = Atoms::new(window, repair::METADATA_END, self.plan.device);
            self.tally(class, |tally| tally.windows += 1);
            for survivors in atoms.survivors(mix(self.plan.seed ^ number as u64)) {
                let state = atoms.state(&survivors);
                // The same bytes may be two cases' states.
                let key = hash(&(hash_of(&state), case.fault.name, what as u8, first));
                let (mut new, mut count) = (false, 0);
                self.tally(class, |tally| {
                    tally.states += 1;
                    tally.distinct.insert(hash_of(&state));
                    new = tally.checked.insert(key);
                    count = tally.checked.len();
                });
                if !new {
                    continue;
                }
                let check = std::panic::AssertUnwindSafe(|| case.check(&state[0], what, first));
                let judged = std::panic::catch_unwind(check).unwrap_or(Err(Complaint::Panicked));
                if let Err(error) = self.excused(class, judged, &state) {
                    let (name, text) = (case.fault.name, describe(&atoms, &survivors));
                    let again = if first { "" } else { ", repaired again" };
                    let told =
                        format!("{name}{again}, {what:?}\n    window {number}\n{text}    {error}");
                    self.fail(class, told);
                    return;
                }
                let deeper = first && what == What::Repair && self.plan.device.is_honest();
                if deeper && count.is_multiple_of(self.plan.depth_two) {
                    match case.again(&state[0]) {
                        Ok(windows) => self.repair(case, what, windows, false),
                        Err(e) => self.fail(class, format!("{}, again: {e}", case.fault.name)),
                    }
                }
            }
        }
    }

    /// What a disk does that cannot be trusted is counted, and held against nobody but who panics.
    fn excused(
        &self,
        class: Class,
        judged: Result<(), Complaint>,
        state: &[Medium],
    ) -> Result<(), Complaint> {
        if self.plan.device.is_honest() {
            return judged;
        }
        match judged {
            Err(Complaint::Panicked) => return judged,
            Ok(()) => self.tally(class, |tally| tally.held += 1),
            Err(Complaint::Told(_)) => self.tally(class, |tally| tally.told += 1),
            Err(_) if !state.iter().all(is_sound) => self.tally(class, |tally| tally.told += 1),
            Err(Complaint::Older(_)) => self.tally(class, |tally| tally.older += 1),
            Err(Complaint::Wrong(_)) => self.tally(class, |tally| tally.wrong += 1),
        }
        Ok(())
    }

    fn fail(&self, class: Class, text: String) {
        self.tally(class, |tally| tally.failures.push(text));
        if self.plan.fail_fast {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

fn is_sound(state: &Medium) -> bool {
    require_sound(&Arc::new(SimDisk::new(state.clone()))).is_ok()
}

fn created(state: &[Medium], below: &Below, expected: &Expectation) -> Result<(), Complaint> {
    let disk = Arc::new(SimDisk::new(state[0].clone()));
    match OpenOptions::new().open_storage(disk) {
        Err(error) if error.kind() == ErrorKind::NotVhdx => Ok(()),
        Err(error) => Err(Complaint::told("a half-made file looks like an image")(error)),
        Ok(image) => {
            drop(image);
            checked(state, below, expected)
        }
    }
}

fn hash_of(state: &[Medium]) -> u64 {
    state.iter().fold(0, |sum, medium| mix(sum) ^ medium.hash())
}

fn checked(state: &[Medium], below: &Below, expected: &Expectation) -> Result<(), Complaint> {
    let check = || match state {
        [parent, child] => merge::check(parent, child, expected),
        _ => check_state(&state[0], below, expected),
    };
    std::panic::catch_unwind(check).unwrap_or(Err(Complaint::Panicked))
}

fn describe(atoms: &Atoms<'_>, survivors: &Survivors) -> String {
    let mut text = String::new();
    if let Some((number, to)) = survivors.stray {
        let _ = writeln!(text, "    {:<24} goes to {to:#x}", atoms.describe(number));
    }
    for number in 0..atoms.len().min(40) {
        let torn = survivors.torn.iter().find(|(torn, _)| *torn == number);
        let fate = match torn {
            Some((_, tear)) => format!("torn ({tear:?})"),
            None if survivors.atoms.contains(&number) => "survives".to_owned(),
            _ => "lost".to_owned(),
        };
        let _ = writeln!(text, "    {:<24} {fate}", atoms.describe(number));
    }
    text
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
