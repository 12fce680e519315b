//! Records packed into sequences against the same records in sequences of their own: outputs, losses, every gradient; in one stage
//! and over three, by each engine.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use bytes::Bytes;
#[cfg(feature = "compute")]
use skein_pipeline::compute::candle::{Candle, Precision};
use skein_pipeline::{
    exact::{Engine, EngineError, Exact, IGNORE, Settings, StageInput, StageWeights},
    job::{Coding, Done, Job},
    model::{StageModel, init},
    worker::{Blobs, Encoder, Engines, SaveError, Saves, Worker},
};
use skein_protocol::{
    Blob, Manifest, Version, codec,
    hash::Digest,
    run::{Codec, ModelConfig, RopeScaling, Window, preset},
    wire::Starts,
};

use crate::support::{batch, bits, config, plain};

/// Records, as tokens of `[sequences, t]`.
#[derive(Clone)]
struct Packed {
    config: ModelConfig,
    t: usize,
    sequences: usize,
    starts: Starts,
    records: Vec<Range<usize>>,
    tokens: Vec<u32>,
    targets: Vec<u32>,
}

impl Packed {
    /// `lens`: of the records of each sequence. What they do not fill is padding, and a record.
    fn new(config: ModelConfig, t: usize, lens: &[&[usize]]) -> Self {
        let (mut starts, mut records) = (Vec::new(), Vec::new());
        for (s, lens) in lens.iter().enumerate() {
            let mut at = s * t;
            for len in *lens {
                starts.push(at as u32);
                records.push(at..at + len);
                at += len;
            }
            assert!(at <= (s + 1) * t);
            if at < (s + 1) * t {
                starts.push(at as u32);
            }
        }
        starts.retain(|at| !(*at as usize).is_multiple_of(t));
        let (tokens, next) = batch(&config, lens.len() * t, 3);
        let mut targets = vec![IGNORE; tokens.len()];
        for record in &records {
            // Nothing follows the last token of a record.
            let learned = record.start..record.end - 1;
            targets[learned.clone()].copy_from_slice(&next[learned]);
        }
        Packed { config, t, sequences: lens.len(), starts: starts.into(), records, tokens, targets }
    }

    /// Each record at the begin of a sequence of its own.
    fn alone(&self) -> Self {
        let mut tokens = vec![0; self.records.len() * self.t];
        let mut targets = vec![IGNORE; tokens.len()];
        let mut records = Vec::new();
        for (n, record) in self.records.iter().enumerate() {
            let to = n * self.t..n * self.t + record.len();
            tokens[to.clone()].copy_from_slice(&self.tokens[record.clone()]);
            targets[to.clone()].copy_from_slice(&self.targets[record.clone()]);
            records.push(to);
        }
        let (config, sequences) = (self.config.clone(), self.records.len());
        Packed { config, t: self.t, sequences, starts: Starts::default(), records, tokens, targets }
    }

    /// Values of rows `width` wide that belong to the records, in their order.
    fn of_records(&self, values: &[f32], width: usize) -> Vec<f32> {
        let rows = self.records.iter().cloned();
        rows.flat_map(|rows| values[rows.start * width..rows.end * width].to_vec()).collect()
    }

