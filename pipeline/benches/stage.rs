//! Tokens a second of one engine on text: `cargo bench -p skein-pipeline --features compute --bench stage -- hidden layers heads
//! ffn vocab sequence batch threads steps FILE`. Without a file the tokens are made up.

use std::time::Instant;

use skein_pipeline::{
    compute::{Device, engine},
    exact::{Settings, StageInput},
    model::{StageModel, init},
};
use skein_protocol::run::{Arithmetic, ModelConfig, Optimizer, OptimizerKind, Recompute, preset::preset};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let n = |i: usize, or: usize| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(or);
    let (sequence, batch, threads, steps) = (n(5, 128), n(6, 8), n(7, 2), n(8, 30));
    let config = ModelConfig {
        hidden: n(0, 256) as u32,
        layers: n(1, 8) as u32,
        heads: n(2, 8) as u32,
        kv_heads: n(2, 8) as u32,
        ffn: n(3, 688) as u32,
        vocab: n(4, 256) as u32,
        context: sequence as u32,
        tie_embeddings: false,
        ..preset("tiny").unwrap().model.config
    };
    let text: Vec<u32> = match args.get(9) {
        Some(file) => std::fs::read(file).unwrap().iter().map(|&b| u32::from(b)).collect(),
        None => (0..1u32 << 20).map(|i| i.wrapping_mul(2_654_435_761) >> 8).map(|i| i % config.vocab).collect(),
    };
    let model = StageModel::whole(config).unwrap();
    println!("{} parameters, {threads} threads", model.values());
    let settings = Settings {
        sequence,
        micro_batch: batch,
        clip: 1.0,
        optimizer: Optimizer { kind: OptimizerKind::Adamw, ..preset("tiny").unwrap().optimizer },
        recompute: Recompute::WhenNeeded,
        kept_bytes_max: u64::MAX,
    };
    let params = init::initial(&model, 1);
    let mut engine = engine(Device::Cpu { threads }, Arithmetic::Repeatable, model, settings, params).unwrap();
    let mut at = 0;
    let mut times = Vec::new();
    for step in 0..steps {
        let (mut x, mut y) = (Vec::new(), Vec::new());
        for _ in 0..batch {
            at = (at + 7919 * sequence) % (text.len() - sequence - 1);
            x.extend_from_slice(&text[at..at + sequence]);
            y.extend_from_slice(&text[at + 1..at + sequence + 1]);
        }
        let start = Instant::now();
        engine.forward(0, StageInput::Tokens(&x)).unwrap();
        let forward = start.elapsed();
        let lost = engine.loss_backward(0, &y, 1.0).unwrap();
        let backward = start.elapsed();
        engine.drop_kept(0);
        engine.step(1e-3).unwrap();
        let whole = start.elapsed();
        times.push((forward, backward - forward, whole - backward, whole));
        if (step + 1) % 10 == 0 {
            let part = &mut times[step + 1 - 10..].to_vec();
            part.sort_by_key(|t| t.3);
            let t = part[part.len() / 2];
            println!(
                "step {:4} loss {:.3}: forward {:.1} backward {:.1} step {:.1} ms, {:.0} tokens/s",
                step + 1,
                lost.loss / f64::from(lost.tokens),
                t.0.as_secs_f64() * 1e3,
                t.1.as_secs_f64() * 1e3,
                t.2.as_secs_f64() * 1e3,
                (sequence * batch) as f64 / t.3.as_secs_f64()
            );
        }
    }
}
