//! What goes wrong without ending a peer, and is worth a code. In: events, pictures of the run. Out: entries of the catalogue, each
//! when a person should hear of it and not again while it lasts. It prints nothing and reads no clock: times are those of the facts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use skein_protocol::{
    Manifest, PeerId, Stage,
    event::{Event, Record},
};

use crate::{
    cli::{
        failure::Failure,
        show::{Count, Peer, Span, counted},
    },
    node::store::Remark,
    watch::{MyStageState, Phase, State},
};

/// Milliseconds until a wait is named, and until a wait that this peer ends by itself is.
const SOON: u64 = 3_000;
const LATE: u64 = 30_000;
/// So many values that are not finite within so many milliseconds are no accident of one peer.
const NOT_FINITE: usize = 3;
const NOT_FINITE_WITHIN: u64 = 60_000;
const STALE_EVERY: u64 = 60_000;
const DEFAULT_PORT: u16 = 4747;

/// Peers that a run may take data from, as its manifest says.
fn feeders(manifest: &Manifest) -> BTreeSet<PeerId> {
    manifest.run.delegates.iter().copied().chain([manifest.run.owner]).collect()
}

pub struct Troubles {
    run: String,
    bound: u32,
    feeders: BTreeSet<PeerId>,
    /// Stages without a replica: since when, and whether that was said.
    empty: BTreeMap<Stage, (u64, bool)>,
    here: BTreeSet<PeerId>,
    /// Peers that fell silent since somebody was met last; who left in good order is none of them.
    silent: BTreeSet<PeerId>,
    /// Since when nobody is here any more, and whether that was said.
    alone: Option<(u64, bool)>,
    /// Since when no feeder is known, and whether that was said.
    unfed: Option<(u64, bool)>,
    unreachable: bool,
    clocks_said: bool,
    not_finite: VecDeque<u64>,
    not_finite_said: bool,
    stale: u64,
    stale_said: Option<u64>,
}

impl Troubles {
    pub fn new(manifest: &Manifest) -> Self {
        Troubles {
            run: manifest.run.name.clone(),
            bound: manifest.staleness.bound,
            feeders: feeders(manifest),
            empty: BTreeMap::new(),
            here: BTreeSet::new(),
            silent: BTreeSet::new(),
            alone: None,
            unfed: None,
            unreachable: false,
            clocks_said: false,
            not_finite: VecDeque::new(),
            not_finite_said: false,
            stale: 0,
            stale_said: None,
        }
    }

    /// One event; what it means at once.
    pub fn hear(&mut self, record: &Record) -> Option<Failure> {
        let utc = record.utc;
        match &record.event {
            Event::StageEmpty { stage } => drop(self.empty.entry(*stage).or_insert((utc, false))),
            Event::StageBack { stage, .. } => drop(self.empty.remove(stage)),
            Event::PeerUp { peer } => {
                self.here.insert(*peer);
                self.silent.clear();
                self.alone = None;
            }
            Event::PeerLost { peer, why, .. } => self.on_lost(utc, *peer, why),
            // From its own checkpoint a peer goes on as after any stop.
            Event::Restored { version, from_seed: false, .. } if version.peer == record.peer => {}
            Event::Restored { stage, version, from_seed } => {
                let from = match from_seed {
                    true => "the run's seed".to_string(),
                    false => format!("the snapshot of own step {}", Count(version.own_step.into())),
                };
                return Some(Failure::StageRestored { stage: *stage, from });
            }
            Event::ClocksApart { peer, apart_ms } if !std::mem::replace(&mut self.clocks_said, true) => {
                return Some(Failure::ClocksApart { peer: Peer(*peer).to_string(), apart: Span::from(*apart_ms) });
            }
            Event::Voided { id, stage, why } if why.contains("not finite") => {
                return self.on_not_finite(utc, id.step, *stage);
            }
            Event::Refused { why, .. } if why.contains("stale") => {
                self.stale += 1;
                return self.stale(utc);
            }
            _ => {}
        }
        None
    }

