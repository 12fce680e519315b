//! Orders the jobs of the one worker: what frees memory and unblocks others first. Keeps at most two in the driver's hands, so
//! that the worker never waits and the order is still ours.

use std::{collections::BTreeMap, time::Duration};

use skein_protocol::{Instant, JobId, MicroBatchId, Outbox, Stage};

use crate::{job::Job, peer::io::Output};

/// Jobs in the driver's hands at a time; one while somebody reads along, whose piece else waits for two.
const DEPTH: usize = 2;
/// Somebody does for so long after a piece.
const READS: Duration = Duration::from_secs(5);
/// Every so many jobs the oldest one is taken, whatever its urgency: a worker that is never idle would else never encode a
/// state for a joiner, nor take part in a round.
const OLDEST_EVERY: u32 = 8;

/// Pieces of generations that are computed together, and their tokens: a longer prompt is computed with single tokens at most.
const PIECES_MAX: usize = 64;
const PIECES_TOKENS_MAX: u32 = 512;

/// So many jobs may be asked for after a piece of a generation before it goes first: somebody reads along.
const INFER_PATIENCE: u64 = 1;

/// Urgency, the first is done first. Within one, the order of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Drops, steps, adoptions: what changes the weights, or frees memory.
    Weights,
    /// Gradients before activations: one-forward-one-backward.
    Backward,
    Forward,
    Infer,
    /// Rounds and snapshots: nobody waits for them.
    Bulk,
}

/// What an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    Forward {
        stage: Stage,
        id: MicroBatchId,
    },
    Backward {
        stage: Stage,
        id: MicroBatchId,
    },
    Step {
        stage: Stage,
    },
    /// The open sum of a fence.
    DropSum {
        stage: Stage,
    },
    Create {
        stage: Stage,
    },
    Round {
        stage: Stage,
        ticket: u64,
    },
    State {
        stage: Stage,
        ticket: u64,
    },
    Save {
        stage: Stage,
    },
    /// Of pieces that are computed together, that of the first session.
    Infer {
        stage: Stage,
        session: u64,
    },
    /// Nobody waits for the answer.
    Forget,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    stage: Stage,
    purpose: Purpose,
}

/// A job that the worker has done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finished {
    pub stage: Stage,
    /// `Forget` when it was disowned meanwhile.
    pub purpose: Purpose,
    /// When the worker began.
    pub began: Instant,
    /// How long the worker was at it.
    pub took: Duration,
}

#[derive(Debug, Default)]
pub struct Schedule {
    waiting: BTreeMap<(Priority, u64), (JobId, Job, Purpose)>,
    running: BTreeMap<JobId, Running>,
    /// Since when the worker has been at the first of what runs.
    worker_since: Instant,
    /// When a piece of a generation was last handed over.
    read_at: Option<Instant>,
    next: u64,
    turn: u32,
}

impl Schedule {
    pub fn push(&mut self, priority: Priority, job: Job, purpose: Purpose) {
        self.next += 1;
        self.waiting.insert((priority, self.next), (JobId(self.next), job, purpose));
    }

    /// Hands jobs to the driver while it has fewer than two. `last_look` may still change a job (its weight by age, its
    /// version); it is told whether the worker has a step of that stage before it.
    pub fn dispatch(
        &mut self,
        now: Instant,
        out: &mut Outbox<Output>,
        mut last_look: impl FnMut(&mut Job, Purpose, bool),
    ) {
        loop {
            let reads = self.read_at.is_some_and(|at| now.since(at) < READS);
            if self.running.len() >= if reads { 1 } else { DEPTH } {
                return;
            }
            let Some((id, mut job, purpose)) = self.take_next() else { return };
            if matches!(purpose, Purpose::Infer { .. }) {
                self.read_at = Some(now);
            }
            let stage = job.stage();
            let step = Purpose::Step { stage };
            last_look(&mut job, purpose, self.running.values().any(|running| running.purpose == step));
            if self.running.is_empty() {
                self.worker_since = now;
            }
            self.running.insert(id, Running { stage, purpose });
            out.push(Output::Compute { job: id, job_spec: job });
        }
    }

