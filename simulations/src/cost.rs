//! Money and energy of a training, and of the same training on rented machines.
//!
//! In: what was done, by kind of device, and prices. Out: a [`Cost`] with its assumptions, the one that moves the result most
//! first. It knows no table of prices: numbers come as arguments.
//!
//! The comparison is made so that it does not flatter the swarm:
//! - a device's whole power counts while it is there, idle or not, as if it were switched on for this alone;
//! - tokens count only if their gradients are in the weights: what perished or was refused is paid for and yields nothing;
//! - the rented machines never fail, wait for nothing but what their utilisation says, and are paid for by the second.
//!
//! What it leaves out is named among the assumptions: the devices themselves, and the work of their owners.

use crate::outcome::{Cost, Outcome, PeerRow};

const SECONDS_AN_HOUR: f64 = 3600.0;
const JOULES_A_KWH: f64 = 3.6e6;
const GB: f64 = 1e9;
/// By how much each assumption is moved to see what it moves.
const SWAY: f64 = 0.3;

/// What a kind of device draws from the wall.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Watts {
    pub busy: f64,
    pub idle: f64,
}

/// How long devices of one kind were there, and how long of it at work; seconds, summed over them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Use {
    pub device: String,
    pub watts: Watts,
    pub alive_s: f64,
    pub busy_s: f64,
}

impl Use {
    pub fn kwh(&self) -> f64 {
        let busy = self.busy_s.min(self.alive_s);
        (busy * self.watts.busy + (self.alive_s - busy) * self.watts.idle) / JOULES_A_KWH
    }
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Work {
    /// Tokens whose gradients are in the weights, or in an open sum.
    pub tokens: f64,
    /// Operations of forward and backward a token, all stages together.
    pub flops_per_token: f64,
    pub flops_useful: f64,
    pub flops_done: f64,
    /// Bytes that were sent.
    pub sent: f64,
    pub uses: Vec<Use>,
}

impl Work {
    /// Of an outcome: of its tokens those that the books call applied or pending count.
    pub fn of(outcome: &Outcome, flops_per_token: f64, uses: Vec<Use>) -> Self {
        let totals = &outcome.totals;
        let added = (totals.applied + totals.pending) as f64;
        let all = added + (totals.perished + totals.refused + totals.lost) as f64;
        let part = if all > 0.0 { added / all } else { 1.0 };
        Work {
            tokens: totals.tokens as f64 * part,
            flops_per_token,
            flops_useful: totals.flops_useful,
            flops_done: totals.flops_done,
            sent: totals.traffic.all() as f64,
            uses,
        }
    }
}

/// Rows by device; one whose power nobody knows is named as such.
pub fn uses(rows: &[PeerRow], watts: impl Fn(&str) -> Option<Watts>) -> Result<Vec<Use>, Unknown> {
    let mut uses: Vec<Use> = Vec::new();
    for row in rows {
        let at = match uses.iter().position(|of| of.device == row.device) {
            Some(at) => at,
            None => {
                let watts = watts(&row.device).ok_or_else(|| Unknown { device: row.device.clone() })?;
                uses.push(Use { device: row.device.clone(), watts, ..Use::default() });
                uses.len() - 1
            }
        };
        uses[at].alive_s += row.alive_s;
        uses[at].busy_s += row.busy_s;
    }
    Ok(uses)
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the power of the device `{device}` is not in the table of prices")]
pub struct Unknown {
    pub device: String,
}

/// What has a price.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prices {
    pub usd_per_kwh: f64,
    /// What a peer is paid for an hour of being there.
    pub usd_per_peer_hour: f64,
    pub usd_per_gb_up: f64,
}

/// Machines that could be rented instead.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rented {
    pub name: String,
    pub usd_per_hour: f64,
    /// Peak operations a second of the whole machine, and the part of it that training reaches.
    pub flops_peak: f64,
    pub mfu: f64,
    /// From the wall at work, with its part of the cooling.
    pub watts: f64,
}

impl Rented {
    fn hours(&self, flops: f64) -> f64 {
        flops / (self.flops_peak * self.mfu) / SECONDS_AN_HOUR
    }
}

/// A number that was assumed, and how it is moved.
struct Assumption {
    sentence: String,
    sway: fn(&mut Work, &mut Prices, &mut Rented, f64),
}

/// USD of everything.
fn usd(work: &Work, prices: &Prices) -> f64 {
    let kwh: f64 = work.uses.iter().map(Use::kwh).sum();
    let hours: f64 = work.uses.iter().map(|of| of.alive_s).sum::<f64>() / SECONDS_AN_HOUR;
    kwh * prices.usd_per_kwh + hours * prices.usd_per_peer_hour + work.sent / GB * prices.usd_per_gb_up
}