    fn on_lost(&mut self, utc: u64, peer: PeerId, why: &str) {
        self.here.remove(&peer);
        if !["it left", "shutting down"].iter().any(|polite| why.ends_with(polite)) {
            self.silent.insert(peer);
        }
        if self.here.is_empty() {
            self.alone.get_or_insert((utc, false));
        }
    }

    fn on_not_finite(&mut self, utc: u64, step: u32, stage: Stage) -> Option<Failure> {
        self.not_finite.push_back(utc);
        while self.not_finite.front().is_some_and(|at| utc.saturating_sub(*at) > NOT_FINITE_WITHIN) {
            self.not_finite.pop_front();
            self.not_finite_said = false;
        }
        let count = self.not_finite.len();
        if count < NOT_FINITE || std::mem::replace(&mut self.not_finite_said, true) {
            return None;
        }
        Some(Failure::NotFinite { count: count as u64, step, stage })
    }

    /// The first ones are gathered for a while, too: a single late one at the end of a round is no news.
    fn stale(&mut self, utc: u64) -> Option<Failure> {
        let since = *self.stale_said.get_or_insert(utc);
        if utc.saturating_sub(since) < STALE_EVERY {
            return None;
        }
        self.stale_said = Some(utc);
        self.rest()
    }

    /// What was gathered and not yet said, when the peer ends.
    pub fn rest(&mut self) -> Option<Failure> {
        let count = std::mem::take(&mut self.stale);
        (count > 0).then_some(Failure::Stale { count, bound: self.bound })
    }

    /// How it stands; what has lasted for long enough.
    pub fn see(&mut self, state: &State) -> Vec<Failure> {
        if matches!(state.phase, Phase::Draining | Phase::Ended) {
            return Vec::new();
        }
        let mut all: Vec<Failure> = self.unreachable(state).into_iter().collect();
        if self.alone.is_some_and(|(_, said)| said) {
            // The one cause of all that is missing was said.
            return all;
        }
        match self.lost(state) {
            Some(lost) => all.push(lost),
            None => {
                all.extend(self.empty(state));
                all.extend(self.unfed(state));
            }
        }
        all
    }

    fn unreachable(&mut self, state: &State) -> Option<Failure> {
        let why = match state.me.reachability.as_str() {
            "relayed" => "the NAT gives every target another port (symmetric): only relays carry",
            "punchable" => "this machine is behind a NAT, which can be punched through",
            _ => return None,
        };
        if std::mem::replace(&mut self.unreachable, true) {
            return None;
        }
        let port = state.me.addresses.iter().find_map(|address| own_port(address)).unwrap_or(DEFAULT_PORT);
        Some(Failure::NotReachable { why: why.into(), port })
    }

    fn lost(&mut self, state: &State) -> Option<Failure> {
        let (since, said) = self.alone.as_mut()?;
        let ago = state.utc_ms.saturating_sub(*since);
        if self.silent.is_empty() || state.waiting.is_none() || ago < SOON {
            return None;
        }
        *said = true;
        let count = counted(self.silent.len() as u64, "neighbour");
        Some(Failure::SwarmLost { count, ago: Span::from(ago) })
    }

    /// A stage that this peer is about to serve gets longer.
    fn empty(&mut self, state: &State) -> Option<Failure> {
        let mut stages = Vec::new();
        let mut longest = 0;
        for (stage, (since, said)) in &mut self.empty {
            let mine = state.mine.iter().any(|mine| mine.stage == *stage && mine.state != MyStageState::Serving);
            let ago = state.utc_ms.saturating_sub(*since);
            if !*said && ago >= if mine { LATE } else { SOON } {
                *said = true;
                stages.push(stage.to_string());
                longest = longest.max(ago);
            }
        }
        let flags: Vec<String> = stages.iter().map(|stage| format!("--stage {stage}")).collect();
        Some(Failure::StageEmpty {
            stages: match stages.as_slice() {
                [] => return None,
                [stage] => format!("Stage {stage} has"),
                several => format!("Stages {} have", several.join(", ")),
            },
            run: self.run.clone(),
            flags: flags.join(" "),
            ago: Span::from(longest),
        })
    }

