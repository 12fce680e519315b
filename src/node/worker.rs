//! The two threads that compute: one owns the engines and runs jobs in the order given, the other makes bytes of their results
//! while the next job runs. Both run below the priority of everything else.
//!
//! In: jobs, each with the bytes it reads. Out: what each came to, in the order of the jobs, which the peer's book of them counts
//! on. A panic in either is a bug: it is caught, told, and ends the node, since half an update may lie in the weights. They know
//! no peer and no clock but their own stop-watch.

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
    worker::{self, Encoder, Engines, Left, Spare},
};
use skein_protocol::{Blob, JobId, Manifest};
use tokio::sync::mpsc as channel;

use super::{
    blobs::{Blobs, Kind},
    memory::AtWork,
    store::Store,
};

/// Results that wait while one is encoded, as a stage's scratch counts them: the engine waits for whoever is further behind.
const WAITING: usize = 1;

/// One job and the bytes it reads, held here so that the peer may release its handles meanwhile.
struct Assigned {
    id: JobId,
    job: Job,
    inputs: BTreeMap<u64, Bytes>,
}

/// What the engines' thread hands to the one that encodes.
struct Computed {
    id: JobId,
    /// Or the words of a panic.
    left: Result<Left, String>,
    took: Duration,
}

/// What the threads tell.
#[derive(Debug)]
pub enum Ran {
    Done {
        job: JobId,
        done: Done,
        /// Of the engines' thread; encoding goes on beside the next job.
        took: Duration,
    },
    /// A bug: nothing that this worker holds can be trusted any more.
    Panicked { job: JobId, message: String },
}

/// The driver's end. Dropping it ends both threads after the jobs at hand.
pub struct WorkerThread {
    jobs: mpsc::Sender<Assigned>,
    blobs: Blobs,
    at_work: AtWork,
}

/// Whether the threads step back behind the other programs of this machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Niceness {
    #[default]
    Low,
    Normal,
}

impl WorkerThread {
    /// Starts the threads. `memory`: bytes that its stages may take. `engines` is made on the thread that computes, so it may
    /// hold what cannot move between threads.
    pub fn start<M: Engines + 'static>(
        manifest: Arc<Manifest>,
        engines: impl FnOnce() -> M + Send + 'static,
        blobs: Blobs,
        store: Store,
        niceness: Niceness,
        memory: u64,
    ) -> std::io::Result<(WorkerThread, channel::UnboundedReceiver<Ran>)> {
        let (mut encoder, mut desk) = (Encoder::default(), Desk::of_results(blobs.clone()));
        let finish = move |left| encoder.finish(left, &mut desk);
        WorkerThread::start_with(manifest, engines, blobs, store, niceness, memory, finish)
    }

    /// As [`start`](WorkerThread::start), with the end of each job in other hands.
    fn start_with<M: Engines + 'static>(
        manifest: Arc<Manifest>,
        engines: impl FnOnce() -> M + Send + 'static,
        blobs: Blobs,
        mut store: Store,
        niceness: Niceness,
        memory: u64,
        finish: impl FnMut(Left) -> (Done, Option<Spare>) + Send + 'static,
    ) -> std::io::Result<(WorkerThread, channel::UnboundedReceiver<Ran>)> {
        let (jobs, assigned) = mpsc::channel::<Assigned>();
        let (computed, unfinished) = mpsc::sync_channel::<Computed>(WAITING);
        let (spare, spares) = mpsc::channel::<Spare>();
        let (ran, results) = channel::unbounded_channel();
        thread::Builder::new().name("skein-encoder".into()).spawn(move || {
            niceness.take();
            finish_each(unfinished, finish, &spare, &ran);
        })?;
        let shared = blobs.clone();
        let at_work = AtWork::default();
        let (says, cost_of) = (at_work.clone(), manifest.clone());
        thread::Builder::new().name("skein-worker".into()).spawn(move || {
            niceness.take();
            let mut worker = worker::Worker::new(manifest, engines()).with_memory(memory);
            for Assigned { id, job, inputs } in assigned {
                spares.try_iter().for_each(|spare| worker.reuse(spare));
                let mut desk = Desk { inputs, blobs: shared.clone(), kind: kind_of(&job) };
                let began = Instant::now();
                says.begins(worker::passing_bytes(&cost_of, &job));
                let left = unless_it_panics(|| worker.run(job, &mut desk, &mut store));
                says.ended(worker.kept_bytes(), worker.round_bytes());
                let broken = left.is_err();
                if computed.send(Computed { id, left, took: began.elapsed() }).is_err() || broken {
                    return;
                }
            }
        })?;
        Ok((WorkerThread { jobs, blobs, at_work }, results))
    }

    /// What the threads hold.
    pub fn at_work(&self) -> &AtWork {
        &self.at_work
    }

    /// Hands a job over. `false`: the thread is gone.
    pub fn assign(&self, id: JobId, job: Job) -> bool {
        let read = |blob: Blob| self.blobs.get(blob).ok().map(|bytes| (blob.id, bytes));
        let inputs = job.reads().into_iter().filter_map(read).collect();
        self.jobs.send(Assigned { id, job, inputs }).is_ok()
    }
}

