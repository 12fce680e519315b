//! Adapters beside weights in fewer bits: they compute as beside the same values in f32, bit for bit, and on every engine.

use std::sync::Arc;

use skein_pipeline::{
    exact::{Bf16Product, Engine, FixedProduct, Product, StageEngine, StageInput, StageWeights},
    model::{StageModel, frozen::Frozen, init},
};
use skein_protocol::run::{BasePrecision, Lora, ModelConfig};

use crate::support::{batch, config, plain, train};

/// Of whose matrices some are larger than a tile both ways, and some have rows that are no whole blocks.
fn wide() -> ModelConfig {
    ModelConfig { hidden: 64, layers: 2, ffn: 1120, vocab: 300, head: Some(10), ..config() }
}

struct Beside {
    model: StageModel,
    base: StageModel,
    params: Vec<f32>,
    values: Vec<f32>,
}

fn beside(config: ModelConfig) -> Beside {
    let base = StageModel::whole(config).unwrap();
    let targets = ["q", "o", "up", "down"].map(str::to_string).to_vec();
    let lora = Lora { rank: 3, alpha: 6, targets, dropout_percent: 0, base: BasePrecision::AsIs };
    let model = StageModel::adapted(base.clone(), lora).unwrap();
    let mut params = init::initial(&model, 7);
    params.iter_mut().enumerate().for_each(|(i, v)| *v = *v / 2.0 + ((i * 29) % 13) as f32 / 60.0 - 0.1);
    let values = init::initial(&base, 5);
    Beside { model, base, params, values }
}

impl Beside {
    fn engine<P: Product>(&self, frozen: Frozen, packed: bool, product: P) -> StageEngine<P> {
        let weights = StageWeights { params: self.params.clone(), frozen: Some(Arc::new(frozen)) };
        let mut engine = StageEngine::with_product(self.model.clone(), plain(40, 13), weights, product).unwrap();
        engine.set_packed(packed);
        engine
    }

    /// Loss, gradients, and the logits of a generation.
    fn computed(&self, engine: &mut dyn Engine) -> (f64, Vec<f32>, Vec<f32>) {
        let sample = batch(&self.model.config, 40 * 13, 3);
        let loss = train(engine, 0, &sample, 1.0);
        engine.step(0.0).unwrap();
        let logits = engine.infer(1, 0, StageInput::Tokens(&sample.0[..5])).unwrap();
        (loss, engine.state().unwrap().m, logits)
    }
}

/// Norm of the difference, of that of the first.
fn apart(a: &[f32], b: &[f32]) -> f64 {
    let norm = |all: &mut dyn Iterator<Item = f32>| all.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut a.iter().copied())
}

#[test]
fn tiles_of_blocks_have_the_bits_of_their_values_in_f32() {
    for tie_embeddings in [false, true] {
        let beside = beside(ModelConfig { tie_embeddings, qkv_bias: tie_embeddings, ..wide() });
        for precision in BasePrecision::ALL {
            let frozen = Frozen::of(&beside.base, &beside.values, precision).unwrap();
            let same = Frozen::of(&beside.base, &frozen.flat(), BasePrecision::AsIs).unwrap();
            let product = FixedProduct::default;
            let wanted = beside.computed(&mut beside.engine(same, true, product()));
            let tiled = beside.computed(&mut beside.engine(frozen.clone(), false, product()));
            assert!(tiled == wanted, "{precision:?}");
            let packed = beside.computed(&mut beside.engine(frozen, true, product()));
            assert!(packed == wanted, "{precision:?}, with memory for more");
        }
    }
}

#[test]
fn products_in_bf16_read_tiles_too() {
    let beside = beside(wide());
    let frozen = Frozen::of(&beside.base, &beside.values, BasePrecision::Int8).unwrap();
    let (loss, gradient, _) = beside.computed(&mut beside.engine(frozen.clone(), true, FixedProduct::default()));
    let (near, rounded, _) = beside.computed(&mut beside.engine(frozen, true, Bf16Product::default()));
    assert!((loss - near).abs() < 1e-2 * loss, "{loss} {near}");
    assert!(apart(&gradient, &rounded) < 0.03, "{}", apart(&gradient, &rounded));
}

/// What is lost of the weights is small beside what they say.
#[test]
fn fewer_bits_stay_near() {
    let beside = beside(wide());
    let computed = |precision| {
        let frozen = Frozen::of(&beside.base, &beside.values, precision).unwrap();
        beside.computed(&mut beside.engine(frozen, true, FixedProduct::default()))
    };
    let (loss, whole, _) = computed(BasePrecision::AsIs);
    for (precision, most) in [(BasePrecision::Bf16, 0.02), (BasePrecision::Int8, 0.05), (BasePrecision::Int4, 0.6)] {
        let (near, gradient, _) = computed(precision);
        let apart = apart(&whole, &gradient);
        println!("{precision:?}: loss {near:.5} for {loss:.5}, gradients {apart:.5} apart");
        assert!(
            (near - loss).abs() < 0.02 * loss && apart < most && apart > 0.0,
            "{precision:?} {near} {loss} {apart}"
        );
    }
}

#[test]
fn blocks_take_no_panels() {
    let beside = beside(wide());
    let bytes = |precision| {
        let frozen = Frozen::of(&beside.base, &beside.values, precision).unwrap();
        beside.engine(frozen, true, FixedProduct::default()).packed_bytes()
    };
    assert!(bytes(BasePrecision::AsIs) > 0 && bytes(BasePrecision::Bf16) > 0);
    assert_eq!([bytes(BasePrecision::Int8), bytes(BasePrecision::Int4)], [0, 0]);
}

#[cfg(feature = "compute")]
#[test]
fn a_card_computes_from_the_same_blocks() {
    use skein_pipeline::compute::candle::{Candle, Precision};
    for tie_embeddings in [false, true] {
        let beside = beside(ModelConfig { tie_embeddings, ..wide() });
        for precision in BasePrecision::ALL {
            let frozen = Frozen::of(&beside.base, &beside.values, precision).unwrap();
            let (loss, gradient, logits) =
                beside.computed(&mut beside.engine(frozen.clone(), true, FixedProduct::default()));
            let weights = StageWeights { params: beside.params.clone(), frozen: Some(Arc::new(frozen)) };
            for (held, most) in [(Precision::F32, 1e-4), (Precision::Bf16, 0.03)] {
                let (model, settings) = (beside.model.clone(), plain(40, 13));
                let mut card = Candle::new(model, settings, weights.clone(), held, &candle_core::Device::Cpu).unwrap();
                let (near, other, said) = beside.computed(&mut card);
                let apart = [apart(&gradient, &other), apart(&logits, &said)];
                assert!((near - loss).abs() < most * loss, "{precision:?} {held:?} {near} {loss}");
                assert!(apart.iter().all(|apart| *apart < most), "{precision:?} {held:?} {apart:?}");
            }
        }
    }
}
