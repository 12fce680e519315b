//! What a stage takes, counted by the allocator, beside what the plan says that it takes. One test: others would allocate too.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use skein_pipeline::{
    exact::{Engine, EngineError, Exact, Settings},
    job::{Coding, Done, Job, RoundPartner},
    model::{StageModel, cost},
    worker::{Blobs, Encoder, Engines, SaveError, Saves, Worker},
};
use skein_protocol::{
    Blob, Manifest, Version, codec,
    hash::Digest,
    run::{Codec, preset},
    wire::Starts,
};

/// Bytes in use, and the most that ever were.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn grew(by: usize) {
    MOST.fetch_max(NOW.fetch_add(by, Relaxed) + by, Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came; the counters touch no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grew(size);
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

struct OnCpu;

impl Engines for OnCpu {
    fn make(
        &mut self,
        manifest: &Manifest,
        model: StageModel,
        params: Vec<f32>,
    ) -> Result<Box<dyn Engine>, EngineError> {
        Ok(Box::new(Exact::new(model, Settings::of(manifest), params)?))
    }
}

#[derive(Default)]
struct Store(BTreeMap<u64, Bytes>, u64);

impl Blobs for Store {
    fn get(&self, blob: Blob) -> Option<Bytes> {
        self.0.get(&blob.id).cloned()
    }

    fn put(&mut self, bytes: Bytes) -> Blob {
        self.1 += 1;
        let blob = Blob { id: self.1, len: bytes.len() as u64 };
        self.0.insert(blob.id, bytes);
        blob
    }
}

struct NoDisk;

impl Saves for NoDisk {
    fn save(&mut self, _: Version, _: Digest, _: &[u8]) -> Result<(), SaveError> {
        Ok(())
    }
}

/// A stage with a whole window open: bytes in use after two steps, and the most while rounds and states are made.
struct Measured {
    steady: u64,
    /// What the worker counts of it as kept forwards.
    kept: u64,
    peak: u64,
}

fn measure(manifest: &Manifest, stage: u16, memory: u64) -> Measured {
    let before = NOW.load(Relaxed);
    let mut worker = Worker::new(Arc::new(manifest.clone()), OnCpu).with_memory(memory);
    let mut store = Store::default();
    let coding = Coding { codec: Codec::Bf16, zstd: false };
    let values = manifest.tokens_per_micro_batch() * u64::from(manifest.model.config.hidden);
    let (first, last) = (stage == 0, stage == manifest.last_stage());
    let hidden = || codec::encode(&vec![0.01; values as usize], Codec::Bf16, false);
    let tokens = || vec![0; 4 * manifest.tokens_per_micro_batch() as usize];
    let mut encoder = Encoder::default();
    let mut run = |job: Job, store: &mut Store, worker: &mut Worker<OnCpu>| match worker.run_whole(
        &mut encoder,
        job,
        store,
        &mut NoDisk,
    ) {
        Done::Failed { why, .. } | Done::BadInput { why } | Done::NotFinite { why } => panic!("{why}"),
        done => done,
    };
    run(Job::Create { stage }, &mut store, &mut worker);
    let window = u64::from(manifest.train.in_flight_max);
    let key = |step: u64, i: u64| step * window + i;
    for step in 0..2 {
        // Every id of the window is open at once, and over only when the next step begins.
        run(Job::Drop { stage, keys: (0..window).map(|i| key(0, i)).collect() }, &mut store, &mut worker);
        store.0.retain(|_, bytes| bytes.is_empty());
        for i in 0..window {
            let input = store.put(if first { tokens() } else { hidden() }.into());
            let job = match last {
                true => {
                    let labels = store.put(tokens().into());
                    Job::Loss {
                        stage,
                        key: key(step, i),
                        input,
                        starts: Starts::default(),
                        labels,
                        weight: 1.0,
                        coding,
                    }
                }
                false => Job::Forward { stage, key: key(step, i), input, starts: Starts::default(), coding },
            };
            run(job, &mut store, &mut worker);
            store.0.insert(input.id, Bytes::new());
        }
        for i in (0..window).filter(|_| !last) {
            let gradient = store.put(hidden().into());
            run(Job::Backward { stage, key: key(step, i), gradient, weight: 1.0, coding }, &mut store, &mut worker);
            store.0.insert(gradient.id, Bytes::new());
        }
        run(Job::Step { stage, samples: 0 }, &mut store, &mut worker);
    }
    let steady = (NOW.load(Relaxed) - before) as u64;
    let kept = worker.kept_bytes();
    MOST.store(NOW.load(Relaxed), Relaxed);
    let state = run(Job::State { stage, version: Version::default(), full: true }, &mut store, &mut worker);
    let Done::Encoded { blob, .. } = state else { panic!("{state:?}") };
    store.0.insert(blob.id, Bytes::new());
    let Done::Encoded { blob: mine, .. } =
        run(Job::RoundSnapshot { stage, round: 1, codec: Codec::Bf16 }, &mut store, &mut worker)
    else {
        panic!("no body of a round")
    };
    let theirs = store.put(store.0[&mine.id].to_vec().into());
    let partner = RoundPartner { tensors: theirs, my_samples: 1, their_samples: 1, first: true, copy: false };
    run(Job::RoundPrepare { stage, round: 1, partner }, &mut store, &mut worker);
    run(Job::RoundAdopt { stage, round: 1 }, &mut store, &mut worker);
    Measured { steady, kept, peak: (MOST.load(Relaxed) - before) as u64 }
}

#[test]
fn a_stage_takes_what_the_plan_says() {
    // Small enough for exact arithmetic in debug.
    let mut manifest = preset("tiny").expect("a preset");
    let config = &mut manifest.model.config;
    (config.hidden, config.ffn, config.context) = (128, 320, 32);
    (manifest.train.sequence, manifest.train.micro_batch, manifest.train.in_flight_max) = (32, 4, 6);
    manifest.codecs.forward = vec![Codec::Bf16];
    manifest.codecs.backward = vec![Codec::Bf16];
    manifest.averaging.codec = Codec::Bf16;
    for stage in [0, 1, manifest.last_stage()] {
        let planned = cost::memory(&manifest, stage);
        let measured = measure(&manifest, stage, planned.peak());
        let part = |measured: u64, planned: u64| measured as f64 / planned as f64;
        let (steady, peak) = (part(measured.steady, planned.steady()), part(measured.peak, planned.peak()));
        println!("stage {stage}: {steady:.2} of {} steady, {peak:.2} of {} at most", planned.steady(), planned.peak());
        assert!((0.85..=1.0).contains(&steady), "stage {stage}: {steady:.2} of {planned:?}");
        // What lies in parameters, gradients, moments and averaging is exact: the rest is what is kept.
        let rest = planned.parameters + planned.gradients + planned.optimizer + planned.averaging + planned.scratch;
        assert!(measured.kept <= planned.kept && part(measured.steady, rest + measured.kept) > 0.85, "stage {stage}");
        assert!((0.6..=1.0).contains(&peak), "stage {stage}: {peak:.2} of {planned:?}");
    }
}