    fn take_next(&mut self) -> Option<(JobId, Job, Purpose)> {
        // Pieces gather while others are computed.
        let reads = self.running.values().any(|running| matches!(running.purpose, Purpose::Infer { .. }));
        let may = self.waiting.keys().copied().filter(|(priority, _)| !reads || *priority != Priority::Infer);
        let first = may.clone().next()?;
        let infer = may.clone().find(|(priority, _)| *priority == Priority::Infer);
        if let Some(key) = infer.filter(|(_, number)| self.next - number > INFER_PATIENCE) {
            return self.take(key);
        }
        self.turn = self.turn.wrapping_add(1);
        if first.0 > Priority::Weights && self.turn.is_multiple_of(OLDEST_EVERY) {
            return self.take(may.min_by_key(|(_, number)| *number)?);
        }
        self.take(first)
    }

    /// A piece of a generation takes all others along that wait for the same stage.
    fn take(&mut self, key: (Priority, u64)) -> Option<(JobId, Job, Purpose)> {
        let (id, mut job, purpose) = self.waiting.remove(&key)?;
        if let Job::Infer { stage, pieces } = &mut job {
            let range = (Priority::Infer, 0)..=(Priority::Infer, u64::MAX);
            let mut tokens = pieces.iter().map(|piece| piece.tokens).fold(0, u32::saturating_add);
            let mut rides = |(_, (_, job, _)): &(&(Priority, u64), &(JobId, Job, Purpose))| match job {
                Job::Infer { stage: at, pieces } if at == stage => {
                    let more = pieces.iter().map(|piece| piece.tokens).fold(0, u32::saturating_add);
                    let fits = more == 1 || tokens.saturating_add(more) <= PIECES_TOKENS_MAX;
                    tokens = tokens.saturating_add(if fits { more } else { 0 });
                    fits
                }
                _ => false,
            };
            let keys: Vec<_> =
                self.waiting.range(range).filter(&mut rides).map(|(key, _)| *key).take(PIECES_MAX - 1).collect();
            for key in keys {
                if let Some((_, Job::Infer { pieces: more, .. }, _)) = self.waiting.remove(&key) {
                    pieces.extend(more);
                }
            }
        }
        Some((id, job, purpose))
    }

    /// What the finished job was for; `None` if there was no such job. The worker does them in the order of handing over.
    pub fn done(&mut self, now: Instant, id: JobId) -> Option<Finished> {
        let Running { stage, purpose } = self.running.remove(&id)?;
        let began = std::mem::replace(&mut self.worker_since, now);
        Some(Finished { stage, purpose, began, took: now.since(began) })
    }

    /// The process was suspended: what went before does not count as time of the worker.
    pub fn fenced(&mut self, now: Instant) {
        self.worker_since = now;
    }

    /// Takes back jobs that were not handed over yet.
    pub fn cancel(&mut self, mut unwanted: impl FnMut(&Purpose) -> bool) -> Vec<Job> {
        let keys: Vec<_> = self.waiting.iter().filter(|(_, (_, _, p))| unwanted(p)).map(|(key, _)| *key).collect();
        keys.iter().filter_map(|key| self.waiting.remove(key)).map(|(_, job, _)| job).collect()
    }

    /// Jobs in the driver's hands whose answer nobody wants any more.
    pub fn disown(&mut self, mut unwanted: impl FnMut(&Purpose) -> bool) {
        for running in self.running.values_mut() {
            if unwanted(&running.purpose) {
                running.purpose = Purpose::Forget;
            }
        }
    }

    pub fn len(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether any job of this kind waits or runs.
    pub fn has(&self, mut wanted: impl FnMut(&Purpose) -> bool) -> bool {
        self.waiting.values().any(|(_, _, p)| wanted(p))
            || self.running.values().any(|running| wanted(&running.purpose))
    }
}

#[cfg(test)]
mod tests {
    use skein_protocol::Blob;

    use super::*;
    use crate::job::Piece;

    #[test]
    fn a_busy_worker_comes_to_every_job() {
        let mut schedule = Schedule::default();
        let mut out = Outbox::new();
        let bulk = Purpose::Save { stage: 0 };
        schedule.push(Priority::Bulk, Job::InferClose { stage: 0, session: 0 }, bulk);
        for _ in 0..3 * OLDEST_EVERY {
            // Always more of the urgent kind than the worker takes.
            for _ in 0..2 {
                schedule.push(Priority::Backward, Job::Drop { stage: 0, keys: vec![] }, Purpose::Forget);
            }
            schedule.dispatch(Instant::ZERO, &mut out, |_, _, _| {});
            let running: Vec<JobId> = schedule.running.keys().copied().collect();
            for job in running {
                if schedule.done(Instant::ZERO, job).is_some_and(|done| done.purpose == bulk) {
                    return;
                }
            }
        }
        panic!("never");
    }

