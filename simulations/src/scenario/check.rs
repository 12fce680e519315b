//! What of a scenario does not go together. In: the document and the files that it names. Out: the ground on which its world is
//! made (manifest, machines, accesses, regions, course of churn), or every contradiction in one sentence with its line.

use std::collections::BTreeMap;

use skein_pipeline::model::cost;
use skein_protocol::{
    Manifest,
    run::{self, AveragingRule},
    wire::limits::BODY_MAX,
};

use super::{
    Document, Fault, FidelityChoice, Files, Places, Problem, Refused, Scenario, What,
    keys::Kind,
    manifest::{self, fewest_stages, largest_stage},
    problem::{unknown, unread},
};
use crate::{
    engine::{SECOND, Time},
    outcome::{Fidelity, Learning},
    report::span,
    world::{
        access::Accesses,
        churn::Preset,
        devices::{self, Machine, Probe},
        prices::Prices,
        regions::{self, Regions},
        trace::Trace,
        unit,
    },
};

/// Peers that are followed frame by frame.
pub const PROTOCOL_PEERS_MAX: u64 = 2000;

/// Pairs of peers that one fault may part: each costs a block and a healing.
pub const PAIRS_MAX: u64 = 200_000;

/// Parameters that are really trained within a simulation.
const LEARNING_MAX: u64 = 5_000_000;

/// What a scenario's world is made of, before anything is drawn.
#[derive(Clone, Debug)]
pub struct Ground {
    /// Without an owner.
    pub manifest: Manifest,
    pub fidelity: Fidelity,
    pub duration: Time,
    /// Machines by the scenario's name for them, and their shares.
    pub machines: BTreeMap<String, Machine>,
    pub shares: Vec<(String, f64)>,
    pub accesses: Accesses,
    pub regions: Regions,
    pub preset: Preset,
    pub prices: Prices,
    /// What about this is not as it looks. Sentences.
    pub remarks: Vec<String>,
}

/// # Errors
/// All contradictions, in the order of the text.
pub fn check(document: &Document, files: &Files) -> Result<Ground, Refused> {
    let mut found = Found { document, scenario: &document.scenario, list: Vec::new(), remarks: Vec::new() };
    let duration = found.duration();
    let (machines, shares) = found.machines(files);
    let preset = found.preset(files);
    let prices = found.prices(files);
    let regions = regions::matrix(&found.scenario.network.regions).expect("names of matrices are checked when read");
    let crowd = found.faults(duration);
    let fidelity = found.fidelity(crowd);
    if fidelity == Fidelity::Protocol {
        found.pairs();
    }
    let manifest = found.manifest(&machines, &shares, fidelity);
    if let Some(manifest) = &manifest {
        found.product(manifest, fidelity);
        found.places(manifest);
        found.learning(manifest, fidelity);
        found.unfollowed(fidelity);
    }
    match (manifest, found.list.is_empty()) {
        (Some(manifest), true) => Ok(Ground {
            manifest,
            fidelity,
            duration,
            machines,
            shares,
            accesses: Accesses::table(),
            regions,
            preset,
            prices,
            remarks: found.remarks,
        }),
        _ => {
            found.list.sort_by(|a, b| a.place.cmp(&b.place));
            Err(Refused(found.list))
        }
    }
}

struct Found<'d> {
    document: &'d Document,
    scenario: &'d Scenario,
    list: Vec<Problem>,
    remarks: Vec<String>,
}

