//! A few threads that wait for devices, so that those who talk to clients need not.
//!
//! Clients take turns: whoever has many jobs waits behind its own, not others behind it, and never has more
//! than half of the threads. Jobs are short; what takes long comes back as another job, at the end of its
//! client's row.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Something to be done. It must not panic: nobody would hear of it.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// Threads at most: so many requests wait for devices at once.
const MOST: usize = 16;
/// Of one client.
const MOST_OF_ONE: usize = MOST / 2;

/// Threads that are started as they are needed, and end with this.
#[derive(Default)]
pub(super) struct Workers {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to do, or the end has come.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The clients with jobs, in the order of their turns.
    turns: VecDeque<(u64, VecDeque<Job>)>,
    /// How many jobs these have.
    waiting: usize,
    /// Jobs under way, by client.
    running: HashMap<u64, usize>,
    threads: usize,
    idle: usize,
    ended: bool,
}

impl State {
    /// Appends a job to its client's row.
    fn push(&mut self, client: u64, job: Job) {
        self.waiting += 1;
        match self.turns.iter_mut().find(|(waiting, _)| *waiting == client) {
            Some((_, jobs)) => jobs.push_back(job),
            None => self.turns.push_back((client, VecDeque::from([job]))),
        }
    }

    /// The next job of the first client that may have one done.
    fn pop(&mut self) -> Option<(u64, Job)> {
        for _ in 0..self.turns.len() {
            let (client, mut jobs) = self.turns.pop_front()?;
            let busy = self.running.get(&client).copied().unwrap_or_default();
            let job = if busy < MOST_OF_ONE { jobs.pop_front() } else { None };
            if !jobs.is_empty() {
                self.turns.push_back((client, jobs));
            }
            if let Some(job) = job {
                self.waiting -= 1;
                self.running.insert(client, busy + 1);
                return Some((client, job));
            }
        }
        None
    }

    /// A job of this client has ended.
    fn done(&mut self, client: u64) {
        if let Some(busy) = self.running.get_mut(&client) {
            *busy -= 1;
            if *busy == 0 {
                self.running.remove(&client);
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.state();
        loop {
            if let Some((client, job)) = state.pop() {
                drop(state);
                job();
                state = self.state();
                state.done(client);
                if state.ended {
                    // Who waits may have waited for just this.
                    self.changed.notify_all();
                }
                continue;
            }
            if state.ended && state.turns.is_empty() {
                return;
            }
            state.idle += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

impl Workers {
    /// Has a client's job done soon. When no thread can be had at all the caller does it.
    pub(super) fn submit(&self, client: u64, job: Job) {
        let mut state = self.shared.state();
        state.push(client, job);
        if state.idle < state.waiting && state.threads < MOST {
            let shared = Arc::clone(&self.shared);
            let builder = std::thread::Builder::new().name("device".into()).stack_size(256 << 10);
            match builder.spawn(move || shared.work()) {
                Ok(_) => state.threads += 1,
                Err(_) if state.threads == 0 => {
                    let job = state.pop();
                    drop(state);
                    if let Some((client, job)) = job {
                        job();
                        self.shared.state().done(client);
                    }
                    return;
                }
                Err(_) => {}
            }
        }
        drop(state);
        self.shared.changed.notify_one();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    /// One request that waits for a slow device must not keep the next one waiting.
    #[test]
    fn jobs_do_not_wait_for_each_other() {
        let workers = Workers::default();
        let (finished, results) = channel();
        let (release, held) = channel::<()>();
        let slow = finished.clone();
        workers.submit(
            1,
            Box::new(move || {
                held.recv().unwrap();
                slow.send(1).unwrap();
            }),
        );
        workers.submit(1, Box::new(move || finished.send(2).unwrap()));
        assert_eq!(results.recv().unwrap(), 2);
        release.send(()).unwrap();
        assert_eq!(results.recv().unwrap(), 1);
    }

    /// A client that fills the row with jobs that take for ever: another one is served all the same.
    #[test]
    fn a_greedy_client_leaves_threads_for_others() {
        let workers = Workers::default();
        let (release, held) = channel::<()>();
        let held = Arc::new(Mutex::new(held));
        for _ in 0..100 {
            let held = Arc::clone(&held);
            workers.submit(1, Box::new(move || assert!(held.lock().unwrap().recv().is_err())));
        }
        let (finished, results) = channel();
        for number in 0..10 {
            let finished = finished.clone();
            workers.submit(2, Box::new(move || finished.send(number).unwrap()));
        }
        for _ in 0..10 {
            results.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
        }
        drop(release);
    }

    #[test]
    fn all_jobs_are_done_although_threads_are_few() {
        let (finished, results) = channel();
        let workers = Workers::default();
        for number in 0..1000 {
            let finished = finished.clone();
            workers.submit(number % 3, Box::new(move || finished.send(number).unwrap()));
        }
        drop(workers);
        let mut seen: Vec<u64> = results.iter().take(1000).collect();
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..1000));
    }
}
