//! The thread that computes: it owns the engines and runs jobs in the order given, below the priority of everything else.
//!
//! In: jobs, each with the bytes it reads. Out: what each came to. A panic in it is a bug: it is caught, told, and ends the
//! node, since half an update may lie in the weights. It knows no peer and no clock but its own stop-watch.

use std::{
    any::Any,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use skein_pipeline::{
    job::{Done, Job},
    model::cost,
    worker::{self, Engines},
};
use skein_protocol::{Blob, JobId, Manifest};
use tokio::sync::mpsc as channel;

use super::{
    blobs::{Blobs, Kind},
    memory::AtWork,
    store::Store,
};

/// One job and the bytes it reads, held here so that the peer may release its handles meanwhile.
struct Assigned {
    id: JobId,
    job: Job,
    inputs: BTreeMap<u64, Bytes>,
}

/// What the thread tells.
#[derive(Debug)]
pub enum Ran {
    Done {
        job: JobId,
        done: Done,
        took: Duration,
    },
    /// A bug: nothing that this worker holds can be trusted any more.
    Panicked {
        job: JobId,
        message: String,
    },
}

/// The driver's end. Dropping it ends the thread after the job at hand.
pub struct WorkerThread {
    jobs: mpsc::Sender<Assigned>,
    blobs: Blobs,
    at_work: AtWork,
}

/// Whether the thread steps back behind the other programs of this machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Niceness {
    #[default]
    Low,
    Normal,
}

impl WorkerThread {
    /// Starts the thread. `memory`: bytes that its stages may take. `engines` is made on it, so it may hold what cannot move between threads.
    pub fn start<M: Engines + 'static>(
        manifest: Arc<Manifest>,
        engines: impl FnOnce() -> M + Send + 'static,
        blobs: Blobs,
        store: Store,
        niceness: Niceness,
        memory: u64,
    ) -> std::io::Result<(WorkerThread, channel::UnboundedReceiver<Ran>)> {
        let (jobs, assigned) = mpsc::channel::<Assigned>();
        let (ran, results) = channel::unbounded_channel();
        let (shared, mut store) = (blobs.clone(), store);
        let at_work = AtWork::default();
        let (says, cost_of) = (at_work.clone(), manifest.clone());
        thread::Builder::new().name("skein-worker".into()).spawn(move || {
            if niceness == Niceness::Low {
                step_back();
            }
            let mut worker = worker::Worker::new(manifest, engines()).with_memory(memory);
            for Assigned { id, job, inputs } in assigned {
                let mut desk = Desk { inputs, blobs: shared.clone(), kind: kind_of(&job) };
                let began = Instant::now();
                says.begins(passing(&cost_of, &job));
                let outcome = catch_unwind(AssertUnwindSafe(|| worker.run(job, &mut desk, &mut store)));
                says.ended(worker.kept_bytes());
                let told = match outcome {
                    Ok(done) => Ran::Done { job: id, done, took: began.elapsed() },
                    Err(panic) => Ran::Panicked { job: id, message: words(panic.as_ref()) },
                };
                let broken = matches!(told, Ran::Panicked { .. });
                if ran.send(told).is_err() || broken {
                    return;
                }
            }
        })?;
        Ok((WorkerThread { jobs, blobs, at_work }, results))
    }

    /// What the thread holds.
    pub fn at_work(&self) -> &AtWork {
        &self.at_work
    }

    /// Hands a job over. `false`: the thread is gone.
    pub fn assign(&self, id: JobId, job: Job) -> bool {
        let read = |blob: Blob| self.blobs.get(blob).ok().map(|bytes| (blob.id, bytes));
        let inputs = blobs_of(&job).into_iter().filter_map(read).collect();
        self.jobs.send(Assigned { id, job, inputs }).is_ok()
    }
}

/// A job's inputs, and where its results go.
struct Desk {
    inputs: BTreeMap<u64, Bytes>,
    blobs: Blobs,
    kind: Kind,
}