impl Found<'_> {
    fn wrong(&mut self, key: &str, what: impl Into<String>) {
        self.list.push(self.document.problem(key, what.into()));
    }

    fn duration(&mut self) -> Time {
        let duration = time(&self.scenario.simulate.duration);
        if duration == 0 {
            self.wrong("simulate.duration", "is 0: nothing would happen");
        }
        if time(&self.scenario.peers.arrive_within) > duration {
            self.wrong("peers.arrive_within", "is longer than simulate.duration: some would never come");
        }
        duration
    }

    fn file<'f>(&mut self, files: &'f Files, key: &str, name: &str) -> Option<&'f str> {
        let text = files.get(name).map(String::as_str);
        if text.is_none() {
            self.wrong(key, unread(name));
        }
        text
    }

    /// Machines that some peer has, and their shares.
    fn machines(&mut self, files: &Files) -> (BTreeMap<String, Machine>, Vec<(String, f64)>) {
        let table = devices::table();
        let mut machines = BTreeMap::new();
        let mut shares = Vec::new();
        for (name, share) in &self.scenario.peers.devices {
            let key = format!("peers.devices.{name}");
            let machine = match Kind::Devices.is_file(name) {
                false => table.get(name).cloned(),
                true => match self.file(files, &key, name).map(Probe::read) {
                    Some(Ok(probe)) => Some(probe.machine()),
                    Some(Err(what)) => {
                        self.wrong(&key, format!("{name} {what}"));
                        None
                    }
                    None => None,
                },
            };
            if let Some(machine) = machine.filter(|_| *share > 0.0) {
                machines.insert(name.clone(), machine);
                shares.push((name.clone(), *share));
            }
        }
        (machines, shares)
    }

    fn preset(&mut self, files: &Files) -> Preset {
        let churn = &self.scenario.churn;
        match (churn.preset.as_str(), churn.preset.strip_prefix("trace:")) {
            ("spot", _) => Preset::Spot,
            ("volunteer", _) => Preset::Volunteer,
            ("night", _) => Preset::Night,
            ("bamboo", _) => Preset::Bamboo { hourly: churn.hourly },
            (_, Some(name)) => self.trace(files, name),
            (_, None) => Preset::None,
        }
    }

    fn trace(&mut self, files: &Files, name: &str) -> Preset {
        let Some(text) = self.file(files, "churn.preset", name) else { return Preset::None };
        match Trace::read(text) {
            Ok(trace) => {
                let (ids, count) = (trace.ids.len(), self.scenario.peers.count);
                if ids > count as usize {
                    let what = format!("is {count}, and {name} has {ids} peers: write peers.count = {ids}");
                    self.wrong("peers.count", what);
                }
                Preset::Trace(trace)
            }
            Err(bad) => {
                self.wrong("churn.preset", format!("{name}:{} {}", bad.line, bad.what));
                Preset::None
            }
        }
    }

    fn prices(&mut self, files: &Files) -> Prices {
        let cost = &self.scenario.cost;
        let prices = match cost.prices.as_str() {
            "" => Prices::table(),
            name => match self.file(files, "cost.prices", name).map(Prices::read) {
                Some(Ok(prices)) => prices,
                Some(Err(what)) => {
                    self.wrong("cost.prices", format!("{name} {what}"));
                    return Prices::table();
                }
                None => return Prices::table(),
            },
        };
        if !prices.machine.contains_key(&cost.reference) {
            let known: Vec<&String> = prices.machine.keys().collect();
            let what = unknown(&cost.reference, &known);
            self.wrong("cost.reference", what);
        }
        prices
    }

    /// What is written and makes no difference.
    fn unfollowed(&mut self, fidelity: Fidelity) {
        let Scenario { adversaries, network, .. } = self.scenario;
        let lies = adversaries.share > 0.0;
        if fidelity == Fidelity::Fleet && (lies || network.relayed > 0.0) {
            self.remarks.push("Liars and relays are not followed at fleet fidelity.".into());
        } else if lies {
            self.remarks.push("Nobody is banned here: real peers refuse a liar whom they caught often enough.".into());
        }
    }

    /// Newcomers of all crowds together.
    fn faults(&mut self, duration: Time) -> u64 {
        let count = u64::from(self.scenario.peers.count);
        let mut crowd = 0;
        for (number, fault) in self.scenario.faults.iter().enumerate() {
            let key = |name: &str| format!("fault.{number}.{name}");
            let (at, lasts) = (time(&fault.at), time(&fault.lasts));
            if at >= duration {
                let in_words = |at: Time| span(at as f64 / SECOND as f64);
                self.remarks.push(format!(
                    "fault.{number}, {} at {}, never happens: the simulation ends at {}.",
                    fault.what.name(),
                    in_words(at),
                    in_words(duration)
                ));
            }
            let whom = befalls(fault, count);
            if fault.peers >= 1.0 && fault.peers.fract() != 0.0 {
                let what = format!("is {}: a whole number of peers, or a share below 1", fault.peers);
                self.wrong(&key("peers"), what);
            } else if whom == 0 {
                self.wrong(&key("peers"), "is 0: it would befall nobody");
            } else if fault.what == What::Crowd {
                crowd += whom;
                if fault.stage.is_some() {
                    self.wrong(&key("stage"), "says where a crowd goes: newcomers choose by themselves");
                }
            } else if whom > count {
                self.wrong(&key("peers"), format!("is {whom}, and peers.count = {count}"));
            }
            let needs = matches!(fault.what, What::Slow | What::Latency);
            if needs && fault.factor <= 0.0 {
                self.wrong(&key("factor"), format!("is {}, and must be above 0", fault.factor));
            }
            if fault.what == What::Slow && fault.factor > 1.0 {
                let what =
                    format!("is {}: of slow it is what is left of the speed, above 0 and at most 1", fault.factor);
                self.wrong(&key("factor"), what);
            }
            let passes = !matches!(fault.what, What::Die | What::Leave | What::Crowd);
            if passes && lasts == 0 {
                self.wrong(&key("lasts"), "is 0: it would be over at once");
            }
        }
        crowd
    }

    /// Each pair of peers that a fault parts is parted and joined by itself, frame by frame.
    fn pairs(&mut self) {
        let count = u64::from(self.scenario.peers.count);
        for (number, fault) in self.scenario.faults.iter().enumerate() {
            let whom = befalls(fault, count);
            let parts = matches!(fault.what, What::Partition | What::Mute | What::Swizzle) && whom <= count;
            let pairs = if parts { whom * (count - whom + u64::from(self.scenario.peers.feeders)) } else { 0 };
            if pairs > PAIRS_MAX {
                let what =
                    format!("parts {pairs} pairs, at most {PAIRS_MAX}: fewer peers, or simulate.fidelity = \"fleet\"");
                self.wrong(&format!("fault.{number}.peers"), what);
            }
        }
    }

    fn fidelity(&mut self, crowd: u64) -> Fidelity {
        let peers = &self.scenario.peers;
        let all = u64::from(peers.count) + u64::from(peers.feeders) + crowd;
        match self.scenario.simulate.fidelity {
            FidelityChoice::Fleet => Fidelity::Fleet,
            FidelityChoice::Auto if all > PROTOCOL_PEERS_MAX => Fidelity::Fleet,
            FidelityChoice::Auto => Fidelity::Protocol,
            FidelityChoice::Protocol => {
                if all > PROTOCOL_PEERS_MAX {
                    let what = format!(
                        "is protocol, which follows {PROTOCOL_PEERS_MAX} peers at most, and there are {all}: \
                         write simulate.fidelity = \"fleet\", or peers.count = {} or less",
                        PROTOCOL_PEERS_MAX.saturating_sub(crowd + u64::from(peers.feeders))
                    );
                    self.wrong("simulate.fidelity", what);
                }
                Fidelity::Protocol
            }
        }
    }

    /// The Manifest in as many stages as were asked for, if they fit somewhere.
    fn manifest(
        &mut self,
        machines: &BTreeMap<String, Machine>,
        shares: &[(String, f64)],
        fidelity: Fidelity,
    ) -> Option<Manifest> {
        let Scenario { run, peers, .. } = self.scenario;
        let layers = run.model.sizes().layers;
        let count = peers.count;
        let sizes = run.model.sizes();
        if sizes.heads == 0 || !sizes.hidden.is_multiple_of(sizes.heads) {
            self.wrong("run.model", format!("has hidden = {}, no multiple of heads = {}", sizes.hidden, sizes.heads));
            return None;
        }
        let gives = |name: &str| memory_of(&machines[name], peers.memory_share);
        let largest = machines.keys().map(|name| (gives(name), name)).max()?;
        if run.stages > 0 {
            let stages = u32::from(run.stages);
            if stages > count {
                self.wrong("run.stages", format!("is {stages}, and peers.count = {count}: each stage needs a peer"));
            }
            if stages > layers {
                self.wrong(
                    "run.stages",
                    format!("is {stages}, and the model has {layers} layers: each stage needs one"),
                );
                return None;
            }
            let manifest = manifest::of(self.scenario, run.stages)?;
            let (stage, needs) = largest_stage(&manifest);
            if needs > largest.0 {
                let what = format!(
                    "is {stages}: stage {stage} needs {}, and {}, the largest device here, gives {} \
                     (peers.memory_share = {}): more stages, or larger devices",
                    gib(needs),
                    largest.1,
                    gib(largest.0),
                    peers.memory_share
                );
                self.wrong("run.stages", what);
            }
            return Some(manifest);
        }
        // The smallest device that is at least a quarter of all; where all are rarer, the largest.
        let common = shares.iter().filter(|(_, share)| *share >= 0.25).map(|(name, _)| (gives(name), name)).min();
        let most = layers.min(count).min(256) as u16;
        let fits = common.and_then(|(memory, name)| Some((fewest_stages(self.scenario, memory, most)?, name)));
        let fits = fits.or_else(|| Some((fewest_stages(self.scenario, largest.0, most)?, largest.1)));
        let Some((manifest, name)) = fits else {
            let least = manifest::of(self.scenario, most).map_or((0, 0), |manifest| largest_stage(&manifest));
            let why = if u32::from(most) < layers && fidelity == Fidelity::Protocol {
                "more peers, or larger devices"
            } else {
                "larger devices, a larger peers.memory_share, or smaller micro-batches"
            };
            let what = format!(
                "in {most} stages needs {} at stage {}, and {}, the largest device here, gives {} \
                 (peers.memory_share = {}): {why}",
                gib(least.1),
                least.0,
                largest.1,
                gib(largest.0),
                peers.memory_share
            );
            self.wrong("run.model", what);
            return None;
        };
        self.remarks.push(format!("{} stages: as few as fit {name} ({}).", manifest.stages.count, gib(gives(name))));
        Some(manifest)
    }

    /// What the product itself says of the Manifest.
    fn product(&mut self, manifest: &Manifest, fidelity: Fidelity) {
        for run::Problem { key, what, severity } in run::check(manifest) {
            let (key, what) = (translated(key), in_words(&what));
            if severity == run::Severity::Remark {
                continue;
            }
            if what.contains("averaging rounds send") {
                self.rounds(manifest, fidelity);
                continue;
            }
            self.wrong(&key, what);
        }
        let averages = manifest.averaging.rule != AveragingRule::None && !manifest.lock_step();
        if !averages && u32::from(manifest.stages.count) < self.scenario.peers.count && manifest.staleness.bound > 0 {
            self.remarks.push("run.averaging_every = 0: the replicas of a stage never agree.".into());
        }
    }

    /// The product reserves the longest form that a receiver takes; what would really be sent may still fit one message.
    fn rounds(&mut self, manifest: &Manifest, fidelity: Fidelity) {
        let sent = (0..manifest.stages.count).map(|stage| cost::round_bytes(manifest, stage)).max().unwrap_or(0);
        if fidelity == Fidelity::Protocol && sent > BODY_MAX {
            let what = format!(
                "leaves a stage so large that an averaging round sends {}, and one message carries {}: more stages, \
                 run.averaging_every = 0, or simulate.fidelity = \"fleet\"",
                gib(sent),
                gib(BODY_MAX)
            );
            return self.wrong("run.stages", what);
        }
        self.remarks.push(format!(
            "Averaging rounds of up to {}: the program of today refuses to train stages of this size, since a round \
             has to fit one message of {} in its longest form.",
            gib(sent),
            gib(BODY_MAX)
        ));
    }

    /// Stages that faults name.
    fn places(&mut self, manifest: &Manifest) {
        let stages = manifest.stages.count;
        for (number, fault) in self.scenario.faults.iter().enumerate() {
            let Some(stage) = fault.stage.filter(|_| fault.what != What::Crowd) else { continue };
            let key = format!("fault.{number}.stage");
            if self.scenario.peers.places != Places::Even {
                let what = "needs peers.places = \"even\": planned peers choose their stages themselves, later";
                self.wrong(&key, what);
            } else if stage >= stages {
                self.wrong(&key, format!("is {stage}, and the stages are 0 to {}", stages - 1));
            } else if fault.peers >= 1.0 {
                let there = at_stage(self.scenario.peers.count, stages, stage);
                if befalls(fault, u64::from(there)) > u64::from(there) {
                    let what = format!("is {}, and {there} peers serve stage {stage}", fault.peers);
                    self.wrong(&format!("fault.{number}.peers"), what);
                }
            }
        }
    }

    fn learning(&mut self, manifest: &Manifest, fidelity: Fidelity) {
        if self.scenario.learning != Learning::Real {
            return;
        }
        let parameters = manifest::parameters(manifest);
        if fidelity == Fidelity::Fleet {
            self.wrong("learning", "is real, and at fleet fidelity nothing is computed: write learning = \"curve\"");
        } else if parameters > LEARNING_MAX {
            let what = format!(
                "is real, and the model has {} million parameters, of which {} million could be trained here: \
                 write learning = \"curve\", or run.model = \"demo\" or \"tiny\"",
                parameters / 1_000_000,
                LEARNING_MAX / 1_000_000
            );
            self.wrong("learning", what);
        }
    }
}