    fn unfed(&mut self, state: &State) -> Option<Failure> {
        let fed = state.feeding.is_some() || state.peers.iter().any(|peer| self.feeders.contains(&peer.peer));
        if fed {
            self.unfed = None;
            return None;
        }
        let (since, said) = self.unfed.get_or_insert((state.utc_ms, false));
        let ago = state.utc_ms.saturating_sub(*since);
        if ago < LATE || std::mem::replace(said, true) {
            return None;
        }
        Some(Failure::NoFeeder { run: self.run.clone(), ago: Span::from(ago) })
    }

    /// Whether the stages that nobody serves were said, with what would help.
    pub fn said_empty(&self) -> bool {
        self.empty.values().any(|(_, said)| *said) || self.alone.is_some_and(|(_, said)| said)
    }
}

/// The UDP port of an address of this machine itself.
fn own_port(address: &str) -> Option<u16> {
    let (_, rest) = address.split_once("/udp/").filter(|_| !address.contains("p2p-circuit"))?;
    rest.split('/').next()?.parse().ok()
}

/// What was wrong with saved states at the start: one entry for each damaged file, one for each folder that had unfinished ones.
pub fn of_start(remarks: &[Remark]) -> Vec<Failure> {
    let mut unfinished: BTreeMap<String, u64> = BTreeMap::new();
    let mut all = Vec::new();
    for remark in remarks {
        match remark {
            Remark::Interrupted { path } => {
                let dir = path.parent().map_or(String::new(), |dir| dir.display().to_string());
                *unfinished.entry(dir).or_default() += 1;
            }
            Remark::Damaged { path, why, instead } => all.push(Failure::CheckpointDamaged {
                path: path.display().to_string(),
                why: why.clone(),
                fallback: match instead {
                    Some(step) => format!("an older one (own step {}) is used", Count((*step).into())),
                    None => "no other one is here, and the weights come from other peers".into(),
                },
            }),
        }
    }
    all.extend(unfinished.into_iter().map(|(path, count)| {
        let count = format!("{} {}", counted(count, "unfinished file"), if count == 1 { "was" } else { "were" });
        Failure::SaveInterrupted { count, path }
    }));
    all
}

#[cfg(test)]
mod tests {
    use skein_protocol::{MicroBatchId, Version};

    use super::*;
    use crate::watch::{Me, MyStage, PeerState, Waiting};

    const OTHER: PeerId = PeerId([2; 32]);

    fn manifest() -> Manifest {
        let mut manifest = skein_protocol::run::preset("demo").unwrap();
        manifest.run.name = "tiny".into();
        manifest.run.owner = PeerId([9; 32]);
        manifest.staleness.bound = 4;
        manifest
    }

    fn at(utc: u64, event: Event) -> Record {
        Record { at: utc * 1_000_000, utc, peer: PeerId([1; 32]), seq: 0, event }
    }

    fn id(step: u32) -> MicroBatchId {
        MicroBatchId { feeder: PeerId([1; 32]), incarnation: 1, step, index: 0 }
    }

    /// A run that is fed, and that waits for something if `waiting`.
    fn state(utc_ms: u64, waiting: bool) -> State {
        let mut state = State::starting(Me::default(), 0);
        state.utc_ms = utc_ms;
        state.phase = if waiting { Phase::Waiting } else { Phase::Training };
        state.waiting = waiting.then(|| Waiting { what: "a replica of stage 1".into(), since_utc_ms: 0 });
        state.feeding = Some(crate::watch::Feeding::default());
        state
    }

    fn codes(all: &[Failure]) -> Vec<&str> {
        all.iter().map(|failure| failure.code()).collect()
    }

