//! Outcomes that nobody simulated, of a plausible kind: to look at reports, and to test them.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use skein_simulations::outcome::*;

pub const STAGES: usize = 8;

/// Six hours of some hundred homes: a third goes and comes, a burst of deaths after four hours leaves stage 5 empty for a while.
pub fn outcome(seed: u64, peers: u32, samples: usize) -> Outcome {
    let mut chance = ChaCha8Rng::seed_from_u64(seed);
    let mut noise = |around: f64| around * (0.94 + 0.12 * unit(&mut chance));
    let long = 21_600.0;
    let each = long / samples.max(1) as f64;
    let mut series = Vec::new();
    let mut changes = Vec::new();
    let mut totals = Totals::default();
    let mut alive = 0.0;
    for at in 1..=samples {
        let part = at as f64 / samples as f64;
        let burst = (0.66..0.72).contains(&part);
        let wanted =
            f64::from(peers) * (if part < 0.08 { part / 0.08 } else { 0.93 }) * (if burst { 0.72 } else { 1.0 });
        let before = alive;
        alive = (alive + (wanted - alive) * 0.5 + noise(1.0) * 2.0 - 2.0).clamp(0.0, f64::from(peers));
        let moved = (alive - before).round() as i64;
        let come = moved.max(0) + (noise(1.0) * 1.5) as i64;
        let went = (-moved).max(0) + (noise(1.0) * 1.5) as i64;
        for (number, kind) in [(come, 0), (went, 1)] {
            for one in 0..number.min(400) {
                let what = if kind == 0 {
                    Came::Joined
                } else if one % 3 == 0 {
                    Came::Left
                } else {
                    Came::Died
                };
                match what {
                    Came::Joined => totals.joined += 1,
                    Came::Left => totals.left += 1,
                    Came::Died => totals.died += 1,
                }
                changes.push(Change {
                    at_s: each * (at as f64 - noise(0.5).min(1.0)),
                    peer: (one as u32 * 37) % peers.max(1),
                    what,
                });
            }
        }
        let mean = alive / STAGES as f64;
        let replicas: Vec<u32> = (0..STAGES)
            .map(|stage| {
                if burst && stage == 5 && part < 0.69 {
                    0
                } else {
                    noise(mean * (if stage == 5 { 0.8 } else { 1.02 })) as u32
                }
            })
            .collect();
        let slow = if replicas.contains(&0) { 0.0 } else { noise(1.0) };
        let tokens = (18_400.0 * alive / f64::from(peers.max(1)) * each * slow) as u64;
        let sent = tokens as f64 * 5_100.0;
        let traffic = Traffic {
            activations: (sent * 0.24) as u64,
            gradients: (sent * 0.47) as u64,
            averaging: (sent * 0.22) as u64,
            weights: (noise(alive) * 2e6 + come as f64 * 2e8) as u64,
            control: (sent * 0.004) as u64,
        };
        totals.tokens += tokens;
        totals.traffic.activations += traffic.activations;
        totals.traffic.gradients += traffic.gradients;
        totals.traffic.averaging += traffic.averaging;
        totals.traffic.weights += traffic.weights;
        totals.traffic.control += traffic.control;
        series.push(Sample {
            at_s: each * at as f64,
            for_s: each,
            alive: alive as u32,
            serving: (alive * 0.96) as u32,
            tokens,
            completed: tokens / 1024,
            goodput: noise(if burst { 0.78 } else { 0.93 }).min(1.0),
            traffic,
            staleness_p50: 1,
            staleness_p99: if burst { 6 } else { 3 + (noise(1.0) > 1.03) as u32 },
            loss: (tokens > 0).then(|| 2.7 + 5.6 / (1.0 + 24.0 * part) + noise(0.08)),
            disagreement: Some(noise(0.012) * (if burst { 2.4 } else { 1.0 })),
            replicas,
            busy: (0..STAGES)
                .map(|stage| noise(if stage == 5 { 0.71 } else { 0.42 + 0.01 * stage as f64 }) as f32)
                .collect(),
        });
    }
    totals.completed = totals.tokens / 1024;
    totals.applied = totals.completed * STAGES as u64;
    totals.perished = totals.applied / 31;
    totals.refused = totals.applied / 480;
    totals.voided = totals.completed / 90;
    totals.resent = totals.completed / 40;
    totals.pending = 214;
    totals.steps = totals.completed / 1240;
    totals.rounds = totals.steps * STAGES as u64 * 3;
    totals.rounds_rolled_back = totals.rounds / 27;
    totals.overlapped = totals.completed / 700;
    totals.staleness_p50 = 1;
    totals.staleness_p99 = 4;
    totals.loss_first = Some(8.3);
    totals.loss_last = Some(noise(2.98));
    totals.loss_reference = Some(2.91);
    totals.flops_done = totals.tokens as f64 * 6.0 * 1.3e9 * 1.095;
    totals.flops_useful = totals.tokens as f64 * 6.0 * 1.3e9;
    totals.peer_s = f64::from(peers) * long * 0.9;
    let rows =
        (0..peers).map(|peer| row(peer, long, totals.traffic.all() / u64::from(peers.max(1)), &mut noise)).collect();
    let by_stage = (0..STAGES as u16)
        .map(|stage| StageRow {
            stage,
            replicas: noise(f64::from(peers) / STAGES as f64 * 0.9),
            replicas_min: if stage == 5 { 0 } else { peers / 14 },
            busy: noise(if stage == 5 { 0.71 } else { 0.44 }),
            sending: noise(0.62),
            receiving: noise(0.21),
            completed: totals.completed,
            empty_s: if stage == 5 { 620.0 } else { 0.0 },
        })
        .collect();
    Outcome {
        schema: SCHEMA,
        skein: "0.1.0".into(),
        scenario: "home_upload".into(),
        question: "Can 500 home computers train 1.3 B parameters while a third of them come and go?".into(),
        text: TEXT.into(),
        seed,
        fidelity: Fidelity::Protocol,
        learning: Learning::Curve,
        config: "b3:5b0f2f6a7c83d5cb63f4d6b0f0a2dce5a5d2d9fd3b9ce7b3a4f6a3e7d7e5c111".into(),
        digest: format!("b3:{:064x}", u128::from(seed) * 0x51aa_77c3_9b1d_4e2f_1234_5678),
        peers,
        stages: STAGES as u16,
        parameters: 1_310_000_000,
        simulated_s: long,
        duration_s: long,
        events: 18_600_000,
        ended: Ended::Finished,
        totals,
        shares: Shares {
            computing: 0.44,
            upload: noise(0.34),
            download: 0.0,
            imbalance: noise(0.12),
            latency: noise(0.03),
            churn: noise(0.065),
            staleness: 0.002,
        },
        series,
        changes,
        planned: vec![Planned { at_s: 0.66 * long, until_s: 0.69 * long, what: "partition".into(), peers: peers / 4 }],
        rows,
        by_stage,
        cost: Some(Cost {
            kwh: 180.0,
            usd: 54.0,
            kwh_per_billion_tokens: noise(453.0),
            usd_per_billion_tokens: noise(136.0),
            reference: "8 x A100 on demand".into(),
            reference_usd_per_billion_tokens: 31.0,
            reference_kwh_per_billion_tokens: 118.0,
            assumptions: vec![
                "A device takes 180 W while it computes: with half of that the cost is half.".into(),
                "A kWh costs USD 0.30, and nothing else is paid to the peers.".into(),
                "The reference reaches 40 % of its peak and costs USD 8.80 an hour.".into(),
            ],
        }),
        properties: ["P0", "P1", "P2", "P3", "P4", "P5", "P6", "P7", "P9", "P10", "P12", "P13", "P18"]
            .map(String::from)
            .into(),
        violations: Vec::new(),
        remarks: vec![
            "The time of a computation is modelled from the device's speed; its numbers are not computed.".into(),
            "The loss is an estimate from a published law of loss over parameters and tokens.".into(),
            "12 % of the peers are reached through relays, whose capacity is not modelled.".into(),
        ],
    }
}

