//! The engine on candle's tensors against the one by hand and the oracle, on the CPU and on whatever card is here.

use std::sync::Arc;

use candle_core::Device;
use skein_pipeline::{
    compute::candle::{Candle, Precision},
    exact::{Engine, EngineError, Exact, IGNORE, Settings, StageInput, StageWeights},
    model::{StageModel, cost, frozen::Frozen, init},
};
use skein_protocol::run::{BasePrecision, Lora, ModelConfig, OptimizerKind, RopeScaling, Window};

use crate::{
    oracle::{From, oracle},
    support::{SEED, batch, config, plain, settings, stage, train},
};

/// Candle's CPU, and the first CUDA card of a build and a machine that have one.
fn devices() -> Vec<Device> {
    #[cfg(feature = "cuda")]
    match skein_pipeline::compute::candle::device(skein_pipeline::compute::Device::Cuda(0)) {
        Ok(card) => return vec![Device::Cpu, card],
        Err(error) => eprintln!("SKIPPED on CUDA, compared on candle's CPU only: {error}"),
    }
    vec![Device::Cpu]
}

fn candle(model: &StageModel, settings: &Settings, precision: Precision, device: &Device) -> Candle {
    Candle::new(model.clone(), settings.clone(), init::initial(model, SEED), precision, device).unwrap()
}

/// By hand, and on each device.
fn engines(model: &StageModel, settings: &Settings) -> (Exact, Vec<Candle>) {
    let hand = Exact::new(model.clone(), settings.clone(), init::initial(model, SEED)).unwrap();
    let make = |device| candle(model, settings, Precision::F32, device);
    (hand, devices().iter().map(make).collect())
}

/// Largest difference, against the largest value.
fn far(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(f32::MIN_POSITIVE, |m: f32, v| m.max(v.abs()));
    a.iter().zip(b).fold(0.0, |m: f32, (a, b)| m.max((a - b).abs())) / largest
}

/// Norm of the difference, against the norm.
fn apart(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
    let norm = squares(&mut a.iter().copied()).max(f64::MIN_POSITIVE);
    (squares(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm).sqrt()
}

/// Numbers from a seed; the tests need no good ones.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn from(&mut self, first: u64, last: u64) -> u32 {
        (first + self.below(last - first + 1)) as u32
    }

    fn values(&mut self, n: usize, size: f32) -> Vec<f32> {
        (0..n).map(|_| (self.below(2001) as f32 / 1000.0 - 1.0) * size).collect()
    }
}

/// A stage, its weights, and what goes through it.
#[derive(Clone)]
struct Case {
    model: StageModel,
    params: Vec<f32>,
    sequence: usize,
    sequences: usize,
    tokens: Vec<u32>,
    x: Vec<f32>,
    targets: Vec<u32>,
    g: Vec<f32>,
}

impl Case {
    /// Any shape: groups or none, odd widths, one token or many, each kind of stage, tied or not.
    fn drawn(seed: u64) -> Self {
        let mut draw = Draw(seed);
        let kv_heads = draw.from(1, 3);
        let heads = kv_heads * draw.from(1, 3);
        let config = ModelConfig {
            hidden: heads * 2 * draw.from(1, 4),
            layers: draw.from(1, 3),
            heads,
            kv_heads,
            ffn: draw.from(1, 31),
            vocab: draw.from(2, 37),
            context: 64,
            tie_embeddings: draw.below(2) == 0,
            ..config()
        };
        let config = ModelConfig {
            head: (draw.below(2) == 0).then(|| 2 * draw.from(2, 4)),
            window: (draw.below(2) == 0).then(|| Window { size: draw.from(2, 12), from: draw.below(2) as u32 }),
            qkv_bias: draw.below(3) == 0,
            qk_norm: draw.below(3) == 0,
            rope_scaling: (draw.below(3) == 0).then_some(RopeScaling::Linear { factor: 3.0 }),
            ..config
        };
        let (embedding, head) = [(true, true), (true, false), (false, false), (false, true)][seed as usize % 4];
        let model = StageModel::new(config.clone(), 0, config.layers, embedding, head).unwrap();
        // Norms away from 1, weights large enough that no path is nearly linear.
        let mut params = init::initial(&model, seed);
        params.iter_mut().enumerate().for_each(|(i, v)| *v = *v * 1.7 + ((i * 37) % 11) as f32 / 40.0 - 0.12);
        let (sequence, sequences) = (draw.from(1, 19) as usize, draw.from(1, 3) as usize);
        Case::of(model, params, sequence, sequences, &mut draw)
    }