    #[test]
    fn an_empty_stage_is_said_once_when_it_has_lasted() {
        let mut troubles = Troubles::new(&manifest());
        assert!(troubles.hear(&at(1_000, Event::StageEmpty { stage: 1 })).is_none());
        assert!(troubles.see(&state(3_000, true)).is_empty(), "a moment is no trouble");
        let said = troubles.see(&state(13_000, true));
        assert_eq!(
            (codes(&said), said[0].why()),
            (vec!["SK503"], "Nobody has been there for 12 s; training waits.".into())
        );
        assert!(troubles.said_empty() && troubles.see(&state(60_000, true)).is_empty());
        troubles.hear(&at(61_000, Event::StageBack { stage: 1, peer: OTHER }));
        for stage in [1, 2] {
            troubles.hear(&at(70_000, Event::StageEmpty { stage }));
        }
        let said = troubles.see(&state(74_000, true));
        assert_eq!((codes(&said), said[0].what()), (vec!["SK503"], "Stages 1, 2 have no replica.".into()));
        assert_eq!(said[0].next()[0].0, "skein host tiny --stage 1 --stage 2");
    }

    #[test]
    fn who_is_about_to_serve_a_stage_is_not_asked_to_serve_it() {
        let mut troubles = Troubles::new(&manifest());
        troubles.hear(&at(0, Event::StageEmpty { stage: 1 }));
        let mut fetching = state(10_000, true);
        fetching.mine = vec![MyStage {
            stage: 1,
            state: MyStageState::Fetching,
            round: 0,
            own_step: 0,
            micro_batches: 0,
            tokens_per_s: 0.0,
            rounds: 0,
            rounds_rolled_back: 0,
            fetched_percent: None,
        }];
        assert!(troubles.see(&fetching).is_empty());
        fetching.utc_ms = 30_000;
        assert_eq!(codes(&troubles.see(&fetching)), ["SK503"]);
    }

    #[test]
    fn silence_of_all_neighbours_is_the_one_cause_of_what_is_missing() {
        let mut troubles = Troubles::new(&manifest());
        let gone = |utc, peer, why: &str| at(utc, Event::PeerLost { peer, incarnation: 1, why: why.into() });
        troubles.hear(&at(0, Event::PeerUp { peer: OTHER }));
        troubles.hear(&gone(1_000, OTHER, "silent for 1.6 s"));
        assert!(troubles.see(&state(9_000, false)).is_empty(), "alone, and nothing is missing");
        troubles.hear(&at(1_000, Event::StageEmpty { stage: 1 }));
        let said = troubles.see(&state(9_000, true));
        assert_eq!(codes(&said), ["SK204"]);
        assert!(
            said[0].why().starts_with("1 neighbour fell silent, nobody has been here for 8.0 s"),
            "{}",
            said[0].why()
        );
        assert!(troubles.see(&state(60_000, true)).is_empty());
        // Who left in good order is not lost.
        let mut troubles = Troubles::new(&manifest());
        troubles.hear(&at(0, Event::PeerUp { peer: OTHER }));
        troubles.hear(&gone(1_000, OTHER, "it left"));
        troubles.hear(&at(1_000, Event::StageEmpty { stage: 1 }));
        assert_eq!(codes(&troubles.see(&state(9_000, true))), ["SK503"]);
    }

    #[test]
    fn a_run_without_its_owner_is_not_fed() {
        let mut troubles = Troubles::new(&manifest());
        let unfed = |utc, peers: &[PeerId]| {
            let peers = peers.iter().map(|peer| PeerState {
                peer: *peer,
                name: String::new(),
                connected: true,
                path: String::new(),
                address: String::new(),
                rtt_ms: None,
                stages: Vec::new(),
            });
            State { feeding: None, peers: peers.collect(), ..state(utc, false) }
        };
        assert!(troubles.see(&unfed(0, &[OTHER])).is_empty());
        assert!(troubles.see(&unfed(29_000, &[OTHER, PeerId([9; 32])])).is_empty(), "there is the owner");
        assert!(troubles.see(&unfed(30_000, &[OTHER])).is_empty());
        assert_eq!(codes(&troubles.see(&unfed(61_000, &[OTHER]))), ["SK505"]);
        assert!(troubles.see(&unfed(99_000, &[OTHER])).is_empty());
    }