fn row(peer: u32, long: f64, sent: u64, noise: &mut impl FnMut(f64) -> f64) -> PeerRow {
    let devices = ["laptop", "desktop", "rtx3060", "rtx4090"];
    let spread = noise(1.0) * noise(1.0) * noise(1.0) * (0.8 + 0.1 * f64::from(peer % 5));
    PeerRow {
        peer,
        device: devices[peer as usize % 4].into(),
        access: ["home", "fibre"][peer as usize % 2].into(),
        region: ["eu", "us", "asia"][peer as usize % 3].into(),
        stage: Some((peer as usize % STAGES) as u16),
        alive_s: long * 0.9,
        serving_s: long * 0.85,
        busy_s: long * 0.44,
        sending_s: long * 0.6,
        sent: (sent as f64 * spread) as u64,
        received: sent,
        joined: 1 + peer % 3,
        died: peer % 2,
    }
}

fn unit(chance: &mut impl Rng) -> f64 {
    chance.random::<f64>()
}

const TEXT: &str = r#"question = "Can 500 home computers train 1.3 B parameters while a third of them come and go?"

[run]
model = "1b3"
stages = 8
forward = "int8"
backward = "bf16"

[peers]
count = 500
devices = { laptop = 0.25, desktop = 0.25, rtx3060 = 0.25, rtx4090 = 0.25 }

[network]
access = { home = 0.7, fibre = 0.3 }
regions = "population"
relayed = 0.12

[churn]
preset = "volunteer"

[expect]
tokens_per_s_min = 15000
goodput_min = 0.9
"#;