    fn of(model: StageModel, params: Vec<f32>, sequence: usize, sequences: usize, draw: &mut Draw) -> Self {
        let (rows, config) = (sequence * sequences, &model.config);
        let mut ids = || (0..rows).map(|_| draw.below(u64::from(config.vocab)) as u32).collect::<Vec<_>>();
        let (tokens, mut targets) = (ids(), ids());
        if rows > 3 {
            targets[rows / 2] = IGNORE;
        }
        let (x, g) = (draw.values(rows * config.hidden as usize, 1.0), draw.values(rows * config.hidden as usize, 0.1));
        Case { model, params, sequence, sequences, tokens, x, targets, g }
    }

    fn input(&self) -> StageInput<'_> {
        if self.model.embedding { StageInput::Tokens(&self.tokens) } else { StageInput::Hidden(&self.x) }
    }

    fn from(&self) -> From<'_> {
        if self.model.head { From::Targets(&self.targets) } else { From::Gradient(&self.g) }
    }

    /// Output, loss, gradient of the input, gradients of the parameters.
    fn through(&self, engine: &mut dyn Engine) -> (Vec<f32>, f64, Vec<f32>, Vec<f32>) {
        let output = engine.forward(7, self.input()).unwrap();
        let (loss, input) = match self.from() {
            From::Targets(targets) => {
                let lost = engine.loss_backward(7, targets, 1.0).unwrap();
                (lost.loss, lost.gradient)
            }
            From::Gradient(g) => (0.0, engine.backward(7, g, 1.0, false).unwrap()),
        };
        engine.step(0.0).unwrap();
        (output, loss, input, engine.state().unwrap().m)
    }

    fn hand(&self) -> Exact {
        Exact::new(self.model.clone(), plain(self.sequence, self.sequences), self.params.clone()).unwrap()
    }

    fn candle(&self, precision: Precision, device: &Device) -> Candle {
        let settings = plain(self.sequence, self.sequences);
        Candle::new(self.model.clone(), settings, self.params.clone(), precision, device).unwrap()
    }

    fn name(&self) -> String {
        format!("{} sequences of {}, {:?}", self.sequences, self.sequence, self.model.config)
    }
}

#[test]
fn every_gradient_is_that_of_the_oracle_and_of_the_engine_by_hand() {
    for seed in 0..48 {
        let case = Case::drawn(seed);
        let wanted = oracle(&case.model, &case.params, case.sequence, case.input(), case.from());
        let hand = case.through(&mut case.hand());
        let on_devices = devices().into_iter().map(|device| case.through(&mut case.candle(Precision::F32, &device)));
        for (output, loss, input, params) in on_devices.chain([hand]) {
            assert!(
                (loss - wanted.loss).abs() <= 1e-5 * wanted.loss,
                "{seed}: {loss} {}, {}",
                wanted.loss,
                case.name()
            );
            if !case.model.head {
                // Weights as large as these carry the rounding of three layers that far.
                let apart = far(&wanted.output, &output);
                assert!(apart < 2e-5, "{seed}: output {apart}, {}", case.name());
            }
            assert!(far(&wanted.input, &input) < 1e-4, "{seed}: input {}, {}", far(&wanted.input, &input), case.name());
            for param in case.model.params() {
                let (a, b) = (&wanted.params[param.range()], &params[param.range()]);
                // One token sees itself alone, whatever its query is.
                let of_scores = ["q_proj", "k_proj", "q_norm", "k_norm"].iter().any(|name| param.name.contains(name));
                let alone = case.sequence == 1 && of_scores;
                if alone {
                    assert!(b.iter().all(|g| g.abs() < 1e-6), "{seed}: {}", param.name);
                } else {
                    assert!(far(a, b) < 1e-4, "{seed}: {} {}, {}", param.name, far(a, b), case.name());
                    assert!(b.iter().any(|&g| g != 0.0), "{seed}: {} has no gradient", param.name);
                }
            }
        }
    }
}

