//! Products in bf16: near f32 in every gradient, equal for any number of threads, and as good to learn with.

use skein_pipeline::{
    exact::{
        Bf16Instructions, Bf16Product, Bf16x3Product, Engine, Matrix, Operand, Product, Settings, StageEngine,
        StageInput,
    },
    model::{StageModel, init},
};
use skein_protocol::run::{ModelConfig, OptimizerKind};

use crate::support::{SEED, batch, bits, config, exact, plain, settings, stage, train};

/// Every set of instructions that is here; says which are not.
fn sets() -> impl Iterator<Item = Bf16Instructions> {
    let all = [Bf16Instructions::Amx, Bf16Instructions::Avx512, Bf16Instructions::Portable];
    let (here, missing): (Vec<_>, Vec<_>) = all.into_iter().partition(|set| set.here());
    println!("not on this processor, so not tested: {missing:?}");
    here.into_iter()
}

fn with<P: Product>(model: StageModel, settings: Settings, product: P) -> StageEngine<P> {
    let params = init::initial(&model, SEED);
    StageEngine::with_product(model, settings, params, product).unwrap()
}

/// Length of the difference over that of `wanted`.
fn apart(got: &[f32], wanted: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
    let difference = squares(&mut got.iter().zip(wanted).map(|(a, b)| a - b));
    // Queries of a sequence of one token have no gradient.
    if difference == 0.0 { 0.0 } else { (difference / squares(&mut wanted.iter().copied())).sqrt() }
}

/// Bound of relative errors of a loss and of what one layer makes: up to 2^-9 for each rounded operand.
const NEAR: f64 = 1e-2;

/// Bound of relative errors of gradients that passed three layers twice: those of queries and keys, which differences of
/// probabilities make, are 3.7e-2 apart where they are farthest, by every set of instructions alike.
const THROUGH: f64 = 5e-2;

/// The same for products of which 16 bits count: the farthest is 4.3e-5 off.
const THROUGH_X3: f64 = 1e-4;

/// Models, tokens of a sequence, sequences.
fn shapes() -> [(ModelConfig, usize, usize); 6] {
    let odd = ModelConfig { hidden: 18, layers: 2, heads: 3, kv_heads: 3, ffn: 7, vocab: 5, ..config() };
    let wide = ModelConfig { hidden: 80, layers: 2, heads: 5, kv_heads: 1, ffn: 100, vocab: 70, ..config() };
    let tied = ModelConfig { hidden: 48, layers: 1, heads: 2, kv_heads: 1, ffn: 33, tie_embeddings: true, ..config() };
    [(config(), 23, 2), (config(), 1, 1), (config(), 130, 4), (odd, 9, 3), (wide, 40, 1), (tied, 12, 2)]
}

/// Loss of one micro-batch, and the gradient of every parameter.
fn computed(engine: &mut dyn Engine, config: &ModelConfig, tokens: usize) -> (f64, Vec<f32>) {
    let loss = train(engine, 0, &batch(config, tokens, 2), 1.0);
    engine.step(0.0).unwrap();
    (loss, engine.state().unwrap().m)
}

#[test]
fn where_16_bits_count_loss_and_every_gradient_are_those_of_f32_but_for_roundings() {
    for (config, sequence, sequences) in shapes() {
        let model = StageModel::whole(config.clone()).unwrap();
        let (tokens, settings) = (sequence * sequences, || plain(sequence, sequences));
        let got = computed(&mut with(model.clone(), settings(), Bf16x3Product::default()), &config, tokens);
        let wanted = computed(&mut exact(model.clone(), settings()), &config, tokens);
        assert!((got.0 - wanted.0).abs() < 1e-5 * wanted.0, "{} wide: {} and {}", config.hidden, got.0, wanted.0);
        for param in model.params() {
            let far = apart(&got.1[param.range()], &wanted.1[param.range()]);
            assert!(far < THROUGH_X3, "{} wide, {sequence}: {} is {far} apart", config.hidden, param.name);
        }
    }
}

#[test]
fn loss_and_every_gradient_are_near_those_of_f32() {
    for (set, (config, sequence, sequences)) in sets().flat_map(|set| shapes().map(|shape| (set, shape))) {
        let what = format!("{set:?} {} wide, {sequences} of {sequence}", config.hidden);
        let (tokens, settings) = (sequence * sequences, || plain(sequence, sequences));
        let model = StageModel::whole(config.clone()).unwrap();
        let computed = |engine: &mut dyn Engine| computed(engine, &config, tokens);
        let rounded = |set| computed(&mut with(model.clone(), settings(), Bf16Product::with(set)));
        let (got, defined) = (rounded(set), rounded(Bf16Instructions::Portable));
        let wanted = computed(&mut exact(model.clone(), settings()));
        assert!((got.0 - wanted.0).abs() < NEAR * wanted.0, "{what}: a loss of {}, not {}", got.0, wanted.0);
        for param in model.params() {
            let far = |other: &[f32]| apart(&got.1[param.range()], &other[param.range()]);
            let (other, f32) = (far(&defined.1), far(&wanted.1));
            assert!(other < NEAR && f32 < THROUGH, "{what}: {} is {other} and {f32} apart", param.name);
        }
    }
}