/// Ends the jobs one after the other, and tells what they came to.
fn finish_each(
    unfinished: mpsc::Receiver<Computed>,
    mut finish: impl FnMut(Left) -> (Done, Option<Spare>),
    spares: &mpsc::Sender<Spare>,
    ran: &channel::UnboundedSender<Ran>,
) {
    for Computed { id: job, left, took } in unfinished {
        let told = match left.and_then(|left| unless_it_panics(|| finish(left))) {
            Ok((done, spare)) => {
                // Nobody takes it where the other thread has ended.
                spare.map(|spare| spares.send(spare));
                Ran::Done { job, done, took }
            }
            Err(message) => Ran::Panicked { job, message },
        };
        let broken = matches!(told, Ran::Panicked { .. });
        if ran.send(told).is_err() || broken {
            return;
        }
    }
}

/// A job's inputs, and where its results go.
struct Desk {
    inputs: BTreeMap<u64, Bytes>,
    blobs: Blobs,
    kind: Kind,
}

impl Desk {
    /// For whoever reads nothing: results of training.
    fn of_results(blobs: Blobs) -> Desk {
        Desk { inputs: BTreeMap::new(), blobs, kind: Kind::Work }
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

/// What comes of it, or the words of its panic.
fn unless_it_panics<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| words(panic.as_ref()))
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".into())
}

impl Niceness {
    /// Lowers the priority of this thread, and of those it starts.
    fn take(self) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if self == Niceness::Low {
            const NICE: libc::c_int = 10;
            // SAFETY: plain integers; on Linux `0` is the calling thread.
            let failed = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
            if failed != 0 {
                tracing::debug!("the worker's priority stays as it is");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::RunFolder;
    use skein_pipeline::{
        exact::{Engine, EngineError, Exact, Settings, StageWeights},
        job::Coding,
        model::StageModel,
    };
    use skein_protocol::{RunId, run::Codec, wire::Starts};

    #[test]
    fn a_panic_keeps_its_words() {
        let caught = catch_unwind(|| panic!("stage {}", 3)).unwrap_err();
        assert_eq!(words(caught.as_ref()), "stage 3");
    }

    struct Broken;

    impl Engines for Broken {
        fn make(&mut self, _: &Manifest, model: StageModel, _: StageWeights) -> Result<Box<dyn Engine>, EngineError> {
            panic!("no engine for {} layers", model.layers)
        }
    }

    /// Says when an engine is made.
    struct Telling(mpsc::Sender<()>);

    impl Engines for Telling {
        fn make(
            &mut self,
            manifest: &Manifest,
            model: StageModel,
            weights: StageWeights,
        ) -> Result<Box<dyn Engine>, EngineError> {
            self.0.send(()).expect("the test listens");
            Ok(Box::new(Exact::new(model, Settings::of(manifest), weights)?))
        }
    }

    type Results = channel::UnboundedReceiver<Ran>;

    fn start<M: Engines + Send + 'static>(
        engines: M,
        blobs: &Blobs,
        finish: impl FnMut(Left) -> (Done, Option<Spare>) + Send + 'static,
    ) -> (tempfile::TempDir, WorkerThread, Results) {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder { name: "run".into(), path: dir.path().into(), run: RunId::default() };
        let manifest = Arc::new(super::super::sample_manifest(2));
        let (engines, store) = (move || engines, Store::new(folder.checkpoints(), 1));
        let started =
            WorkerThread::start_with(manifest, engines, blobs.clone(), store, Niceness::Low, 1 << 30, finish).unwrap();
        (dir, started.0, started.1)
    }

    fn encoder(blobs: &Blobs) -> impl FnMut(Left) -> (Done, Option<Spare>) + Send + 'static {
        let (mut encoder, mut desk) = (Encoder::default(), Desk::of_results(blobs.clone()));
        move |left| encoder.finish(left, &mut desk)
    }