/// Adapters beside the weights of a drawn case, away from their beginning, at which the B's are 0.
fn with_adapters(seed: u64) -> (Case, StageWeights) {
    const TARGETS: [&str; 7] = ["q", "k", "v", "o", "gate", "up", "down"];
    let mut draw = Draw(seed + 1000);
    let case = Case::drawn(seed);
    let first = draw.below(7) as usize;
    let chosen = |(i, _): &(usize, &&str)| *i == first || draw.below(2) == 0;
    let targets: Vec<String> =
        TARGETS.iter().enumerate().filter(chosen).map(|(_, target)| target.to_string()).collect();
    let lora = Lora { rank: draw.from(1, 3), alpha: 5, targets, dropout_percent: 0, base: Default::default() };
    let model = StageModel::adapted(case.model.clone(), lora).unwrap();
    let mut params = init::initial(&model, seed);
    params.iter_mut().enumerate().for_each(|(i, v)| *v += ((i * 29) % 13) as f32 / 30.0 - 0.2);
    let frozen = Frozen::of(&case.model, &case.params, BasePrecision::AsIs).unwrap();
    (Case { model, ..case }, StageWeights { params, frozen: Some(Arc::new(frozen)) })
}

#[test]
fn adapters_have_the_gradients_of_the_engine_by_hand_and_what_is_frozen_has_none() {
    for seed in 0..36 {
        let (case, weights) = with_adapters(seed);
        let settings = plain(case.sequence, case.sequences);
        let mut hand = Exact::new(case.model.clone(), settings.clone(), weights.clone()).unwrap();
        let wanted = case.through(&mut hand);
        for device in devices() {
            let candle = Candle::new(case.model.clone(), settings.clone(), weights.clone(), Precision::F32, &device);
            let mut candle = candle.unwrap();
            let (output, loss, input, params) = case.through(&mut candle);
            assert!((loss - wanted.1).abs() <= 1e-5 * wanted.1, "{seed}: {loss} {}, {}", wanted.1, case.name());
            assert!(case.model.head || far(&wanted.0, &output) < 2e-5, "{seed}: output, {}", case.name());
            assert!(case.model.embedding || far(&wanted.2, &input) < 1e-4, "{seed}: input, {}", case.name());
            for param in case.model.params() {
                let (a, b) = (&wanted.3[param.range()], &params[param.range()]);
                // One token sees itself alone, whatever its query is.
                let of_scores = ["q_proj", "k_proj"].iter().any(|name| param.name.contains(name));
                match case.sequence == 1 && of_scores {
                    true => assert!(b.iter().all(|g| g.abs() < 1e-6), "{seed}: {}", param.name),
                    false => assert!(far(a, b) < 1e-4, "{seed}: {} {}, {}", param.name, far(a, b), case.name()),
                }
            }
            // Generation reads them too.
            let (a, b) = (hand.infer(3, 0, case.input()), candle.infer(3, 0, case.input()));
            assert!(far(&a.unwrap(), &b.unwrap()) < 1e-4, "{seed}: generation, {}", case.name());
        }
    }
}

#[test]
fn products_in_bf16_stay_near_those_in_f32() {
    for (embedding, head, tie_embeddings) in
        [(true, true, false), (true, true, true), (true, false, false), (false, false, false), (false, true, false)]
    {
        let sizes = ModelConfig { hidden: 64, layers: 2, ffn: 95, vocab: 61, tie_embeddings, ..config() };
        let model = StageModel::new(sizes, 0, 2, embedding, head).unwrap();
        let case = Case::of(model.clone(), init::initial(&model, SEED), 24, 2, &mut Draw(5));
        let (output, loss, input, params) = case.through(&mut case.hand());
        for device in devices() {
            let near = case.through(&mut case.candle(Precision::Bf16, &device));
            let far = [apart(&output, &near.0), apart(&input, &near.2), apart(&params, &near.3)];
            println!("bf16 from f32: loss {loss:.4} {:.4}, output, input and gradients {far:.5?}", near.1);
            assert!((near.1 - loss).abs() <= 1e-2 * loss);
            assert!(far.iter().all(|far| *far < 2e-2), "{embedding} {head}: {far:?}");
            assert!(far[2] > 1e-5, "nothing was rounded");
        }
    }
}