    fn through(&self, make: Make, stages: u32, kept_bytes_max: u64) -> Through {
        let settings = Settings { kept_bytes_max, ..plain(self.t, self.sequences) };
        let mut engines = engines(&self.config, &settings, make, stages);
        let width = self.config.hidden as usize;
        let (mut through, mut hidden) = (Through::default(), Vec::new());
        for (i, engine) in engines.iter_mut().enumerate() {
            let input = if i == 0 { StageInput::Tokens(&self.tokens) } else { StageInput::Hidden(&hidden) };
            hidden = engine.forward_packed(1, input, &self.starts).unwrap();
            through.outputs.extend(self.of_records(&hidden, if hidden.is_empty() { 0 } else { width }));
        }
        let (last, before) = engines.split_last_mut().unwrap();
        for record in &self.records {
            let mut targets = vec![IGNORE; self.targets.len()];
            targets[record.clone()].copy_from_slice(&self.targets[record.clone()]);
            through.losses.push(last.loss_backward(1, &targets, 0.0).unwrap().loss as f32);
        }
        let lost = last.loss_backward(1, &self.targets, 1.0).unwrap();
        let mut gradient = lost.gradient;
        for engine in before.iter_mut().rev() {
            through.inputs.extend(self.of_records(&gradient, width));
            gradient = engine.backward(1, &gradient, 1.0, false).unwrap();
        }
        for engine in &mut engines {
            engine.step(0.0).unwrap();
            let state = engine.state().unwrap().m;
            through.params.extend(engine.model().params().iter().map(|param| state[param.range()].to_vec()));
        }
        through
    }
}

/// What came of the records.
#[derive(Default)]
struct Through {
    /// Of all stages but the last.
    outputs: Vec<f32>,
    /// Of each record alone.
    losses: Vec<f32>,
    /// Gradients of the inputs of all stages but the first.
    inputs: Vec<f32>,
    /// Gradients of each parameter.
    params: Vec<Vec<f32>>,
}

impl Through {
    /// The largest difference of anything, against the largest of its values.
    fn far(&self, other: &Through) -> f32 {
        assert_eq!(self.params.len(), other.params.len());
        let pairs = [(&self.outputs, &other.outputs), (&self.losses, &other.losses), (&self.inputs, &other.inputs)];
        let all = pairs.into_iter().chain(self.params.iter().zip(&other.params));
        all.map(|(a, b)| far(a, b)).fold(0.0, f32::max)
    }
}

fn far(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(f32::MIN_POSITIVE, |m: f32, v| m.max(v.abs()));
    a.iter().zip(b).fold(0.0, |m: f32, (a, b)| m.max((a - b).abs())) / largest
}

type Make = fn(StageModel, Settings, Vec<f32>) -> Box<dyn Engine>;

fn by_hand(model: StageModel, settings: Settings, params: impl Into<StageWeights>) -> Box<dyn Engine> {
    Box::new(Exact::new(model, settings, params).unwrap())
}

#[cfg(feature = "compute")]
fn by_candle(model: StageModel, settings: Settings, params: Vec<f32>) -> Box<dyn Engine> {
    Box::new(Candle::new(model, settings, params, Precision::F32, &candle_core::Device::Cpu).unwrap())
}

/// A model in so many stages of one layer each, or in one; norms away from 1, and weights large enough that attention matters,
/// but not so large that layers carry its rounding far.
fn engines(config: &ModelConfig, settings: &Settings, make: Make, stages: u32) -> Vec<Box<dyn Engine>> {
    let whole = StageModel::whole(config.clone()).unwrap();
    let mut params = init::initial(&whole, 7);
    params[whole.params()[0].range()].iter_mut().for_each(|v| *v *= 20.0);
    params.iter_mut().enumerate().for_each(|(i, v)| *v = *v * 1.4 + ((i * 37) % 11) as f32 / 80.0 - 0.06);
    if stages == 1 {
        return vec![make(whole, settings.clone(), params)];
    }
    assert_eq!(stages, config.layers);
    let mut rest = &params[..];
    let stage = |n| StageModel::new(config.clone(), n, 1, n == 0, n + 1 == stages).unwrap();
    (0..stages)
        .map(|n| {
            let model = stage(n);
            let (mine, left) = rest.split_at(model.values());
            rest = left;
            make(model, settings.clone(), mine.to_vec())
        })
        .collect()
}