/// Bytes that a machine gives.
pub fn memory_of(machine: &Machine, share: f64) -> u64 {
    (machine.memory as f64 * share) as u64
}

/// How many of `count` a fault befalls: a number, or a share, then at least one.
pub fn befalls(fault: &Fault, count: u64) -> u64 {
    match fault.peers {
        share if share <= 0.0 => 0,
        share if share < 1.0 => ((share * count as f64).round() as u64).max(1),
        number => number as u64,
    }
}

/// Of `count` peers that are spread evenly over `stages`, those at `stage`.
pub fn at_stage(count: u32, stages: u16, stage: u16) -> u32 {
    let (stages, stage) = (u32::from(stages), u32::from(stage));
    count / stages + u32::from(stage < count % stages)
}

/// Of a text that was checked when it was read.
pub fn time(text: &str) -> Time {
    unit::time(text).unwrap_or(0)
}

fn gib(bytes: u64) -> String {
    match bytes {
        0..0x4000_0000 => format!("{} MiB", bytes.div_ceil(1 << 20)),
        _ => format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64),
    }
}

/// The scenario's key for a key of the Manifest.
fn translated(key: &str) -> String {
    match key {
        "train.sequence" => "run.sequence".into(),
        "train.micro_batch" => "run.micro_batch".into(),
        "train.micro_batches_per_step" => "run.micro_batches_per_step".into(),
        "train.in_flight_max" => "run.in_flight_max".into(),
        "stages.count" | "stages.split" => "run.stages".into(),
        "staleness.bound" => "run.staleness_bound".into(),
        "averaging.every" => "run.averaging_every".into(),
        "averaging.codec" => "run.averaging".into(),
        "checkpoint.every" => "run.checkpoint_every".into(),
        "codecs.forward" => "run.forward".into(),
        "codecs.backward" => "run.backward".into(),
        key => key.strip_prefix("model.config.").map_or_else(|| "run".into(), |name| format!("run.model.{name}")),
    }
}