#[test]
fn a_stage_between_others_passes_on_gradients_near_those_of_f32() {
    let config = config();
    let model = stage(&config, 1, 1);
    let tokens = 2 * 33;
    let x: Vec<f32> = (0..tokens * 16).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
    let g: Vec<f32> = x.iter().rev().map(|v| v / tokens as f32).collect();
    let both = |engine: &mut dyn Engine| {
        let out = engine.forward(0, StageInput::Hidden(&x)).unwrap();
        (out, engine.backward(0, &g, 1.0, false).unwrap())
    };
    let wanted = both(&mut exact(model.clone(), plain(33, 2)));
    for set in sets() {
        let got = both(&mut with(model.clone(), plain(33, 2), Bf16Product::with(set)));
        assert!(apart(&got.0, &wanted.0) < NEAR && apart(&got.1, &wanted.1) < NEAR, "{set:?}");
        assert!(got != wanted, "{set:?}: operands are rounded");
    }
}

/// Lanes and pieces of gradients on threads of their own.
#[derive(Clone)]
struct Threads(Bf16Product, usize);

impl Product for Threads {
    fn product<'b>(
        &mut self,
        c: &mut [f32],
        stride: usize,
        add: bool,
        a: Matrix<'_>,
        b: impl Into<Operand<'b>>,
        scale: f32,
    ) {
        self.0.product(c, stride, add, a, b, scale);
    }

    fn columns(&mut self, c: &mut [f32], a: Matrix<'_>, b: Operand<'_>, cols: std::ops::Range<usize>) {
        self.0.columns(c, a, b, cols);
    }

    fn packed_len(&self, rows: usize, cols: usize) -> usize {
        self.0.packed_len(rows, cols)
    }

    fn pack(&self, b: Matrix<'_>, to: &mut [f32]) {
        self.0.pack(b, to);
    }

    fn each<T: Send>(&self, items: &mut [T], work: impl Fn(&mut T) + Sync) {
        let (each, work) = (items.len().div_ceil(self.1).max(1), &work);
        std::thread::scope(|scope| {
            items.chunks_mut(each).for_each(|items| _ = scope.spawn(|| items.iter_mut().for_each(work)));
        });
    }
}

#[test]
fn bits_are_those_of_one_thread_whatever_is_packed() {
    let trained = |set, threads, packed| {
        let model = StageModel::whole(config()).unwrap();
        let product = Threads(Bf16Product::with(set), threads);
        let mut engine = with(model, settings(128, 8, OptimizerKind::Adamw), product);
        engine.set_packed(packed);
        for step in 0..2 {
            train(&mut engine, 0, &batch(&config(), 1024, step), 1.0);
            engine.step(3e-3).unwrap();
        }
        bits(engine.params())
    };
    for set in sets() {
        let wanted = trained(set, 1, true);
        for (threads, packed) in [(1, false), (2, true), (3, true)] {
            assert_eq!(trained(set, threads, packed), wanted, "{set:?}: {threads} threads, packed: {packed}");
        }
    }
}

/// A rule with exceptions: a few hundred steps learn the one and not the other.
#[test]
fn a_model_learns_as_fast_as_in_f32() {
    const STEPS: u32 = 200;
    let config = ModelConfig { layers: 1, ..config() };
    let losses = |engine: &mut dyn Engine| -> Vec<f64> {
        let step = |step| {
            let (noise, _) = batch(&config, 64, step);
            let mut text = vec![noise[0]];
            for (i, &other) in noise.iter().enumerate() {
                text.push(if i % 8 == 7 { other } else { (5 * text[i] + 2) % config.vocab });
            }
            let loss = train(engine, 0, &(text[..64].to_vec(), text[1..].to_vec()), 1.0);
            engine.step(1e-2).unwrap();
            loss
        };
        (0..STEPS).map(step).collect()
    };
    let model = StageModel::whole(config.clone()).unwrap();
    let settings = || settings(16, 4, OptimizerKind::Adamw);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let wanted = losses(&mut exact(model.clone(), settings()));
    assert!(mean(&wanted[150..]) < 0.5 * wanted[0], "there is something to learn: {wanted:?}");
    for set in sets() {
        let got = losses(&mut with(model.clone(), settings(), Bf16Product::with(set)));
        let (a, b) = (mean(&got[150..]), mean(&wanted[150..]));
        assert!((a - b).abs() < 0.05 * b, "{set:?}: {a} in bf16, {b} in f32");
    }
}