/// Bytes that a job takes beyond the steady state of its stage.
fn passing(manifest: &Manifest, job: &Job) -> u64 {
    match job {
        Job::State { .. }
        | Job::Save { .. }
        | Job::Load { .. }
        | Job::RoundSnapshot { .. }
        | Job::RoundPrepare { .. } => cost::memory(manifest, job.stage()).passing,
        Job::Create { .. }
        | Job::Forward { .. }
        | Job::Loss { .. }
        | Job::Backward { .. }
        | Job::Drop { .. }
        | Job::DropSum { .. }
        | Job::Step { .. }
        | Job::RoundAdopt { .. }
        | Job::RoundRollBack { .. }
        | Job::RoundAlone { .. }
        | Job::Infer { .. }
        | Job::InferClose { .. }
        | Job::Remove { .. } => 0,
    }
}

/// What the results of a job count as.
fn kind_of(job: &Job) -> Kind {
    match job {
        Job::State { .. } => Kind::Own,
        _ => Kind::Work,
    }
}

impl worker::Blobs for Desk {
    fn get(&self, blob: Blob) -> Option<Bytes> {
        self.inputs.get(&blob.id).filter(|bytes| bytes.len() as u64 == blob.len).cloned()
    }

    fn put(&mut self, bytes: Bytes) -> Blob {
        self.blobs.put(bytes, self.kind)
    }
}

/// Handles that a job reads.
fn blobs_of(job: &Job) -> Vec<Blob> {
    match job {
        Job::Load { parts, .. } => parts.clone(),
        Job::Forward { input, .. } | Job::Infer { input, .. } => vec![*input],
        Job::Loss { input, labels, .. } => vec![*input, *labels],
        Job::Backward { gradient, .. } => vec![*gradient],
        Job::RoundPrepare { partner, .. } => vec![partner.tensors],
        Job::Create { .. }
        | Job::Drop { .. }
        | Job::DropSum { .. }
        | Job::Step { .. }
        | Job::State { .. }
        | Job::RoundSnapshot { .. }
        | Job::RoundAdopt { .. }
        | Job::RoundRollBack { .. }
        | Job::RoundAlone { .. }
        | Job::InferClose { .. }
        | Job::Save { .. }
        | Job::Remove { .. } => Vec::new(),
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".into())
}

/// Lowers the priority of this thread, and of those it starts.
fn step_back() {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        const NICE: libc::c_int = 10;
        // SAFETY: plain integers; on Linux `0` is the calling thread.
        let failed = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
        if failed != 0 {
            tracing::debug!("the worker's priority stays as it is");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::RunFolder;
    use skein_pipeline::{
        exact::{Engine, EngineError},
        model::StageModel,
    };
    use skein_protocol::RunId;

    #[test]
    fn a_panic_keeps_its_words() {
        let caught = catch_unwind(|| panic!("stage {}", 3)).unwrap_err();
        assert_eq!(words(caught.as_ref()), "stage 3");
    }

    struct Broken;

    impl Engines for Broken {
        fn make(&mut self, _: &Manifest, model: StageModel, _: Vec<f32>) -> Result<Box<dyn Engine>, EngineError> {
            panic!("no engine for {} layers", model.layers)
        }
    }

    #[tokio::test]
    async fn a_panicking_job_is_told_and_ends_the_thread() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder { name: "run".into(), path: dir.path().into(), run: RunId::default() };
        let manifest = Arc::new(super::super::sample_manifest(1));
        let (thread, mut ran) = WorkerThread::start(
            manifest,
            || Broken,
            Blobs::new(1 << 20, 1 << 20),
            Store::new(folder.checkpoints(), 1),
            Niceness::Low,
            1 << 30,
        )
        .unwrap();
        assert!(thread.assign(JobId(4), Job::Create { stage: 0 }));
        match ran.recv().await {
            Some(Ran::Panicked { job: JobId(4), message }) => assert_eq!(message, "no engine for 1 layers"),
            other => panic!("{other:?}"),
        }
        assert!(ran.recv().await.is_none());
    }
}