#[test]
fn optimizers_on_the_device_step_as_those_on_the_host() {
    for kind in [OptimizerKind::Adamw, OptimizerKind::Nadamw, OptimizerKind::Sgd] {
        let config = ModelConfig { tie_embeddings: true, kv_heads: 4, ..config() };
        let model = StageModel::whole(config.clone()).unwrap();
        // The clip bites: gradients of the first steps are larger.
        let settings = Settings { clip: 0.3, ..settings(32, 3, kind) };
        let (mut hand, mut others) = engines(&model, &settings);
        for candle in &mut others {
            for step in 0..6 {
                let batch = batch(&config, 96, step);
                // The optimizer is compared, not the drift of two trainings: both start each step from one state.
                candle.load(hand.state().unwrap()).unwrap();
                let (a, b) = (train(&mut hand, 0, &batch, 0.5), train(candle, 0, &batch, 0.5));
                assert!((a - b).abs() < 1e-5 * a, "{kind:?} {step}: {a} {b}");
                let (a, b) = (hand.step(0.01).unwrap(), candle.step(0.01).unwrap());
                assert_eq!((a.weight, a.finite), (b.weight, b.finite));
                for (a, b) in a.norms.iter().zip(&b.norms) {
                    assert!((a - b).abs() < 1e-5 * a, "{kind:?} {step}: {a} {b}");
                }
                let (a, b) = (hand.state().unwrap(), candle.state().unwrap());
                assert_eq!(a.count, b.count);
                assert_eq!(b.params, candle.params());
                for (what, a, b) in [("weights", &a.params, &b.params), ("m", &a.m, &b.m), ("v", &a.v, &b.v)] {
                    assert_eq!(a.len(), b.len(), "{kind:?} {what}");
                    assert!(a.is_empty() || far(a, b) < 1e-4, "{kind:?} {step} {what}: {}", far(a, b));
                }
            }
        }
    }
}

#[test]
fn ignored_targets_and_generation_agree() {
    let config = config();
    let model = StageModel::whole(config.clone()).unwrap();
    let (mut hand, others) = engines(&model, &plain(16, 1));
    let (tokens, mut targets) = batch(&config, 16, 4);
    targets[3..9].fill(IGNORE);
    let lost = |e: &mut dyn Engine| {
        e.forward(0, StageInput::Tokens(&tokens)).unwrap();
        e.loss_backward(0, &targets, 1.0).unwrap()
    };
    let wanted = lost(&mut hand);
    for mut candle in others {
        let got = lost(&mut candle);
        assert!(wanted.tokens == 10 && got.tokens == 10 && (wanted.loss - got.loss).abs() < 1e-4);
        for (position, end) in [(0, 7), (7, 8), (8, 9), (5, 11), (0, 3)] {
            let piece = StageInput::Tokens(&tokens[position..end]);
            hand.drop_session(2);
            let whole = hand.infer(2, 0, StageInput::Tokens(&tokens[..end])).unwrap();
            assert!(far(&whole, &candle.infer(1, position, piece).unwrap()) < 1e-4, "{position}");
        }
        assert!(candle.infer(1, 4, StageInput::Tokens(&[1])).is_err(), "a gap");
        assert!(candle.infer(1, 3, StageInput::Tokens(&[13])).is_err(), "no token of the vocabulary");
        // A session keeps its weights.
        let before = candle.infer(1, 3, StageInput::Tokens(&tokens[3..5])).unwrap();
        let moved: Vec<f32> = candle.params().iter().map(|p| p * 1.5).collect();
        candle.set_params(moved.clone()).unwrap();
        assert_eq!(candle.infer(1, 3, StageInput::Tokens(&tokens[3..5])).unwrap(), before);
        assert_ne!(candle.infer(9, 0, StageInput::Tokens(&tokens[..5])).unwrap(), before);
    }
}