/// The Manifest's words for keys, replaced by the scenario's.
fn in_words(what: &str) -> String {
    [
        ("staleness.bound * train.micro_batches_per_step", "run.staleness_bound * run.micro_batches_per_step"),
        ("checkpoint.every", "run.checkpoint_every"),
        ("model.config.", "run.model."),
        ("stages.count", "run.stages"),
        ("staleness.bound", "run.staleness_bound"),
    ]
    .into_iter()
    .fold(what.to_string(), |what, (from, to)| what.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "question = \"?\"\n[run]\nmodel = \"demo\"\n[peers]\ncount = 12\n[simulate]\nduration = \"1 h\"\n";

    fn ground(more: &str) -> Result<Ground, Refused> {
        check(&Document::read("my.toml", &format!("{TEXT}{more}")).unwrap(), &Files::new())
    }

    #[track_caller]
    fn refused(sets: &[&str], more: &str, part: &str) {
        let mut document = Document::read("my.toml", &format!("{TEXT}{more}")).unwrap();
        for set in sets {
            document.set(set).unwrap();
        }
        let files: Files = [
            ("bad.trace".into(), "0,add,a\n1,kill,a\n".into()),
            ("big.trace".into(), (0..13).map(|id| format!("0,add,{id}\n")).collect()),
            ("bad.json".into(), "{}".into()),
            ("bad.toml".into(), "dated = 3".into()),
        ]
        .into();
        let said = check(&document, &files).expect_err(part).to_string();
        assert!(said.contains(part), "{said}\nshould say: {part}");
    }

    #[test]
    fn contradictions_are_one_sentence_with_the_line() {
        refused(
            &["stages=13", "model=7b"],
            "",
            "--set stages=13: run.stages is 13, and peers.count = 12: each stage needs",
        );
        refused(&["stages=4"], "", "is 4, and the model has 3 layers");
        refused(&["duration=0 s"], "", "simulate.duration is 0");
        refused(&["peers.arrive_within=2 h"], "", "is longer than simulate.duration");
        refused(&["model=13b", "device=rtx3060", "stages=12"], "", "run.stages is 12: stage 0 needs ");
        refused(&["model=13b", "device=rtx3060"], "", "--set model=13b: run.model in 12 stages needs ");
        refused(&["sequence=4096"], "", "run.sequence cannot be 4096");
        refused(&["run.in_flight_max=500"], "", "is above run.staleness_bound * run.micro_batches_per_step = 128");
        refused(&["run.averaging_every=300"], "", "larger than run.checkpoint_every = 200");
        refused(&["peers=3000", "fidelity=protocol"], "", "follows 2000 peers at most, and there are 3001");
        refused(&["learning=real", "model=124m", "device=a100"], "", "125 million parameters");
        refused(&["learning=real", "peers=3000"], "", "learning = \"curve\"");
        refused(&["model={ hidden = 100, layers = 4, heads = 3, ffn = 8, vocab = 256, context = 64 }"], "", "multiple");
    }

    #[test]
    fn files_that_are_wrong_say_their_own_line() {
        refused(&["churn=trace:no.trace"], "", "names a file that could not be read: no.trace");
        refused(&["churn=trace:bad.trace"], "", "bad.trace:2 says \"kill\"; allowed: add, remove");
        refused(&["churn=trace:big.trace"], "", "peers.count is 12, and big.trace has 13 peers");
        refused(&["devices={ \"bad.json\" = 1 }"], "", "bad.json is no file of skein probe: missing field");
        refused(&["cost.prices=bad.toml"], "", "bad.toml line 1");
        refused(&["cost.reference=8xa10"], "", "did you mean 8xa100?");
    }

    #[test]
    fn faults_that_cannot_be_are_refused_at_their_line() {
        let fault = |text: &str| format!("[[fault]]\n{text}");
        let wrong = refused;
        let refused = |text: &str, part: &str| wrong(&[], &fault(text), part);
        refused("at = \"1 s\"\nwhat = \"die\"\npeers = 13", "fault.0.peers is 13, and peers.count = 12");
        refused("at = \"1 s\"\nwhat = \"die\"\npeers = 2.5", "a whole number of peers, or a share below 1");
        refused("at = \"1 s\"\nwhat = \"die\"\npeers = 0", "would befall nobody");
        refused("at = \"1 s\"\nwhat = \"die\"\nstage = 1", "needs peers.places = \"even\"");
        refused("at = \"1 s\"\nwhat = \"slow\"\nfactor = 0", "must be above 0");
        refused("at = \"1 s\"\nwhat = \"slow\"\nfactor = 2", "is 2: of slow it is what is left of the speed");
        refused("at = \"1 s\"\nwhat = \"pause\"\nlasts = \"0 s\"", "over at once");
        wrong(
            &["peers.places=even", "stages=3"],
            &fault("at = \"1 s\"\nwhat = \"die\"\nstage = 3"),
            "the stages are 0 to 2",
        );
        wrong(&["peers=1900"], &fault("at = \"1 s\"\nwhat = \"partition\"\npeers = 0.5"), "pairs, at most");
    }

    #[test]
    fn fidelity_follows_the_number_of_peers() {
        assert_eq!(ground("").unwrap().fidelity, Fidelity::Protocol);
        let crowd = "[[fault]]\nat = \"1 s\"\nwhat = \"crowd\"\npeers = 2000";
        assert_eq!(ground(crowd).unwrap().fidelity, Fidelity::Fleet);
    }

    #[test]
    fn many_pairs_are_parted_among_peers_that_are_flows() {
        let fault = "[[fault]]\nat = \"1 s\"\nwhat = \"partition\"\npeers = 0.5";
        let mut document = Document::read("my.toml", &format!("{TEXT}{fault}")).unwrap();
        document.set("peers=3000").unwrap();
        let ground = check(&document, &Files::new()).map(|ground| ground.fidelity);
        assert_eq!(ground.expect("auto chooses flows"), Fidelity::Fleet);
    }

    #[test]
    fn large_stages_are_refused_frame_by_frame_and_remarked_as_flows() {
        let sets = ["peers=200", "model=7b", "device=h100", "stages=16"];
        refused(&sets, "", "simulate.fidelity = \"fleet\"");
        let mut document = Document::read("my.toml", TEXT).unwrap();
        for set in sets.into_iter().chain(["fidelity=fleet"]) {
            document.set(set).unwrap();
        }
        let ground = check(&document, &Files::new()).unwrap();
        assert!(ground.remarks.iter().any(|remark| remark.contains("refuses to train stages of this size")));
    }
}
