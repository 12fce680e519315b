//! How a tensor travels over a link: the codec, and zstd or not, of the least expected time within the manifest's error budget.
//!
//! In: what was measured of the link, of the codecs on this machine, and of the tensors themselves. Out: a [`Coding`], and news
//! when it is another than before. It measures nothing, and knows one direction of one stage.
//!
//! The time is what a micro-batch waits: encoding, the link and decoding; the link works while the worker computes, so of its
//! time only what is longer than a micro-batch of the worker counts. A link that nobody measured, and lock-step, whose bits must
//! not depend on clocks, use the first codec of the manifest.

use std::{collections::BTreeMap, time::Duration};

use skein_protocol::{
    PeerId,
    codec::{self, Sample, coded_len, nominal_error, tag},
    run::{Codec, Codecs, Entropy},
};

use crate::job::Coding;

/// What was measured of the way to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkSpeed {
    /// While something was on its way.
    pub bytes_per_s: u64,
    pub round_trip: Duration,
}

/// Seconds a value that the work of one codec takes on one core.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    pub encode: f64,
    pub decode: f64,
    /// zstd on what was encoded, and back.
    pub pack: f64,
    pub unpack: f64,
}

/// Of each codec, in the order of [`codec::ALL`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs(pub [Cost; codec::ALL.len()]);

impl Default for Costs {
    /// One core of a server with AVX-512 (`skein bench codec`).
    fn default() -> Self {
        let cost = |encode: f64, decode: f64, pack: f64, unpack: f64| Cost {
            encode: encode * 1e-9,
            decode: decode * 1e-9,
            pack: pack * 1e-9,
            unpack: unpack * 1e-9,
        };
        Costs([
            cost(0.4, 0.4, 3.3, 3.6),
            cost(0.3, 0.3, 3.3, 0.9),
            cost(0.3, 0.3, 0.8, 0.9),
            cost(0.4, 0.3, 0.9, 0.5),
            cost(0.7, 0.4, 0.6, 0.4),
            cost(0.3, 0.3, 2.2, 1.5),
        ])
    }
}

/// What one side knows when it encodes a tensor.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Numbers in the tensor.
    pub values: u64,
    /// Nothing before the first measurement.
    pub link: Option<LinkSpeed>,
    /// Time of the worker for a micro-batch of this stage; zero while unknown.
    pub period: Duration,
}

/// The codec of a link has changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    pub coding: Coding,
    pub link: LinkSpeed,
    /// Expected time of a tensor, and what it would be as before.
    pub takes: Duration,
    pub took: Duration,
}

/// A codec that is not the first must save this part of the time.
const WORTH: f64 = 0.15;
/// Of codecs whose times differ by less than this part, the one that the manifest names first is used.
const ALIKE: f64 = 0.05;
/// Tensors in a row that want the same change before it is made: one odd measurement changes nothing.
const AGAIN: u32 = 6;
/// zstd saves at least this, in thousandths, where the worker uses it at all.
const SAVED_MIN: u16 = 50;
/// Without zstd on a link, one tensor of so many is given to it, so that what it saves stays known.
const TRY_EVERY: u32 = 64;
/// A codec that lost too much is tried again after so many tensors.
const LAPSES: u32 = 512;

/// Expected seconds of one tensor.
pub fn expected(coding: Coding, facts: &Facts, link: LinkSpeed, costs: &Costs, sample: Sample) -> f64 {
    let cost = costs.0[usize::from(tag(coding.codec))];
    let plain = coded_len(facts.values, coding.codec).unwrap_or(u64::MAX) as f64;
    let saved = sample.saved.filter(|saved| coding.zstd && *saved > SAVED_MIN);
    let bytes = plain * (1.0 - f64::from(saved.unwrap_or(0).min(1000)) / 1000.0);
    let work = cost.encode + cost.decode + if saved.is_some() { cost.pack + cost.unpack } else { 0.0 };
    let link = bytes / link.bytes_per_s.max(1) as f64 + link.round_trip.as_secs_f64() / 2.0;
    facts.values as f64 * work + link.max(facts.period.as_secs_f64())
}

/// Chooses for the tensors that one stage sends in one direction.
#[derive(Clone, Debug)]
pub struct Chooser {
    /// In the manifest's order.
    allowed: Vec<Codec>,
    zstd: bool,
    error_max: f64,
    /// What was last measured of the tensors in each codec.
    samples: [Sample; codec::ALL.len()],
    links: BTreeMap<PeerId, Choice>,
    /// Tensors so far.
    chosen: u32,
}