    async fn told(ran: &mut Results) -> (u64, Result<Done, String>) {
        match ran.recv().await.expect("an answer") {
            Ran::Done { job, done, .. } => (job.0, Ok(done)),
            Ran::Panicked { job, message } => (job.0, Err(message)),
        }
    }

    #[tokio::test]
    async fn a_panicking_job_is_told_and_ends_the_threads() {
        let blobs = Blobs::new(1 << 20, 1 << 20);
        let (_dir, thread, mut ran) = start(Broken, &blobs, encoder(&blobs));
        assert!(thread.assign(JobId(4), Job::Create { stage: 0, frozen: Vec::new() }));
        assert_eq!(told(&mut ran).await, (4, Err("no engine for 1 layers".into())));
        assert!(ran.recv().await.is_none());
    }

    #[tokio::test]
    async fn a_panic_while_a_result_is_encoded_is_told_and_ends_the_threads() {
        let blobs = Blobs::new(1 << 20, 1 << 20);
        let (_dir, thread, mut ran) = start(Broken, &blobs, |_| panic!("no bytes"));
        assert!(thread.assign(JobId(5), Job::Remove { stage: 1 }));
        assert_eq!(told(&mut ran).await, (5, Err("no bytes".into())));
        assert!(ran.recv().await.is_none());
    }

    #[tokio::test]
    async fn the_next_job_runs_while_a_result_is_encoded_and_answers_keep_their_order() {
        let blobs = Blobs::new(1 << 20, 1 << 20);
        let (made, next) = mpsc::channel();
        let mut finish = encoder(&blobs);
        let (_dir, thread, mut ran) = start(Telling(made), &blobs, move |left| {
            if matches!(left, Left::Encoding(_)) {
                next.recv_timeout(Duration::from_secs(60)).expect("the second stage is made meanwhile");
            } else if matches!(left, Left::Nothing(Done::Ok)) {
                let _ = next.try_recv();
            }
            finish(left)
        });
        thread.assign(JobId(1), Job::Create { stage: 0, frozen: Vec::new() });
        assert_eq!(told(&mut ran).await, (1, Ok(Done::Ok)));
        let input = blobs.put(vec![0; 2 * 16 * 4].into(), Kind::Work);
        let coding = Coding { codec: Codec::F32, zstd: false };
        thread.assign(JobId(2), Job::Forward { stage: 0, key: 1, input, starts: Starts::default(), coding });
        thread.assign(JobId(3), Job::Create { stage: 1, frozen: Vec::new() });
        let (job, done) = told(&mut ran).await;
        let Ok(Done::Forwarded { output, raw: 4096, .. }) = done else { panic!("{job}: {done:?}") };
        assert_eq!((job, blobs.get(output).unwrap().len()), (2, 4097));
        assert_eq!(told(&mut ran).await, (3, Ok(Done::Ok)));
    }
}