fn cases() -> Vec<Packed> {
    let window = |size, from| Some(Window { size, from });
    let scaling = Some(RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 16 });
    let one = |config: ModelConfig| ModelConfig { layers: 1, ..config };
    // More than one lane; no two sequences alike.
    let many: Vec<Vec<usize>> = (0..13).map(|s| vec![1 + s, 26 - 2 * s, 2 + s]).collect();
    let many: Vec<&[usize]> = many.iter().map(Vec::as_slice).collect();
    vec![
        Packed::new(config(), 23, &[&[5, 11, 7], &[1, 20]]),
        Packed::new(config(), 17, &[&[17], &[4, 6, 7]]),
        // Records that begin within a block of queries, with one, and before one that sees no key of another.
        Packed::new(one(config()), 150, &[&[3, 61, 86], &[64, 64, 22]]),
        Packed::new(ModelConfig { qkv_bias: true, window: window(5, 1), ..config() }, 19, &[&[9, 10], &[2, 3, 14]]),
        Packed::new(one(ModelConfig { window: window(30, 0), ..config() }), 70, &[&[40, 30], &[10, 55]]),
        Packed::new(
            one(ModelConfig { hidden: 18, heads: 3, kv_heads: 3, ffn: 7, vocab: 5, ..config() }),
            9,
            &[&[3, 5], &[9], &[1, 1, 7]],
        ),
        Packed::new(ModelConfig { head: Some(6), qk_norm: true, rope_scaling: scaling, ..config() }, 20, &[&[13, 7]]),
        Packed::new(ModelConfig { tie_embeddings: true, kv_heads: 4, ..one(config()) }, 12, &[&[4, 4, 4]]),
        Packed::new(one(config()), 40, &many),
    ]
}

/// Rounding of angles further on, and of sums of another length.
const ROUNDING: f32 = 1e-5;

fn as_if_alone(make: Make) {
    for (n, packed) in cases().iter().enumerate() {
        for stages in [1, packed.config.layers] {
            let got = packed.through(make, stages, u64::MAX);
            let wanted = packed.alone().through(make, stages, u64::MAX);
            assert_eq!(got.losses.len(), packed.records.len());
            assert!(got.losses.iter().any(|loss| *loss > 0.0));
            let apart = wanted.far(&got);
            assert!(apart < ROUNDING, "case {n} in {stages} stages: {apart}");
            // The records of one sequence do see each other where nobody says that they are several.
            let joined = Packed { starts: Starts::default(), ..packed.clone() };
            let apart = wanted.far(&joined.through(make, stages, u64::MAX));
            assert!(apart > 100.0 * ROUNDING, "case {n} in {stages} stages tells nothing: {apart}");
        }
    }
}

#[test]
fn by_hand_records_in_one_sequence_are_computed_as_if_each_stood_alone() {
    as_if_alone(by_hand);
}

#[cfg(feature = "compute")]
#[test]
fn by_candle_records_in_one_sequence_are_computed_as_if_each_stood_alone() {
    as_if_alone(by_candle);
}

#[cfg(feature = "compute")]
#[test]
fn both_engines_agree_on_packed_records() {
    for (n, packed) in cases().iter().enumerate() {
        let [hand, candle] = [by_hand as Make, by_candle].map(|make| packed.through(make, 1, u64::MAX));
        let apart = hand.far(&candle);
        assert!(apart < 1e-4, "case {n}: {apart}");
    }
}

#[test]
fn a_forward_that_is_computed_again_has_the_same_records() {
    let packed = &cases()[0];
    let [kept, again] = [u64::MAX, 0].map(|bytes| packed.through(by_hand, 3, bytes));
    assert_eq!(bits(&kept.inputs), bits(&again.inputs));
    assert!(kept.params.iter().zip(&again.params).all(|(a, b)| bits(a) == bits(b)));
}