/// One link.
#[derive(Clone, Copy, Debug)]
struct Choice {
    coding: Coding,
    /// A change that the last tensors wanted, and how many.
    wanted: Option<(Coding, u32)>,
    /// Tensors since zstd was tried.
    since: u32,
}

impl Chooser {
    /// `list`: of one direction. With `fixed`, only its first codec is used.
    pub fn new(list: &[Codec], codecs: &Codecs, fixed: bool) -> Self {
        let most = if fixed { 1 } else { list.len() };
        Chooser {
            allowed: list.iter().copied().take(most).collect(),
            zstd: codecs.entropy == Entropy::Zstd,
            error_max: codecs.error_max,
            samples: Default::default(),
            links: BTreeMap::new(),
            chosen: 0,
        }
    }

    /// What a tensor in `coding` showed.
    pub fn measured(&mut self, coding: Coding, sample: Sample) {
        let known = &mut self.samples[usize::from(tag(coding.codec))];
        *known = Sample { saved: sample.saved.or(known.saved), error: sample.error.or(known.error) };
    }

    /// How a tensor travels whose way is not known.
    pub fn unmeasured(&self) -> Coding {
        self.options().next().unwrap_or(Coding { codec: Codec::F32, zstd: self.zstd })
    }

    /// A codec that once lost too much is not used, and so not sampled again: it is given another chance.
    fn forgive(&mut self) {
        for codec in self.allowed.iter().filter(|codec| nominal_error(**codec) <= self.error_max) {
            let error = &mut self.samples[usize::from(tag(*codec))].error;
            *error = error.filter(|error| f64::from(*error) / 1e6 <= self.error_max);
        }
    }

    /// Nothing more is sent there.
    pub fn forget(&mut self, peer: PeerId) {
        self.links.remove(&peer);
    }

    /// How the next tensor to `to` travels, and whether that is news.
    pub fn choose(&mut self, to: PeerId, facts: &Facts, costs: &Costs) -> (Coding, Option<Change>) {
        self.chosen = self.chosen.wrapping_add(1);
        if self.chosen.is_multiple_of(LAPSES) {
            self.forgive();
        }
        let first = self.unmeasured();
        let now = *self.links.entry(to).or_insert(Choice { coding: first, wanted: None, since: 0 });
        // What is used must stay within the budget, whatever it takes.
        let stays = self.options().any(|option| option.codec == now.coding.codec);
        let Some(link) = facts.link else {
            let coding = if stays { now.coding } else { first };
            return (coding, None);
        };
        let time = |coding: Coding| expected(coding, facts, link, costs, self.samples[usize::from(tag(coding.codec))]);
        let wanted = self.wanted(time).unwrap_or(first);
        let better = self.is_before(wanted, now.coding) || time(now.coding) * (1.0 - WORTH) > time(wanted);
        let streak = match now.wanted {
            Some((coding, streak)) if coding == wanted => streak + 1,
            _ => 1,
        };
        let mut next = now;
        let mut change = None;
        if wanted == now.coding || (stays && !better) {
            next.wanted = None;
        } else if stays && streak < AGAIN {
            next.wanted = Some((wanted, streak));
        } else {
            next = Choice { coding: wanted, wanted: None, since: 0 };
            let (takes, took) = (seconds(time(wanted)), seconds(time(now.coding)));
            change = Some(Change { coding: wanted, link, takes, took });
        }
        next.since = if next.coding.zstd { 0 } else { next.since + 1 };
        let due = self.zstd && next.since >= TRY_EVERY;
        if due {
            next.since = 0;
        }
        self.links.insert(to, next);
        (Coding { zstd: next.coding.zstd || due, ..next.coding }, change)
    }

