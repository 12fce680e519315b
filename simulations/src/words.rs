//! The words that the simulator prints, a page each: where it shows, and what a good value is. The report shows the first sentence,
//! `skein explain WORD` and docs/glossary.md the whole page.

/// One word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    pub word: &'static str,
    /// Other names under which it is printed.
    pub also: &'static [&'static str],
    pub page: &'static str,
}

impl Word {
    /// Its first sentence.
    pub fn short(&self) -> &'static str {
        self.page.find(". ").map_or(self.page, |end| &self.page[..=end])
    }

    /// Whether `name` is this word, however it is written.
    pub fn is(&self, name: &str) -> bool {
        let plain = |name: &str| name.to_lowercase().replace(['_', ' ', '-'], "");
        std::iter::once(&self.word).chain(self.also).any(|own| plain(own) == plain(name))
    }
}

const fn word(word: &'static str, also: &'static [&'static str], page: &'static str) -> Word {
    Word { word, also, page }
}

/// In alphabetical order.
pub const WORDS: &[Word] = &[
    word(
        "applied",
        &["added"],
        "A gradient that is in a step of the replica that computed it. Each micro-batch has one gradient at every stage, so with three \
         stages and nothing lost it is three times what was completed. It stands in the totals of a report, in the last line of --json, and in \
         `skein replay --check`. Good: all of them, but for what is pending.",
    ),
    word(
        "bottleneck",
        &["limits", "bottlenecks"],
        "What binds a swarm: the one thing of compute, upload, download, latency, imbalance, churn and staleness on which most of the \
         devices' time goes. It stands in the first lines of `skein simulate`, in `explain`, and as a letter in each cell of a sweep's map. Compute is \
         the good one: the devices work for more than half of their time.",
    ),
    word(
        "churn",
        &[],
        "Peers that come and go, and the time that it costs: joining, fetching weights, and work that perished or was done again. It is a share of the \
         lost time in `limits`, and [churn] in a scenario says who comes and goes. Below 5 % is good; above 20 % stages are too large for how \
         long people stay.",
    ),
    word(
        "completed",
        &[],
        "Micro-batches that went through all stages and came back to the feeder with a loss. It counts micro-batches, while applied, perished, refused and \
         lost count gradients, of which each micro-batch has one at every stage. It stands in the totals of a report and in the last line of --json.",
    ),
    word(
        "compute",
        &["computing"],
        "The devices' time that went to work that counts. As the bottleneck it means that links and round trips keep up, and that only more or faster \
         devices make the swarm faster. Above 50 % is good; home links and large models often give less than 10 %.",
    ),
    word(
        "digest",
        &[],
        "A hash over everything that happened, b3:… at the end of `skein simulate`. The same seed and scenario give the same digest on every machine, so \
         two people can see that they speak of the same run. Another digest of the same command means another version of skein.",
    ),
    word(
        "disagreement",
        &[],
        "How far a replica is from the mean of its stage, right after a round: |phi - mean phi| / |mean phi|. It shows as a chart of a report with \
         learning = \"real\", and at the end of `skein demo`. Below 2 % is good; it grows with the own steps between two rounds.",
    ),
    word(
        "doubled",
        &["counted twice"],
        "Gradients that one replica added twice. The protocol promises that there are none, whoever dies and whatever is sent again: anything but 0 \
         is a bug, property P1 says where. It stands in the totals of a report, in --json and in `skein replay --check`.",
    ),
    word(
        "download",
        &[],
        "The devices' time that went to waiting for data that a downlink could not take faster, their own or that of whom they sent to. It is a share of the \
         lost time in `limits`. Below 5 % is usual, since downlinks at home are faster than uplinks; codec=int4 sends fewer bytes.",
    ),
    word(
        "estimate",
        &["would help"],
        "A guess at what a change would bring, from the shares of time of the run as it was. `would help` and `skein simulate explain` print one beside the \
         --set that makes the change. It does not know what would queue up elsewhere, and for the scenarios that come with the program it came within \
         a third of what the change brought. `skein simulate explain REPORT --try` simulates it.",
    ),
    word(
        "fidelity",
        &[],
        "How closely peers are followed. protocol: every frame and timer of the program's own peers, to 2,000 of them. fleet: flows and ticks, \
         calibrated against protocol, to 1,000,000. Each summary and report names it, --fidelity chooses; compare only runs of the same.",
    ),
    word(
        "goodput",
        &[],
        "The part of the work done that counts: the rest was done again, refused or thrown away. It stands beside the throughput in every summary. Above \
         95 % is good; what is lost went to deaths (perished, resent) or to gradients that came too late (refused).",
    ),
    word(
        "imbalance",
        &["stage imbalance"],
        "The devices' time that went to waiting, with no link full, since another stage is busier. It is a share of the lost time in `limits`. Below 10 % \
         is good; more peers go where they help most, and another number of stages splits the layers anew.",
    ),
    word(
        "latency",
        &[],
        "The devices' time that went to waiting for answers, with no link full and no stage at its limit: too little is on the way for the length of the \
         ways. It is a share of the lost time in `limits`. What helps is a larger window (run.in_flight_max, or more feeders) or shorter ways; below 20 % \
         is good.",
    ),
    word(
        "liar",
        &["liars", "adversary", "adversaries"],
        "A peer that answers with wrong values or not at all: [adversaries] in a scenario. The simulator knows who they are and says in the line `liars` \
         how many results were wrong or never came; the peers do not know. 0 is good, and with learning = \"real\" the loss shows what they cost.",
    ),
    word(
        "loss",
        &["loss_last"],
        "How wrong the model's predictions are, nats a token: the mean over the last completed micro-batches. It is simulated only with learning = \
         \"curve\" (a published law, an estimate) or \"real\" (a tiny model that is trained). Lower is better: compare it with loss_reference.",
    ),
    word(
        "loss_reference",
        &[],
        "The loss that the same training would reach without churn, delay and staleness. It stands beside the loss with learning = \"curve\", as `without \
         churn and delay`. What the loss is above it is what the swarm costs in learning: below 1 % is good.",
    ),
    word(
        "lost",
        &["lost work"],
        "Gradients of completed micro-batches of which nobody can say what became of them: completed - applied - perished - refused - pending. The \
         protocol promises 0, and anything else is a bug; property P2 says where. It is not the lost time of `limits`, which is time that devices waited.",
    ),
    word(
        "micro-batch",
        &["microbatches", "micro-batches"],
        "A few sequences that travel through all stages together and come back as gradients. Each has an id, and enters the weights of a \
         stage once: never twice, never silently lost. `micro_batch` of a scenario says how many sequences, and completed counts them.",
    ),
    word(
        "overlapped",
        &[],
        "Gradients of one micro-batch that two living replicas of a stage have in their weights. It happens where a replica was thought dead and was not; the \
         micro-batch then counts a little more than others. It stands in the totals and in --json. Good: 0, or a handful of many thousands.",
    ),
    word(
        "own step",
        &["own steps"],
        "One step of the optimizer at one replica. With R replicas of a stage each makes about 1/R of the run's steps. Rounds and staleness \
         count own steps.",
    ),
    word(
        "pending",
        &["open"],
        "Gradients in a sum that no step has used yet, when a simulation ends. They are counted as useful. A run that ends politely has none: whoever drains \
         steps with what it has.",
    ),
    word(
        "perished",
        &[],
        "Gradients that were computed and are gone, since their replica died, was fenced or rolled back before the step was safe: saved, averaged with a \
         partner, or copied by a newcomer. `skein demo`, a report and `skein replay --check` count the same. Good: a few after each death; averaging more \
         often makes them fewer.",
    ),
    word(
        "property",
        &["properties", "violation"],
        "A sentence that must hold in every run, P0 to P18: no gradient counts twice, none is lost, and so on. Each simulation checks them; the last \
         lines say how many held, and a violation names the seed, the time and the peer. Good: all held; `skein simulate check` looks for seeds at which one does not.",
    ),
    word(
        "refused",
        &[],
        "Gradients that were not added, since they were older than the bound of staleness or not finite. They stand as a part in the line `staleness`, and in \
         the totals. Below 1 % is good; a smaller window, or a larger bound, makes them fewer.",
    ),
    word(
        "replica",
        &["replicas"],
        "A peer that serves a stage. A stage should have two or more: then one may leave, or die, and training goes on. A report draws how many each stage has \
         over time; a stage with none stops everything.",
    ),
    word(
        "resent",
        &["sent again"],
        "Work that was sent again, to another replica, since the first was lost or silent. It stands in the totals. Good: few beside what was completed; many \
         without deaths mean peers that take work and do not answer.",
    ),
    word(
        "round",
        &["rounds", "averaging"],
        "Two replicas of a stage average what they have learned since their last round, and go on. Nobody waits for it: it either happens on \
         both sides or on neither, and work goes on meanwhile. The totals count them, and those that were rolled back: below 5 % of all is good.",
    ),
    word(
        "scenario",
        &["scenarios"],
        "A question, and the world in which it is asked: what is trained, who is there, with which links, who comes and goes, what goes wrong. `skein simulate \
         list` shows those that come with the program, docs/simulator.md every key, and --set changes one value.",
    ),
    word(
        "seed",
        &["seeds"],
        "The number from which everything that is drawn by chance follows: devices, links, deaths, delays. One seed gives one history. Figures of one seed \
         may be chance: --seeds 5 gives their mean, and the interval that holds it with 95 % confidence.",
    ),
    word(
        "stage",
        &["stages"],
        "A contiguous range of layers, small enough for one peer. Stage 0 holds the embedding, the last one the head. A peer may serve several. `stages` of \
         a scenario says how many; 0 takes as few as fit.",
    ),
    word(
        "staleness",
        &[],
        "The age of a gradient: how many own steps a replica made since the forward that the gradient belongs to, plus one for each adopted \
         round. Stale gradients are weighted down, and past the bound of the manifest they are not added, though still passed on. Slow links \
         and slow devices make work stale. The line `staleness` shows the median and the 99th percentile; at most half of run.staleness_bound is good.",
    ),
    word(
        "throughput",
        &["tokens/s", "tok/s"],
        "Tokens of completed micro-batches in a second of simulated time. It is the first figure of every summary, and what the maps of a sweep show. What is \
         good depends on the model: the line `cost` puts it beside rented machines.",
    ),
    word(
        "upload",
        &["uplink"],
        "The devices' time that went to waiting for an uplink that could not send faster, their own or that of who sent to them. It is a share of the lost \
         time in `limits`, and at home mostly the largest. Below 20 % is good; codec=int4 sends fewer bytes, and fewer stages send less often.",
    ),
    word(
        "voided",
        &["given up"],
        "Micro-batches that were given up, after five attempts or since a value was not finite, and are done again under another id. They stand in the totals. \
         Good: 0, or few beside what was completed.",
    ),
    word(
        "window",
        &["in_flight_max", "in flight"],
        "How many micro-batches one feeder may have open at once: run.in_flight_max. Too few, and devices wait for answers (latency); too many, and they \
         queue at slow uplinks and become stale. A good value keeps every device busy: try twice and half of it, and look at the throughput.",
    ),
];

/// The page of a word, however it is written.
pub fn find(name: &str) -> Option<&'static Word> {
    WORDS.iter().find(|word| word.is(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Cause;

    #[test]
    fn words_are_sorted_and_each_is_found_under_one_page_only() {
        assert!(WORDS.windows(2).all(|pair| pair[0].word < pair[1].word));
        for name in WORDS.iter().flat_map(|word| std::iter::once(&word.word).chain(word.also)) {
            let of: Vec<_> = WORDS.iter().filter(|word| word.is(name)).map(|word| word.word).collect();
            assert_eq!(of.len(), 1, "{name}: {of:?}");
        }
        assert!(
            ["Loss reference", "LOSS_REFERENCE", "MicroBatch", "Stage imbalance"]
                .iter()
                .all(|name| find(name).is_some())
        );
    }

    #[test]
    fn each_page_is_two_to_five_sentences_and_its_first_is_short() {
        for word in WORDS {
            let sentences = word.page.matches(". ").count() + 1;
            assert!((2..=5).contains(&sentences) && word.page.ends_with('.'), "{}: {sentences}", word.word);
            assert!(word.short().len() <= 200, "{}: {}", word.word, word.short());
        }
    }

    #[test]
    fn every_cause_has_a_page() {
        for cause in [Cause::Compute].into_iter().chain(Cause::LOSSES) {
            assert!(find(cause.name()).is_some(), "{}", cause.name());
        }
    }
}