    #[test]
    fn who_cannot_be_reached_is_told_once_which_port_to_open() {
        let mut troubles = Troubles::new(&manifest());
        let behind = |how: &str| {
            let mut state = state(0, false);
            state.me.reachability = how.into();
            state.me.addresses = ["/ip4/1.2.3.4/udp/9/quic-v1/p2p-circuit", "/ip4/192.168.1.7/udp/5001/quic-v1"]
                .map(String::from)
                .to_vec();
            state
        };
        assert!(troubles.see(&behind("unknown")).is_empty());
        let said = troubles.see(&behind("relayed"));
        assert_eq!((codes(&said), said[0].next()[0].0.as_str()), (vec!["SK206"], "forward UDP 5001 in your router"));
        assert!(troubles.see(&behind("punchable")).is_empty());
    }

    #[test]
    fn values_that_are_not_finite_are_said_when_they_repeat() {
        let mut troubles = Troubles::new(&manifest());
        let mut voided = |utc, why: &str| {
            troubles.hear(&at(utc, Event::Voided { id: id(7), stage: 2, why: why.into() })).map(|f| f.what())
        };
        for utc in [0, 70_000, 71_000] {
            assert_eq!(voided(utc, "a value is not finite"), None);
        }
        assert_eq!(voided(71_500, "given up after five losses"), None);
        assert_eq!(voided(72_000, "a value is not finite").as_deref(), Some("The loss is not a number."));
        assert_eq!(voided(73_000, "a value is not finite"), None);
    }

    #[test]
    fn stale_gradients_are_counted_and_said_once_a_minute_and_at_the_end() {
        let mut troubles = Troubles::new(&manifest());
        let mut refused = |utc| {
            troubles.hear(&at(utc, Event::Refused { id: id(1), stage: 0, staleness: 9, why: "too stale".into() }))
        };
        assert!(refused(0).is_none() && refused(59_000).is_none());
        let said = refused(60_000).unwrap();
        assert_eq!((said.code(), said.what()), ("SK507", "3 of your gradients were too old and were not used.".into()));
        assert!(refused(61_000).is_none());
        assert!(troubles.rest().unwrap().what().starts_with("1 of your gradients"));
        assert!(troubles.rest().is_none());
    }

    #[test]
    fn a_restored_stage_says_from_what() {
        let mut troubles = Troubles::new(&manifest());
        let version = Version { stage: 1, own_step: 1_800, ..Version::default() };
        let said = troubles.hear(&at(0, Event::Restored { stage: 1, version, from_seed: false })).unwrap();
        assert!(said.code() == "SK504" && said.why().contains("the snapshot of own step 1 800"), "{}", said.why());
        let said = troubles.hear(&at(0, Event::Restored { stage: 1, version, from_seed: true })).unwrap();
        assert!(said.why().contains("the run's seed"), "{}", said.why());
        let own = Version { peer: PeerId([1; 32]), ..version };
        assert!(troubles.hear(&at(0, Event::Restored { stage: 1, version: own, from_seed: false })).is_none());
    }

    #[test]
    fn what_was_wrong_at_the_start_has_its_code() {
        let path = |name: &str| std::path::Path::new("checkpoints/stage-0").join(name);
        let remarks = [
            Remark::Interrupted { path: path(".a.unfinished") },
            Remark::Damaged { path: path("2.state"), why: "it is too short".into(), instead: Some(1) },
            Remark::Interrupted { path: path(".b.unfinished") },
        ];
        let all = of_start(&remarks);
        assert_eq!(codes(&all), ["SK408", "SK409"]);
        assert!(all[0].why().ends_with("an older one (own step 1) is used."), "{}", all[0].why());
        assert!(
            all[1].why().starts_with("2 unfinished files were removed from checkpoints/stage-0"),
            "{}",
            all[1].why()
        );
    }
}
