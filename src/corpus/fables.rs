//! Short plain fables from a seeded grammar: what the demo and the tests learn from. In: a seed. Out: ASCII text, equal on
//! every platform.
//!
//! Made so that a small byte-level model shows progress early: about 150 words; the names and traits of two animals come
//! back inside each fable, so attention has something to find; what is left to chance is under 0.1 nats a byte.

use skein_protocol::hash;

const ANIMALS: [&str; 20] = [
    "fox", "crow", "hare", "goose", "wolf", "mouse", "owl", "bear", "frog", "deer", "mole", "lark", "toad", "crane",
    "otter", "badger", "heron", "beetle", "lamb", "cat",
];
const TRAITS: [&str; 10] = ["small", "proud", "quiet", "quick", "lazy", "brave", "vain", "kind", "grey", "sly"];
const PLACES: [&str; 7] = [
    "near the mill",
    "by the river",
    "under the hill",
    "in the old wood",
    "beside the lake",
    "in the tall grass",
    "at the edge of the field",
];
const WISHES: [&str; 7] = [
    "to own the moon",
    "to fly over the sea",
    "to sleep all winter",
    "to sing like the wind",
    "to find sweet berries",
    "to lead the flock",
    "to drink first at the well",
];
const TIMES: [&str; 6] =
    ["One morning", "One evening", "One cold day", "After the rain", "In the spring", "Before the snow"];
const ARRIVALS: [&str; 6] =
    ["came by", "passed that way", "stopped to rest", "looked for water", "sat down there", "lost the path"];
const SAYINGS: [&str; 6] = [
    "Who goes alone goes slowly",
    "A long thread is made of short ones",
    "The wind is lighter behind a friend",
    "Take turns at the front",
    "A heavy load is light for many",
    "Ask before the river is high",
];
const REACTIONS: [&str; 5] = ["laughed", "did not listen", "thought about it", "said nothing", "ran away"];
const TROUBLES: [&str; 5] =
    ["the night was dark", "the storm came", "the ice was thin", "the way was long", "the food was gone"];
const ACTS: [&str; 5] = [
    "they went home together",
    "they took turns until morning",
    "they shared the last bread",
    "they kept each other warm",
    "they built a house of stones",
];
const MORALS: [&str; 6] = [
    "Many short flights make a long one.",
    "The one in front is not always the same one.",
    "What is shared is not lost.",
    "A friend is worth more than a wish.",
    "Nobody is too small to help.",
    "Good words are heard late.",
];

/// Fables one after the other until there are `bytes_min` bytes, and how many they are.
pub fn expand(seed: u64, bytes_min: usize) -> (String, u64) {
    let mut text = String::with_capacity(bytes_min + 512);
    let mut count = 0;
    while text.len() < bytes_min {
        text.push_str(&fable(seed, count));
        count += 1;
    }
    (text, count)
}

/// The `index`-th fable of `seed`; it ends with an empty line.
pub fn fable(seed: u64, index: u64) -> String {
    let mut dice = Dice::new(seed, index);
    let one = dice.below(ANIMALS.len());
    let other = (one + 1 + dice.below(ANIMALS.len() - 1)) % ANIMALS.len();
    let (one, other) = (ANIMALS[one], ANIMALS[other]);
    let first = dice.below(TRAITS.len());
    let second = (first + 1 + dice.below(TRAITS.len() - 1)) % TRAITS.len();
    let (first, second) = (TRAITS[first], TRAITS[second]);
    let (place, wish) = (dice.one(&PLACES), dice.one(&WISHES));
    let (time, arrival, saying) = (dice.one(&TIMES), dice.one(&ARRIVALS), dice.one(&SAYINGS));
    let (reaction, trouble, act, moral) =
        (dice.one(&REACTIONS), dice.one(&TROUBLES), dice.one(&ACTS), dice.one(&MORALS));
    format!(
        "A {first} {one} lived {place} and wished {wish}. {time} a {second} {other} {arrival}. \
         \"{saying},\" said the {second} {other}. The {first} {one} {reaction}. But when {trouble}, \
         the {first} {one} called the {second} {other}, and {act}. {moral}\n\n"
    )
}

/// Numbers for one fable, from a hash of the seed and its index: no fable depends on the one before.
struct Dice {
    bytes: [u8; 64],
    at: usize,
}

impl Dice {
    fn new(seed: u64, index: u64) -> Self {
        let mut bytes = [0; 64];
        hash::stream("skein fable 1", &[&seed.to_le_bytes(), &index.to_le_bytes()]).fill(&mut bytes);
        Dice { bytes, at: 0 }
    }

    fn below(&mut self, n: usize) -> usize {
        let word = u32::from_le_bytes(self.bytes[self.at..self.at + 4].try_into().expect("four bytes"));
        self.at += 4;
        ((u64::from(word) * n as u64) >> 32) as usize
    }

    fn one(&mut self, words: &[&'static str]) -> &'static str {
        words[self.below(words.len())]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_megabyte_is_the_same_megabyte_for_the_same_seed() {
        let (text, count) = expand(1, 1_000_000);
        assert!(text.len() >= 1_000_000 && count > 2_500, "{} bytes, {count} fables", text.len());
        let digest = hash::keyed("test", &[text.as_bytes()]);
        assert_eq!(digest, hash::keyed("test", &[expand(1, 1_000_000).0.as_bytes()]));
        assert_ne!(digest, hash::keyed("test", &[expand(2, 1_000_000).0.as_bytes()]));
        assert_eq!(fable(1, 0), "",);
    }

    #[test]
    fn the_words_are_few_and_the_letters_plain() {
        let (text, count) = expand(1, 1_000_000);
        let words: BTreeSet<String> =
            text.split(|c: char| !c.is_ascii_alphabetic()).filter(|w| !w.is_empty()).map(str::to_lowercase).collect();
        assert!((120..=180).contains(&words.len()), "{} words", words.len());
        let bytes: BTreeSet<u8> = text.bytes().collect();
        assert!(text.is_ascii() && bytes.len() <= 45, "{} bytes", bytes.len());
        let mean = text.len() as u64 / count;
        assert!((280..=360).contains(&mean), "{mean} bytes each");
    }

    #[test]
    fn what_chance_decides_is_little() {
        let choices = [20.0, 19.0, 10.0, 9.0, 7.0, 7.0, 6.0, 6.0, 6.0, 5.0, 5.0, 5.0, 6.0f64];
        let nats: f64 = choices.iter().map(|n| n.ln()).sum();
        let (text, count) = expand(1, 100_000);
        assert!(nats / (text.len() as f64 / count as f64) < 0.1);
    }
}
