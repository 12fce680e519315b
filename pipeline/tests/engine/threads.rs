//! The fast engine: equal bits for any number of threads, near the exact one in values.

use skein_pipeline::{
    compute::{Device, engine},
    exact::{Engine, Exact},
    model::{StageModel, init},
};
use skein_protocol::run::{Arithmetic, OptimizerKind};

use crate::support::{SEED, batch, bits, config, settings, train, whole};

fn made(arithmetic: Arithmetic, threads: usize) -> Box<dyn Engine> {
    let model = StageModel::whole(config()).unwrap();
    let params = init::initial(&model, SEED);
    let settings = settings(128, 8, OptimizerKind::Adamw);
    engine(Device::Cpu { threads }, arithmetic, model, settings, params).unwrap()
}

fn trained(engine: &mut dyn Engine) -> Vec<u32> {
    for step in 0..3 {
        for index in 0..2 {
            train(engine, index, &batch(&config(), 1024, step), 1.0);
        }
        engine.step(3e-3).unwrap();
    }
    bits(engine.params())
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let mut exact: Exact = whole(&config(), settings(128, 8, OptimizerKind::Adamw));
    let repeatable = trained(&mut exact);
    for threads in [1, 2, 3, 4, 9] {
        assert_eq!(trained(&mut *made(Arithmetic::Repeatable, threads)), repeatable, "{threads} threads");
    }
    let fast = trained(&mut *made(Arithmetic::F32, 1));
    let bf16 = trained(&mut *made(Arithmetic::Bf16, 1));
    for threads in [2, 3, 5] {
        assert_eq!(trained(&mut *made(Arithmetic::F32, threads)), fast, "{threads} threads");
        assert_eq!(trained(&mut *made(Arithmetic::Bf16, threads)), bf16, "{threads} threads");
    }
    let far = repeatable.iter().zip(&fast).map(|(&a, &b)| (f32::from_bits(a) - f32::from_bits(b)).abs());
    assert!(far.fold(0.0, f32::max) < 1e-2, "the two differ by rounding only");
}

#[test]
fn an_engine_that_this_build_lacks_is_refused() {
    let model = StageModel::whole(config()).unwrap();
    let params = init::initial(&model, SEED);
    let settings = settings(8, 1, OptimizerKind::Adamw);
    assert!(engine(Device::Cuda(0), Arithmetic::Repeatable, model, settings, params).is_err());
}