    /// What is allowed and within the budget: each codec with zstd, where the run has it, and without.
    fn options(&self) -> impl Iterator<Item = Coding> + '_ {
        let within = |codec: &Codec| {
            let measured = self.samples[usize::from(tag(*codec))].error.map(|error| f64::from(error) / 1e6);
            measured.unwrap_or(nominal_error(*codec)) <= self.error_max
        };
        let zstd: &[bool] = if self.zstd { &[true, false] } else { &[false] };
        let codecs = self.allowed.iter().copied().filter(within);
        codecs.flat_map(move |codec| zstd.iter().map(move |zstd| Coding { codec, zstd: *zstd }))
    }

    /// The first option that takes about as little time as the fastest.
    fn wanted(&self, time: impl Fn(Coding) -> f64) -> Option<Coding> {
        let least = self.options().map(&time).fold(f64::INFINITY, f64::min);
        self.options().find(|option| time(*option) <= least * (1.0 + ALIKE))
    }

    /// Whether the manifest names the codec of `a` before that of `b`.
    fn is_before(&self, a: Coding, b: Coding) -> bool {
        let at = |coding: Coding| self.allowed.iter().position(|codec| *codec == coding.codec);
        at(a) < at(b)
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TO: PeerId = PeerId([7; 32]);
    /// A micro-batch of 4 x 512 tokens, 512 wide: 4 MiB as f32.
    const VALUES: u64 = 1 << 20;

    fn link(megabits: u64) -> LinkSpeed {
        LinkSpeed { bytes_per_s: megabits * 125_000, round_trip: Duration::from_millis(20) }
    }

    fn facts(megabits: u64, period_ms: u64) -> Facts {
        Facts { values: VALUES, link: Some(link(megabits)), period: Duration::from_millis(period_ms) }
    }

    fn chooser(list: &[Codec], error_max: f64, entropy: Entropy) -> Chooser {
        let codecs = Codecs { forward: vec![], backward: vec![], error_feedback: false, entropy, error_max };
        Chooser::new(list, &codecs, false)
    }

    /// What is used after enough tensors over a link, and how often it changed.
    fn settled(chooser: &mut Chooser, facts: &Facts) -> (Coding, usize) {
        let chosen: Vec<_> = (0..50).map(|_| chooser.choose(TO, facts, &Costs::default())).collect();
        (chosen[49].0, chosen.iter().filter(|(_, change)| change.is_some()).count())
    }

    fn codec(megabits: u64, period_ms: u64, error_max: f64) -> Codec {
        settled(&mut chooser(&codec::ALL, error_max, Entropy::None), &facts(megabits, period_ms)).0.codec
    }

    #[test]
    fn a_link_takes_what_is_fastest_within_the_budget() {
        for megabits in [10, 100, 1000] {
            assert_eq!(codec(megabits, 0, 1e-5), Codec::F32);
            assert_eq!(codec(megabits, 0, 0.001), Codec::Int16);
            assert_eq!(codec(megabits, 0, 0.002), Codec::Bf16);
            assert_eq!(codec(megabits, 0, 0.02), Codec::Int8);
            assert_eq!(codec(megabits, 0, 0.1), Codec::Int4);
            assert_eq!(codec(megabits, 0, 1.0), Codec::Sparse);
        }
    }

    #[test]
    fn what_the_worker_hides_is_not_worth_an_error() {
        // 4 MiB: 34 ms at 1 Gbit/s, 336 at 100 Mbit/s, 3.4 s at 10 Mbit/s.
        assert_eq!(codec(1000, 100, 0.02), Codec::F32, "it is there before the next is computed");
        assert_eq!(codec(100, 200, 0.02), Codec::Bf16, "half of it is");
        assert_eq!(codec(100, 100, 0.02), Codec::Int8);
        assert_eq!(codec(10, 100, 0.02), Codec::Int8);
        assert_eq!(codec(10, 1000, 0.1), Codec::Int8, "as few bytes as needed, no fewer");
        assert_eq!(codec(10, 100, 0.1), Codec::Int4);
    }

    #[test]
    fn zstd_is_used_where_it_saves_bytes_and_time() {
        let list = [Codec::Bf16];
        let with = |saved: Option<u16>, megabits: u64| {
            let mut chooser = chooser(&list, 0.02, Entropy::Zstd);
            chooser.measured(Coding { codec: Codec::Bf16, zstd: true }, Sample { saved, error: None });
            settled(&mut chooser, &facts(megabits, 0)).0.zstd
        };
        assert!(with(None, 100), "nothing is known before it was tried");
        assert!(with(Some(350), 10) && with(Some(350), 100));
        assert!(!with(Some(350), 10_000), "the link is faster than zstd");
        let list = chooser(&list, 0.02, Entropy::None);
        assert!(list.options().all(|option| !option.zstd), "the run has none");
    }

    #[test]
    fn a_link_without_zstd_tries_it_again_now_and_then() {
        let mut chooser = chooser(&[Codec::Bf16], 0.02, Entropy::Zstd);
        chooser.measured(Coding { codec: Codec::Bf16, zstd: true }, Sample { saved: Some(350), error: None });
        let facts = facts(10_000, 0);
        let tried = (0..640).filter(|_| chooser.choose(TO, &facts, &Costs::default()).0.zstd).count();
        // Until the change is made, then one of 64.
        assert!((10..=16).contains(&tried), "{tried}");
    }

    #[test]
    fn what_a_codec_loses_of_these_tensors_counts_not_what_it_should_lose() {
        let mut chooser = chooser(&codec::ALL, 0.02, Entropy::None);
        assert_eq!(settled(&mut chooser, &facts(10, 0)).0.codec, Codec::Int8);
        // Activations with few large values among small ones.
        chooser.measured(Coding { codec: Codec::Int8, zstd: false }, Sample { saved: None, error: Some(40_000) });
        let (coding, change) = chooser.choose(TO, &facts(10, 0), &Costs::default());
        assert_eq!((coding.codec, change.is_some()), (Codec::Bf16, true), "at once");
        assert_eq!(
            chooser.choose(PeerId([8; 32]), &Facts { link: None, ..facts(10, 0) }, &Costs::default()).0.codec,
            Codec::F32
        );
    }

    #[test]
    fn an_unmeasured_link_and_a_run_in_lock_step_use_the_first() {
        let unknown = Facts { link: None, ..facts(10, 0) };
        let mut free = chooser(&[Codec::Bf16, Codec::Int8], 0.02, Entropy::None);
        assert_eq!(settled(&mut free, &unknown), (Coding { codec: Codec::Bf16, zstd: false }, 0));
        let codecs = Codecs {
            forward: vec![],
            backward: vec![],
            error_feedback: false,
            entropy: Entropy::None,
            error_max: 0.02,
        };
        let mut fixed = Chooser::new(&[Codec::Bf16, Codec::Int8], &codecs, true);
        assert_eq!(settled(&mut fixed, &facts(10, 0)).0.codec, Codec::Bf16);
        let mut none = chooser(&[Codec::Int4], 0.02, Entropy::None);
        assert_eq!(settled(&mut none, &facts(10, 0)).0.codec, Codec::F32, "nothing else is within the budget");
    }

    #[test]
    fn a_change_is_made_once_and_says_what_it_saves() {
        let mut chooser = chooser(&[Codec::Bf16, Codec::Int8], 0.02, Entropy::None);
        let facts = facts(100, 0);
        let changes: Vec<_> = (0..50).filter_map(|_| chooser.choose(TO, &facts, &Costs::default()).1).collect();
        let [change] = changes[..] else { panic!("{changes:?}") };
        assert_eq!((change.coding.codec, change.link), (Codec::Int8, link(100)));
        assert!(change.takes < change.took * 2 / 3, "{change:?}");
        assert_eq!(settled(&mut chooser, &facts), (change.coding, 0));
        chooser.forget(TO);
        assert_eq!(settled(&mut chooser, &facts).1, 1, "another connection begins anew");
    }

    #[test]
    fn a_link_that_wavers_does_not_make_its_codec_flap() {
        // Where 33 ms of worker hide most of what bf16 takes: at 580 Mbit/s int8 begins to be worth it, at 680 bf16 is as fast.
        let start = || chooser(&[Codec::Bf16, Codec::Int8], 0.02, Entropy::None);
        for (low, high) in [(560, 640), (450, 700), (100, 1000)] {
            let mut chooser = start();
            let changes = (0..600u64).filter(|i| {
                let megabits = if i % 4 < 2 { low } else { high };
                chooser.choose(TO, &facts(megabits, 33), &Costs::default()).1.is_some()
            });
            assert_eq!(changes.count(), 0, "between {low} and {high} Mbit/s every two tensors");
        }
        let mut chooser = start();
        assert_eq!(settled(&mut chooser, &facts(630, 33)).0.codec, Codec::Bf16, "it does not save enough");
        assert_eq!(settled(&mut chooser, &facts(550, 33)), (Coding { codec: Codec::Int8, zstd: false }, 1));
        assert_eq!(settled(&mut chooser, &facts(630, 33)).0.codec, Codec::Int8, "it would not be as fast");
        assert_eq!(settled(&mut chooser, &facts(1000, 33)), (Coding { codec: Codec::Bf16, zstd: false }, 1));
    }

    proptest! {
        #[test]
        fn what_is_chosen_is_allowed_and_never_much_slower_than_the_first(
            megabits in 1u64..20_000, period_ms in 0u64..500, error_max in 0.0f64..1.0, entropy in any::<bool>(), shuffle in 0usize..5,
        ) {
            let mut list = codec::ALL;
            list.rotate_left(shuffle);
            let entropy = if entropy { Entropy::Zstd } else { Entropy::None };
            let mut chooser = chooser(&list, error_max, entropy);
            let facts = facts(megabits, period_ms);
            let (coding, changes) = settled(&mut chooser, &facts);
            prop_assert!(nominal_error(coding.codec) <= error_max);
            prop_assert!(changes <= 1);
            let time = |coding| expected(coding, &facts, link(megabits), &Costs::default(), Sample::default());
            for option in chooser.options() {
                prop_assert!(time(coding) * (1.0 - WORTH) <= time(option) * (1.0 + ALIKE) + 1e-9, "{:?} {:?}", coding, option);
            }
        }
    }
}