#[test]
fn records_that_begin_where_none_can_are_refused() {
    let whole = StageModel::whole(config()).unwrap();
    let params = init::initial(&whole, 7);
    for make in makes() {
        let mut engine = make(whole.clone(), plain(6, 2), params.clone());
        for bad in [&[3, 2][..], &[3, 3], &[12], &[2, 99], &[u32::MAX], &[6], &[0, 3]] {
            let answer = engine.forward_packed(0, StageInput::Tokens(&[1; 12]), &Starts::from(bad.to_vec()));
            assert!(matches!(answer, Err(EngineError::BadInput(_))), "{bad:?}");
        }
        // Within the micro-batch that is given, not within the largest.
        let answer = engine.forward_packed(0, StageInput::Tokens(&[1; 6]), &Starts::from(vec![7]));
        assert!(matches!(answer, Err(EngineError::BadInput(_))));
        assert!(engine.kept().is_empty());
        engine.forward_packed(0, StageInput::Tokens(&[1; 12]), &Starts::from(vec![1, 5, 7, 11])).unwrap();
    }
}

fn makes() -> Vec<Make> {
    vec![
        by_hand,
        #[cfg(feature = "compute")]
        by_candle,
    ]
}

// ---- by the worker -------------------------------------------------------------------------------------------------------

struct ByHand;

impl Engines for ByHand {
    fn make(
        &mut self,
        manifest: &Manifest,
        model: StageModel,
        weights: StageWeights,
    ) -> Result<Box<dyn Engine>, EngineError> {
        Ok(by_hand(model, Settings::of(manifest), weights))
    }
}

#[derive(Default)]
struct Store(BTreeMap<u64, Bytes>);

impl Blobs for Store {
    fn get(&self, blob: Blob) -> Option<Bytes> {
        self.0.get(&blob.id).cloned()
    }

    fn put(&mut self, bytes: Bytes) -> Blob {
        let blob = Blob { id: self.0.len() as u64, len: bytes.len() as u64 };
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

/// Whoever says that a record begins where none can is to blame for it, at any stage; what is well said changes the result.
#[test]
fn a_worker_refuses_records_that_begin_where_none_can() {
    let mut manifest = preset("demo").unwrap();
    (manifest.train.sequence, manifest.train.micro_batch) = (8, 2);
    let last = manifest.last_stage();
    let mut worker = Worker::new(Arc::new(manifest.clone()), ByHand);
    let (mut store, mut encoder) = (Store::default(), Encoder::default());
    let mut run = |job, store: &mut Store| worker.run_whole(&mut encoder, job, store, &mut NoDisk);
    let coding = Coding { codec: Codec::F32, zstd: false };
    let tokens: Bytes = (0..16u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>().into();
    let hidden = (0..16 * manifest.model.config.hidden).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect::<Vec<_>>();
    let hidden: Bytes = codec::encode(&hidden, manifest.codecs.forward[0], false).into();
    for stage in [0, 1, last] {
        assert_eq!(run(Job::Create { stage, frozen: Vec::new() }, &mut store), Done::Ok);
        let input = store.put(if stage == 0 { tokens.clone() } else { hidden.clone() });
        let labels = store.put(tokens.clone());
        let job = |places: &[u32]| match Starts::from(places.to_vec()) {
            starts if stage == last => Job::Loss { stage, key: 1, input, starts, labels, weight: 0.0, coding },
            starts => Job::Forward { stage, key: 1, input, starts, coding },
        };
        for bad in [&[3, 2][..], &[3, 3], &[0], &[8], &[16], &[2, u32::MAX]] {
            let done = run(job(bad), &mut store);
            assert!(matches!(done, Done::BadInput { .. }), "{bad:?} at stage {stage}: {done:?}");
        }
        let mut bytes = |places: &[u32]| match run(job(places), &mut store) {
            Done::Forwarded { output, .. } => store.get(output).unwrap(),
            Done::Backed { gradient, .. } => store.get(gradient.unwrap()).unwrap(),
            other => panic!("{other:?} at stage {stage}"),
        };
        assert_ne!(bytes(&[3, 12]), bytes(&[]), "stage {stage}");
    }
}
