//! The words of Skein, one page each, for `skein explain WORD` and docs/glossary.md. Those that the simulator prints are its own.

use skein_simulations::words::{self, Word};

const fn word(word: &'static str, page: &'static str) -> Word {
    Word { word, also: &[], page }
}

/// What no simulation prints, in alphabetical order.
const OWN: &[Word] = &[
    word(
        "attempt",
        "Counts how often the work on one micro-batch was handed out again at each hop. Newer replaces; equal or older is answered from \
         what is kept. So a micro-batch that is sent twice is never counted twice.",
    ),
    word(
        "blob",
        "A tensor that travels: activations, gradients, differences of weights, pieces of a snapshot. Machines hold handles to blobs; the \
         bytes go straight from peer to peer.",
    ),
    word(
        "data",
        "What a run learns from, given with --data. .txt and .md are taken as they are, .jsonl by the `text` of each line, .parquet by that of \
         each row, a folder as all of these in the order of their names. It must be UTF-8. Byte-level models see the bytes themselves. The feeder draws samples in an \
         order that follows from the run's seed, each once an epoch, so a feeder that starts again goes on where it was.",
    ),
    word(
        "feeder",
        "A peer that feeds data: it mints micro-batches, sends their tokens to stage 0 and their labels to the last stage, and is told the \
         loss. The owner of a run feeds it, or a delegate that its manifest names.",
    ),
    word(
        "home",
        "The folder in which a peer keeps its key, its address book and its runs. Two peers on one machine need two homes: --home DIR. \
         Started again with the same home, a peer is the same peer.",
    ),
    word(
        "incarnation",
        "How often a peer has started. It stands in everything the peer says, so that nobody takes a message of its past for one of today. \
         It is written to the disk before the first message.",
    ),
    word(
        "invite",
        "One word that lets somebody join: the hash of the run's manifest, and the addresses of a few peers. It does not expire, and admits \
         whoever has it, except to a run that lists its members. Whoever passes it on cannot change the run, since the manifest is checked against the hash. `skein invite` makes one.",
    ),
    word("job", "What a machine asks of the worker that owns the device: a forward, a backward, a step, a save."),
    word(
        "lane",
        "A class of traffic: control, gradient, activation, average, generation, bulk, in falling priority. Weights that a newcomer fetches \
         do not delay a gradient.",
    ),
    word(
        "manifest",
        "What every peer of a run agrees on: model, stages, optimizer, averaging, codecs, who may join. It is signed by the owner, and its \
         hash is the identity of the run: another manifest is another run. `skein run show` prints it. What a machine gives is its own \
         affair and stands in config.toml.",
    ),
    word(
        "offer",
        "A replica's signed announcement: which stage, since when, how fast, until when. It lives two minutes at most and is renewed; what it \
         says of its speed decides where newcomers and micro-batches go, as far as it is believable.",
    ),
    word("owner", "Whose key signed the manifest. The owner feeds data and says who may join."),
    word(
        "path",
        "Who computed a micro-batch at each stage. The feeder accepts the first complete path of an id and writes it down.",
    ),
    word(
        "peer",
        "One running skein with a key of its own. Its name is two words made from the key, next to the end of its id.",
    ),
    word(
        "petname",
        "Two words for a peer, as quiet-heron. A label made from the key: anybody can look for a key with the same words, so it stands next to \
         a part of the id.",
    ),
    word(
        "privacy",
        "What others can see. Every peer that you connect to sees your IP address, and who serves a run can be looked up by anybody who knows \
         the run. Stage 0 sees the tokens of every micro-batch in the clear, the last stage sees the labels; stages between see activations, \
         from which text can partly be reconstructed. Everybody who takes part can copy the weights of the stages that it serves. Connections \
         are encrypted and both sides prove their key, so nobody in between sees more than who talks to whom, how much and when. Data \
         that must stay at home is data that this version should not be trained on with strangers.",
    ),
    word(
        "profile",
        "A ready-made configuration of a machine: home-cpu, home-gpu, laptop, datacenter, relay, observer, or a file. --profile NAME.",
    ),
    word(
        "relay",
        "A peer that passes encrypted traffic on for two others that cannot reach each other directly, mostly because both are behind NAT. It \
         sees who talks to whom and how much, not what. Peers try to connect directly at the same time (hole punching) and leave the relay \
         when that works. Forwarding one UDP port in your router, or IPv6, makes relays unnecessary.",
    ),
    word(
        "route",
        "How a micro-batch finds the next stage: weighted by measured speed, with some chance, so that replicas mix.",
    ),
    word("run", "One training effort: a manifest, and the peers that follow it."),
    word(
        "run step",
        "How far the run is: the samples of all feeders, divided by the samples of one step. The learning rate, the end of the run and \
         checkpoints follow it.",
    ),
    word(
        "snapshot",
        "The weights of a stage as one replica held them, kept by other peers in case all replicas die. A stage that was lost is adopted from \
         its newest snapshot.",
    ),
    word(
        "version",
        "The weights of a stage at one replica: stage, peer, incarnation, round and own step. One version has one hash.",
    ),
];

/// All, in alphabetical order.
pub fn all() -> Vec<&'static Word> {
    let mut all: Vec<&Word> = OWN.iter().chain(words::WORDS).collect();
    all.sort_by_key(|word| word.word);
    all
}

/// The page of a word, however it is written.
pub fn find(name: &str) -> Option<&'static Word> {
    OWN.iter().find(|word| word.is(name)).or_else(|| words::find(name))
}

/// Everything that [`find`] finds.
pub fn names() -> impl Iterator<Item = &'static str> {
    all().into_iter().flat_map(|word| std::iter::once(&word.word).chain(word.also).copied())
}

/// docs/glossary.md.
pub fn markdown() -> String {
    let mut text = String::from(
        "# Words\n\nThe same in the code, on the command line and in these pages. `skein explain WORD` prints them offline.\n",
    );
    for word in all() {
        text.push_str(&format!("\n## {}\n\n{}\n", word.word, word.page));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_sorted_and_found_however_they_are_written() {
        assert!(OWN.windows(2).all(|pair| pair[0].word < pair[1].word));
        for name in names() {
            let of = all().into_iter().filter(|word| word.is(name)).count();
            assert_eq!(of, 1, "{name} has one page");
        }
        for name in ["micro-batch", "microbatch", "Run Step", "run-step", "RUN_STEP"] {
            assert!(find(name).is_some(), "{name}");
        }
        assert!(find("blockchain").is_none());
    }
}