#[test]
fn a_kept_forward_uses_its_own_version_of_the_weights() {
    let config = config();
    let model = stage(&config, 0, 2);
    let (tokens, _) = batch(&config, 8, 1);
    let g = vec![0.01; 8 * 16];
    for mut candle in engines(&model, &plain(8, 1)).1 {
        let gradient = |e: &mut Candle, key| {
            e.backward(key, &g, 1.0, false).unwrap();
            e.step(0.0).unwrap();
            e.state().unwrap().m
        };
        for key in 1..4 {
            candle.forward(key, StageInput::Tokens(&tokens)).unwrap();
        }
        let first = gradient(&mut candle, 1);
        // The step was of rate 0, but it made a version: the second is held, and after the next the third is not.
        let moved: Vec<f32> = candle.params().iter().map(|p| p * 1.1).collect();
        candle.forward(5, StageInput::Tokens(&tokens)).unwrap();
        candle.set_params(moved.clone()).unwrap();
        assert_eq!(candle.params(), moved);
        assert_eq!(gradient(&mut candle, 5), first);
        assert_ne!(gradient(&mut candle, 3), first);
        assert_eq!(candle.backward(9, &g, 1.0, false), Err(EngineError::NotKept(9)));
    }
}

#[test]
fn a_tape_takes_what_the_formula_says_and_what_does_not_fit_is_computed_again() {
    let config = config();
    let model = stage(&config, 0, 2);
    let (tokens, _) = batch(&config, 16, 1);
    let g = vec![0.01; 16 * 16];
    // All but the two factors a token, which are computed again; and the output.
    let tape = 4 * (2 * 2 * (cost::kept_layer(&config, 8) - 2 * 8) + 16 * 16);
    for device in devices() {
        let held = |bytes: u64, later: u64| {
            let mut settings = plain(8, 2);
            settings.kept_bytes_max = bytes;
            let mut engine = candle(&model, &settings, Precision::F32, &device);
            engine.forward(1, StageInput::Tokens(&tokens)).unwrap();
            engine.set_kept_bytes_max(later);
            let still = engine.params().to_vec();
            engine.set_params(still.iter().map(|p| p * 1.1).collect()).unwrap();
            engine.backward(1, &g, 1.0, false).unwrap();
            engine.step(0.0).unwrap();
            engine.state().unwrap().m
        };
        let (kept, again) = (held(u64::MAX, u64::MAX), held(0, 0));
        assert_ne!(kept, again);
        assert_eq!(held(tape, tape), kept);
        assert_eq!(held(tape - 1, u64::MAX), again);
        assert_eq!(held(tape, tape - 1), again);
    }
}

#[test]
fn what_is_not_finite_is_an_error_and_is_never_added() {
    let model = stage(&config(), 1, 1);
    for mut candle in engines(&model, &plain(6, 2)).1 {
        let mut draw = Draw(3);
        let (x, g) = (draw.values(12 * 16, 1.0), draw.values(12 * 16, 0.1));
        for key in 0..3 {
            candle.forward(key, StageInput::Hidden(&x)).unwrap();
        }
        candle.backward(0, &g, 1.0, false).unwrap();
        let far = vec![3e38; 12 * 16];
        assert!(matches!(candle.backward(1, &far, 1.0, false), Err(EngineError::NotFinite(_))));
        // Each value alone is finite here, and so is the gradient of the input: the weights' is not.
        assert!(matches!(candle.backward(2, &vec![1e38; 12 * 16], f32::MAX, false), Err(EngineError::NotFinite(_))));
        assert_eq!(candle.sum_weight(), 1.0);
        candle.step(0.0).unwrap();
        let summed = candle.state().unwrap().m;
        candle.backward(0, &g, 1.0, true).unwrap();
        candle.step(0.0).unwrap();
        assert_eq!(candle.state().unwrap().m, summed);
        assert!(matches!(
            candle.forward(4, StageInput::Hidden(&vec![f32::NAN; 12 * 16])),
            Err(EngineError::BadInput(_))
        ));
        assert!(matches!(candle.backward(0, &g[1..], 1.0, false), Err(EngineError::BadInput(_))));
        assert!(candle.step(f64::NAN).is_err());
        assert!(candle.set_params(vec![0.0; 3]).is_err());
    }
}