    #[test]
    fn pieces_that_wait_are_computed_together() {
        let (mut schedule, mut out) = (Schedule::default(), Outbox::new());
        let infer = |schedule: &mut Schedule, stage, session| {
            let tokens = if session < 1000 && session % 100 == 99 { PIECES_TOKENS_MAX } else { 1 };
            let piece = Piece { session, position: 0, tokens, input: Blob { id: session, len: 4 } };
            schedule.push(
                Priority::Infer,
                Job::Infer { stage, pieces: vec![piece] },
                Purpose::Infer { stage, session },
            );
        };
        let mut given = |schedule: &mut Schedule| {
            schedule.dispatch(Instant::ZERO, &mut out, |_, _, _| {});
            let jobs = std::iter::from_fn(|| out.pop());
            let pieces = jobs.map(|output| match output {
                Output::Compute { job, job_spec: Job::Infer { stage, pieces } } => {
                    (job, stage, pieces.iter().map(|piece| piece.session).collect::<Vec<_>>())
                }
                Output::Compute { job, job_spec } => (job, job_spec.stage(), vec![]),
                other => panic!("{other:?}"),
            });
            pieces.collect::<Vec<_>>()
        };
        infer(&mut schedule, 0, 1);
        let first = given(&mut schedule);
        assert_eq!(first[0].2, [1]);
        // While it is computed others gather, also behind what trains.
        for (stage, session) in [(0, 2), (1, 3), (0, 4), (0, 5)] {
            infer(&mut schedule, stage, session);
        }
        schedule.push(Priority::Forward, Job::Drop { stage: 0, keys: vec![] }, Purpose::Forget);
        assert!(given(&mut schedule).is_empty(), "who reads waits for no more than one job");
        assert_eq!(schedule.cancel(|purpose| *purpose == Purpose::Infer { stage: 0, session: 4 }).len(), 1);
        schedule.done(Instant::ZERO, first[0].0);
        let second = given(&mut schedule);
        assert_eq!(
            second.iter().map(|(_, stage, pieces)| (*stage, &pieces[..])).collect::<Vec<_>>(),
            [(0, &[2, 5][..])]
        );
        schedule.done(Instant::ZERO, second[0].0);
        let third = given(&mut schedule);
        assert_eq!(third[0].2, [3]);
        schedule.done(Instant::ZERO, third[0].0);
        assert_eq!(given(&mut schedule).len(), 1, "what trains");
        // There is an end to how many.
        for session in 1000..1000 + 2 * PIECES_MAX as u64 {
            infer(&mut schedule, 2, session);
        }
        schedule.fenced(Instant::ZERO);
        let running: Vec<JobId> = schedule.running.keys().copied().collect();
        running.into_iter().for_each(|job| _ = schedule.done(Instant::ZERO, job));
        let many = given(&mut schedule);
        assert_eq!(many[0].2.len(), PIECES_MAX);
        // A long prompt takes single tokens along, and no other prompt.
        schedule.cancel(|_| true);
        for session in [99, 98, 199, 97] {
            infer(&mut schedule, 3, session);
        }
        schedule.done(Instant::ZERO, many[0].0);
        assert_eq!(given(&mut schedule)[0].2, [99, 98, 97]);
    }

    #[test]
    fn a_job_takes_from_its_turn_to_its_answer() {
        let (mut schedule, mut out) = (Schedule::default(), Outbox::new());
        let at = |ms| Instant::ZERO + Duration::from_millis(ms);
        for stage in [0, 1] {
            schedule.push(Priority::Forward, Job::Drop { stage, keys: vec![] }, Purpose::Forget);
        }
        schedule.dispatch(at(100), &mut out, |_, _, _| {});
        let jobs: Vec<JobId> = schedule.running.keys().copied().collect();
        let mut took =
            |ms, job: usize| schedule.done(at(ms), jobs[job]).map(|done| (done.stage, done.began, done.took));
        assert_eq!(took(130, 0), Some((0, at(100), Duration::from_millis(30))));
        assert_eq!(took(140, 1), Some((1, at(130), Duration::from_millis(10))));
        assert_eq!(took(150, 1), None);
        // What nobody did anything in does not count.
        schedule.push(Priority::Forward, Job::Drop { stage: 2, keys: vec![] }, Purpose::Forget);
        schedule.dispatch(at(900), &mut out, |_, _, _| {});
        let job = *schedule.running.keys().next().unwrap();
        assert_eq!(schedule.done(at(905), job).map(|done| done.took), Some(Duration::from_millis(5)));
    }
}