/// What the swarm costs for each dollar of the rented machines; not finite where nothing was done.
fn ratio(work: &Work, prices: &Prices, rented: &Rented) -> f64 {
    let theirs = rented.hours(work.tokens * work.flops_per_token) * rented.usd_per_hour;
    usd(work, prices) / theirs
}

/// The cost, beside its assumptions; nothing where nothing was trained, since there is nothing to compare.
pub fn cost(work: &Work, prices: &Prices, rented: &Rented) -> Option<Cost> {
    if work.tokens <= 0.0 {
        return None;
    }
    let kwh: f64 = work.uses.iter().map(Use::kwh).sum();
    let billions = work.tokens / 1e9;
    let usd = usd(work, prices);
    let hours = rented.hours(work.flops_per_token * 1e9);
    Some(Cost {
        kwh,
        usd,
        kwh_per_billion_tokens: kwh / billions,
        usd_per_billion_tokens: usd / billions,
        reference: rented.name.clone(),
        reference_usd_per_billion_tokens: hours * rented.usd_per_hour,
        reference_kwh_per_billion_tokens: hours * SECONDS_AN_HOUR * rented.watts / JOULES_A_KWH,
        assumptions: sentences(work, prices, rented),
    })
}

/// What the ratio of the two costs becomes with an assumption 30% lower and 30% higher.
fn swayed(assumption: &Assumption, work: &Work, prices: &Prices, rented: &Rented) -> [f64; 2] {
    [1.0 - SWAY, 1.0 + SWAY].map(|by| {
        let (mut work, mut prices, mut rented) = (work.clone(), *prices, rented.clone());
        (assumption.sway)(&mut work, &mut prices, &mut rented, by);
        ratio(&work, &prices, &rented)
    })
}

fn sentences(work: &Work, prices: &Prices, rented: &Rented) -> Vec<String> {
    let swing = |[low, high]: [f64; 2]| if (high - low).is_finite() { (high - low).abs() } else { 0.0 };
    let mut moved: Vec<(f64, String)> = assumptions(work, prices, rented)
        .into_iter()
        .map(|assumption| {
            let [low, high] = swayed(&assumption, work, prices, rented);
            let swing = swing([low, high]);
            let moves = match swing > 0.0 {
                true => format!("; with 30% less or more of it the swarm costs {low:.2} or {high:.2} times the rented"),
                false => String::new(),
            };
            (swing, format!("{}{moves}.", assumption.sentence))
        })
        .collect();
    moved.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut sentences: Vec<String> = moved.into_iter().map(|(_, sentence)| sentence).collect();
    let wasted = 100.0 * (1.0 - work.flops_useful / work.flops_done.max(1.0)).clamp(0.0, 1.0);
    sentences.push(format!(
        "Of {:.3e} operations {wasted:.1}% are not in the weights; they are paid for, and their tokens do not count.",
        work.flops_done
    ));
    sentences.push("The rented machines never fail and are paid by the second.".into());
    sentences.push("What devices cost to buy, their wear, and the work of their owners are not counted.".into());
    sentences
}

