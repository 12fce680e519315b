//! The learning rate of a run step: a function of the manifest alone, so every replica steps at the same rate.

use std::f64::consts::PI;

use skein_protocol::{
    Manifest,
    run::{Optimizer, ScheduleKind},
};

/// Run steps after which the run ends, where the manifest says so by steps or by tokens (the earlier of the two).
pub fn steps(manifest: &Manifest) -> Option<u64> {
    let tokens = manifest.tokens_per_micro_batch() * u64::from(manifest.train.micro_batches_per_step);
    let by_tokens = manifest.run.ends.tokens.map(|total| total.div_ceil(tokens.max(1)));
    manifest.run.ends.steps.into_iter().chain(by_tokens).min()
}

/// Learning rate of run step `step` (from 0) of `total`.
///
/// Linear warm-up reaches the full rate at step `warmup - 1`; then, with `p` the share done of what follows the warm-up:
/// constant `lr`; linear `lr + (end - lr) p`; cosine `end + (lr - end) (1 + cos pi p) / 2`; wsd `lr` until `stable_percent`
/// of all steps, then linearly to the end. A run without an end keeps the full rate.
pub fn rate(optimizer: &Optimizer, total: Option<u64>, step: u64) -> f64 {
    let (lr, s) = (optimizer.lr, &optimizer.schedule);
    if step < s.warmup {
        return lr * (step + 1) as f64 / s.warmup as f64;
    }
    let Some(total) = total else { return lr };
    let end = lr * f64::from(s.final_percent) / 100.0;
    let share = |from: u64| match total.saturating_sub(from) {
        0 => 1.0,
        n => (step.saturating_sub(from) as f64 / n as f64).min(1.0),
    };
    match s.kind {
        ScheduleKind::Constant => lr,
        ScheduleKind::Linear => lr + (end - lr) * share(s.warmup),
        ScheduleKind::Cosine => end + (lr - end) * 0.5 * (1.0 + libm::cos(PI * share(s.warmup))),
        ScheduleKind::Wsd => {
            let stable = (u128::from(total) * u128::from(s.stable_percent.min(100)) / 100) as u64;
            let stable = stable.max(s.warmup);
            if step < stable { lr } else { lr + (end - lr) * share(stable) }
        }
    }
}

#[cfg(test)]
mod tests {
    use skein_protocol::run::{OptimizerKind, Schedule};

    use super::*;

    fn optimizer(kind: ScheduleKind) -> Optimizer {
        Optimizer {
            kind: OptimizerKind::Adamw,
            lr: 1.0,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            decay: 0.0,
            schedule: Schedule { kind, warmup: 10, stable_percent: 60, final_percent: 20 },
        }
    }

    fn close(kind: ScheduleKind, step: u64, wanted: f64) {
        let got = rate(&optimizer(kind), Some(110), step);
        assert!((got - wanted).abs() < 1e-12, "{kind:?} at {step}: {got}, not {wanted}");
    }

    #[test]
    fn each_kind_has_its_closed_form() {
        use ScheduleKind::*;
        for kind in [Constant, Linear, Cosine, Wsd] {
            close(kind, 0, 0.1);
            close(kind, 9, 1.0);
            close(kind, 10, 1.0);
            assert_eq!(rate(&optimizer(kind), None, 1_000_000), 1.0);
        }
        close(Constant, 1000, 1.0);
        close(Linear, 60, 0.6);
        close(Linear, 110, 0.2);
        close(Linear, 500, 0.2);
        close(Cosine, 35, 0.2 + 0.8 * 0.5 * (1.0 + (PI / 4.0).cos()));
        close(Cosine, 60, 0.6);
        close(Cosine, 110, 0.2);
        close(Wsd, 65, 1.0);
        close(Wsd, 66, 1.0);
        close(Wsd, 88, 0.6);
        close(Wsd, 110, 0.2);
    }

    #[test]
    fn a_run_shorter_than_its_warm_up_has_rates_all_the_same() {
        for total in [0, 1, 10, 11] {
            for step in 0..30 {
                let got = rate(&optimizer(ScheduleKind::Wsd), Some(total), step);
                assert!((0.0..=1.0).contains(&got), "{total} {step} {got}");
            }
        }
    }
}