fn assumptions(work: &Work, prices: &Prices, rented: &Rented) -> Vec<Assumption> {
    let kinds: Vec<String> = work
        .uses
        .iter()
        .map(|of| format!("{} draws {:.0} W at work and {:.0} W idle", of.device, of.watts.busy, of.watts.idle))
        .collect();
    let hours = work.uses.iter().map(|of| of.alive_s).sum::<f64>() / SECONDS_AN_HOUR;
    vec![
        Assumption {
            sentence: format!("A rented {} costs {:.2} USD an hour", rented.name, rented.usd_per_hour),
            sway: |_, _, rented, by| rented.usd_per_hour *= by,
        },
        Assumption {
            sentence: format!(
                "The rented {} reaches {:.0}% of its peak of {:.0} TFLOP/s",
                rented.name,
                100.0 * rented.mfu,
                rented.flops_peak / 1e12
            ),
            sway: |_, _, rented, by| rented.mfu *= by,
        },
        Assumption {
            sentence: format!("Electricity costs {:.3} USD per kWh", prices.usd_per_kwh),
            sway: |_, prices, _, by| prices.usd_per_kwh *= by,
        },
        Assumption {
            sentence: format!(
                "A peer is paid {:.3} USD an hour, for {hours:.1} hours in all",
                prices.usd_per_peer_hour
            ),
            sway: |_, prices, _, by| prices.usd_per_peer_hour *= by,
        },
        Assumption {
            sentence: format!("Sending costs {:.3} USD per GB, of {:.1} GB", prices.usd_per_gb_up, work.sent / GB),
            sway: |_, prices, _, by| prices.usd_per_gb_up *= by,
        },
        Assumption {
            sentence: format!("Power counts while a device is there: {}", kinds.join(", ")),
            sway: |work, _, _, by| {
                work.uses.iter_mut().for_each(|of| {
                    of.watts.busy *= by;
                    of.watts.idle *= by;
                });
            },
        },
        Assumption {
            sentence: format!("{:.4} billion tokens were trained in the time that is paid for", work.tokens / 1e9),
            sway: |work, _, _, by| work.tokens *= by,
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thousand hours of one card, half of them at work, for a billion tokens.
    fn work() -> Work {
        let watts = Watts { busy: 300.0, idle: 100.0 };
        let hours = |n: f64| n * SECONDS_AN_HOUR;
        Work {
            tokens: 1e9,
            flops_per_token: 6e9,
            flops_useful: 6e18,
            flops_done: 8e18,
            sent: 500e9,
            uses: vec![Use { device: "card".into(), watts, alive_s: hours(1000.0), busy_s: hours(500.0) }],
        }
    }

    const PRICES: Prices = Prices { usd_per_kwh: 0.30, usd_per_peer_hour: 0.05, usd_per_gb_up: 0.02 };

    /// 6e18 operations at 1e15 a second take 6,000 seconds.
    fn rented() -> Rented {
        Rented { name: "8xbig".into(), usd_per_hour: 36.0, flops_peak: 2e15, mfu: 0.5, watts: 6000.0 }
    }

    fn found(work: &Work, prices: &Prices) -> Cost {
        cost(work, prices, &rented()).expect("something was trained")
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9 * b.abs().max(1.0)
    }

    #[test]
    fn money_and_energy_by_hand() {
        let cost = found(&work(), &PRICES);
        // 500 h of 300 W and 500 h of 100 W.
        assert!(near(cost.kwh, 200.0) && near(cost.kwh_per_billion_tokens, 200.0));
        assert!(near(cost.usd, 200.0 * 0.30 + 1000.0 * 0.05 + 500.0 * 0.02), "{}", cost.usd);
        assert!(near(cost.reference_usd_per_billion_tokens, 60.0));
        assert!(near(cost.reference_kwh_per_billion_tokens, 10.0));
    }

    #[test]
    fn the_assumption_that_moves_most_is_named_first() {
        // The rented price stands below the line: 30% less of it moves more than 30% of anything above.
        assert!(found(&work(), &PRICES).assumptions[0].contains("costs 36.00 USD an hour"));
        // What moves nothing stands behind what does.
        let free = Prices { usd_per_peer_hour: 0.0, ..PRICES };
        let assumptions = found(&work(), &free).assumptions;
        let place = |words: &str| assumptions.iter().position(|sentence| sentence.contains(words)).unwrap();
        assert!(place("is paid 0.000") > place("Sending") && place("Sending") > place("Electricity"));
        assert!(assumptions.iter().any(|sentence| sentence.contains("25.0% are not in the weights")));
    }

    #[test]
    fn a_sway_is_what_the_closed_form_says() {
        let ours = usd(&work(), &PRICES);
        let swing = swayed(&assumptions(&work(), &PRICES, &rented())[0], &work(), &PRICES, &rented());
        assert!(near(swing[0], ours / (0.7 * 60.0)) && near(swing[1], ours / (1.3 * 60.0)), "{swing:?}");
    }

    #[test]
    fn what_perished_is_paid_for_and_does_not_count() {
        let mut work = work();
        let before = found(&work, &PRICES);
        work.tokens *= 0.5;
        let after = found(&work, &PRICES);
        assert!(near(after.usd_per_billion_tokens, 2.0 * before.usd_per_billion_tokens));
        assert!(near(after.reference_usd_per_billion_tokens, before.reference_usd_per_billion_tokens));
    }

    #[test]
    fn without_any_work_there_is_nothing_to_compare() {
        let idle = Work { tokens: 0.0, ..work() };
        assert_eq!(cost(&idle, &PRICES, &rented()), None);
    }

    #[test]
    fn rows_are_summed_by_device_and_an_unknown_one_is_named() {
        let row = |device: &str| PeerRow { device: device.into(), alive_s: 10.0, busy_s: 4.0, ..PeerRow::default() };
        let watts = |device: &str| (device != "odd").then_some(Watts { busy: 1.0, idle: 1.0 });
        let found = uses(&[row("a"), row("b"), row("a")], watts).unwrap();
        assert_eq!((found[0].alive_s, found[0].busy_s, found[1].alive_s), (20.0, 8.0, 10.0));
        assert_eq!(uses(&[row("odd")], watts), Err(Unknown { device: "odd".into() }));
    }
}
