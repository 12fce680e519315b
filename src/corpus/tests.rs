//! The corpus as its users see it.

use std::{collections::BTreeMap, fs, path::Path};

use skein_pipeline::exact::IGNORE;

use super::*;
use crate::text::{Files, Special};

fn now() -> DateTime {
    DateTime::default()
}

fn model(name: &str) -> Reading {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/text/golden").join(name);
    let files = Files::read(&folder).unwrap();
    let template = ChatTemplate::from_files(&files).unwrap();
    Reading { template, ..Reading::new(Tokenizer::from_files(&files).unwrap(), now()) }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn of(files: &[(&str, &str)]) -> Folder {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        Folder(dir)
    }

    fn open(&self, reading: Reading) -> Result<Corpus, CorpusError> {
        Corpus::open(&[self.0.path().to_path_buf()], reading)
    }
}

/// Conversations of different lengths, each of its own words.
fn chats(count: usize) -> String {
    (0..count)
        .map(|i| {
            let (asked, said) = (format!("the {i} "), format!("stone {i} ").repeat(1 + i % 9));
            serde_json::json!({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]})
                .to_string()
                + "\n"
        })
        .collect()
}

/// The records of a micro-batch's sequence: tokens and labels between its starts.
fn rows(records: &Records, sequence: usize) -> Vec<Vec<(Vec<u32>, Vec<u32>)>> {
    records
        .starts
        .iter()
        .enumerate()
        .map(|(row, starts)| {
            let ends = starts.iter().skip(1).copied().chain([sequence as u32]);
            starts
                .iter()
                .zip(ends)
                .map(|(from, to)| {
                    let of = row * sequence + *from as usize..row * sequence + to as usize;
                    (records.tokens[of.clone()].to_vec(), records.labels[of].to_vec())
                })
                .collect()
        })
        .collect()
}

#[test]
fn a_sample_is_a_function_of_seed_and_index() {
    let corpus = Corpus::fables(1, 20_000);
    let sample = |seed, n| corpus.records(seed, n, 1, 64).unwrap();
    assert_eq!(sample(3, 40), sample(3, 40));
    assert_ne!(sample(3, 40), sample(4, 40));
    assert_ne!(sample(3, 0), sample(3, corpus.micro_batches(3, 1, 1, 64)));
}

#[test]
fn labels_are_the_tokens_that_follow() {
    let corpus = Corpus::fables(1, 20_000);
    let records = corpus.records(5, 2, 3, 16).unwrap();
    assert_eq!((records.tokens.len(), records.labels.len()), (48, 48));
    assert_eq!(records.starts, [[0], [0], [0]]);
    for row in 0..3 {
        assert_eq!(records.tokens[row * 16 + 1..(row + 1) * 16], records.labels[row * 16..(row + 1) * 16 - 1]);
    }
    assert_eq!(records.tokens[..16], corpus.records(5, 6, 1, 16).unwrap().tokens[..]);
}

#[test]
fn words_of_the_corpus_are_told_from_inventions() {
    let corpus = Corpus::fables(1, 20_000);
    assert_eq!(corpus.known_words(&[&fables::fable(9, 3)], 20_000), Some(1.0));
    assert_eq!(corpus.known_words(&["A small fox thopped. \"Nood slorn,\" sai"], 20_000), Some(0.5));
    assert_eq!(corpus.known_words(&["the the the th"], 20_000), Some(1.0));
    assert_eq!(corpus.known_words(&["the the th", "th the"], 20_000), Some(2.0 / 3.0), "each ends for itself");
    assert_eq!(corpus.known_words(&["\u{fffd}#17 "], 20_000), None);
    assert_eq!(corpus.known_words(&["fo"], 20_000), None, "it may go on");
}

#[test]
fn text_for_a_model_of_bytes_is_the_same_ring_either_way() {
    let long = "a line that goes on\n".repeat(3000);
    let folder = Folder::of(&[
        ("a.txt", &long),
        ("b.md", "\u{feff}second\n"),
        ("c.jsonl", "{\"text\":\"third\"}\n{\"text\":\"\\nfourth\"}"),
    ]);
    let opened = folder.open(Reading::new(Tokenizer::bytes(), now())).unwrap();
    let read = Corpus::read(&[folder.0.path().to_path_buf()]).unwrap();
    assert_eq!(opened.preview(99_999), read.preview(99_999));
    assert_eq!(opened.documents, read.documents);
    assert_eq!(opened.records(1, 3, 2, 32).unwrap(), read.records(1, 3, 2, 32).unwrap());
}

#[test]
fn every_record_comes_once_in_an_epoch_whole_and_apart_from_others() {
    let folder = Folder::of(&[("a.jsonl", &chats(3000))]);
    let reading = model("byte-level");
    let corpus = folder.open(reading.clone()).unwrap();
    let (sequence, seed) = (256, 7);
    let count = corpus.micro_batches(seed, 1, 1, sequence);
    let (mut seen, mut filled) = (BTreeMap::<String, u32>::new(), 0);
    for n in 0..count {
        let records = corpus.records(seed, n, 1, sequence).unwrap();
        assert_eq!((records.tokens.len(), records.labels.len()), (sequence, sequence));
        for (tokens, labels) in rows(&records, sequence).remove(0) {
            if labels.iter().all(|label| *label == IGNORE) {
                continue;
            }
            filled += tokens.len();
            assert_eq!(labels.last(), Some(&IGNORE), "nothing follows a record's last token");
            for i in 0..labels.len() - 1 {
                assert!(labels[i] == IGNORE || labels[i] == tokens[i + 1]);
            }
            let text = reading.tokenizer.decode(&tokens, false);
            assert!(text.starts_with("<|im_start|>user\nthe ") && text.ends_with("<|im_end|>\n"), "{text}");
            let learned: Vec<u32> = labels.into_iter().filter(|label| *label != IGNORE).collect();
            let learned = reading.tokenizer.decode(&learned, false);
            assert!(learned.starts_with("stone ") && learned.ends_with("<|im_end|>"), "{learned}");
            *seen.entry(text).or_default() += 1;
        }
    }
    assert_eq!(seen.len(), 3000);
    assert!(seen.values().all(|times| *times == 1));
    let share = filled as f64 / (count as f64 * sequence as f64);
    assert!(share > 0.94, "{share} of the sequences is filled");
    let summary = corpus.summary(sequence);
    assert_eq!((summary.records, summary.cut, summary.beyond), (3000, 0, 0));
    assert_eq!(summary.tokens, filled as u64);
}

#[test]
fn no_micro_batch_has_more_records_than_a_frame_names() {
    let line = |i: u32| format!("{{\"prompt\":\"{i}\",\"completion\":\"a\"}}\n");
    let folder = Folder::of(&[("a.jsonl", &(0..400).map(line).collect::<String>())]);
    let corpus = folder.open(model("byte-level")).unwrap();
    let sequence = 256;
    let records = corpus.records(1, 0, 2, sequence).unwrap();
    assert_eq!(records.starts_of(sequence).check(2 * sequence, sequence), Ok(()));
    let Data::Set(set) = &corpus.data else { panic!("records are packed") };
    let most = |starts_max| (0..9).map(|n| set.sample(1, n, sequence, starts_max).unwrap().starts.len()).max().unwrap();
    assert!(most(starts_max(1)) > 20, "{} short records in a sequence", most(starts_max(1)));
    assert_eq!((starts_max(1000), most(4)), (4, 5), "four, and padding");
    assert_eq!((starts_max(STARTS_MAX), most(1)), (1, 2), "one, and padding");
    assert_eq!((starts_max(STARTS_MAX + 1), most(0)), (0, 1));
}

#[test]
fn any_micro_batch_can_be_made_alone_and_in_any_order() {
    let folder = Folder::of(&[("a.jsonl", &chats(2200))]);
    let open = || folder.open(model("sentence-piece")).unwrap();
    let corpus = open();
    let count = corpus.micro_batches(3, 3, 2, 128);
    assert!(count > corpus.micro_batches(3, 1, 2, 128) * 2);
    let some: Vec<u64> = (0..count).step_by(3).collect();
    let forward: Vec<Records> = some.iter().map(|n| corpus.records(3, *n, 2, 128).unwrap()).collect();
    let fresh = open();
    let mut backward: Vec<Records> = some.iter().rev().map(|n| fresh.records(3, *n, 2, 128).unwrap()).collect();
    backward.reverse();
    assert_eq!(forward, backward);
    let later = corpus.micro_batches(3, 1, 2, 128) + 3;
    assert_eq!(forward[0], corpus.records(3, 0, 2, 128).unwrap());
    assert_eq!(corpus.records(3, later, 2, 128).unwrap(), open().records(3, later, 2, 128).unwrap());
    assert_ne!(forward[0], corpus.records(4, 0, 2, 128).unwrap());
    assert_eq!(forward[0], corpus.records(3, 0, 2, 128).unwrap());
}

#[test]
fn what_is_too_long_is_cut_or_left_out_and_counted() {
    let long = format!("{}\n", serde_json::json!({"prompt": "the ", "completion": "stone ".repeat(200)}));
    let beyond = format!("{}\n", serde_json::json!({"prompt": "the ".repeat(200), "completion": "stone"}));
    let short = "{\"prompt\":\"a\",\"completion\":\"b\"}\n";
    let folder = Folder::of(&[("a.jsonl", &format!("{long}{beyond}{short}{short}"))]);
    let corpus = folder.open(model("byte-level")).unwrap();
    let summary = corpus.summary(64);
    assert_eq!((summary.records, summary.cut, summary.beyond, summary.duplicates), (2, 1, 1, 1));
    assert_eq!(corpus.micro_batches(1, 1, 1, 64), 2);
    let learned = (0..2).flat_map(|n| corpus.records(1, n, 1, 64).unwrap().labels).filter(|label| *label != IGNORE);
    assert!(learned.count() > 60);

    let folder = Folder::of(&[("a.jsonl", &beyond)]);
    let corpus = folder.open(model("byte-level")).unwrap();
    assert_eq!(corpus.micro_batches(1, 5, 1, 64), 0);
    let error = corpus.records(1, 0, 1, 64).unwrap_err();
    assert!(matches!(error, CorpusError::NothingLearned { sequence: Some(64), .. }), "{error}");
}

#[test]
fn a_text_goes_on_from_sequence_to_sequence() {
    let text = "and the stone ".repeat(500);
    let folder = Folder::of(&[("a.txt", &text)]);
    let reading = model("byte-level");
    let corpus = folder.open(reading.clone()).unwrap();
    let ids = reading.tokenizer.encode(&text, Special::Parse, true).unwrap();
    assert_eq!(corpus.len(), ids.len() as u64 + 1, "with the end of the text");
    let mut learned = 0;
    for n in 0..corpus.micro_batches(1, 1, 1, 100) {
        learned += corpus.records(1, n, 1, 100).unwrap().labels.iter().filter(|label| **label != IGNORE).count();
    }
    assert_eq!(learned, ids.len(), "all but the first token");
    assert_eq!(corpus.summary(100).cut, 0);
}

#[test]
fn what_is_held_out_is_never_learned_and_does_not_depend_on_order() {
    let lines = chats(400);
    let turned: String = lines.lines().rev().map(|line| format!("{line}\n")).collect();
    let texts = |corpus: &Corpus| -> BTreeSet<String> {
        corpus.preview(usize::MAX).split("\n\n").map(str::to_string).filter(|text| !text.is_empty()).collect()
    };
    let split = |text: &str, held, seed| {
        let folder = Folder::of(&[("a.jsonl", text)]);
        let (learned, held, _) = folder.open(model("byte-level")).unwrap().hold_out(held, seed).unwrap();
        (texts(&learned), texts(&held))
    };
    let (learned, held) = split(&lines, HoldOut::Share(0.1), 5);
    assert_eq!((learned.len(), held.len()), (360, 40));
    assert!(learned.is_disjoint(&held));
    assert_eq!(split(&turned, HoldOut::Share(0.1), 5), (learned.clone(), held.clone()));
    assert_eq!(split(&lines, HoldOut::Count(40), 5).1, held);
    assert_ne!(split(&lines, HoldOut::Count(40), 6).1, held);

    let fables = Corpus::fables(1, 50_000);
    let (learned, held, until) = fables.hold_out(HoldOut::Share(0.2), 1).unwrap();
    assert_eq!(learned.len() + held.len(), fables.len());
    assert!(texts(&learned).is_disjoint(&texts(&held)));
    // The same cut of more data takes nothing from one side to the other.
    let both = format!("{}{}", fables.preview(usize::MAX), Corpus::fables(2, 20_000).preview(usize::MAX));
    let (more, more_held) = Corpus::from_text(&both).hold_out_until(until, 1).unwrap();
    assert!(texts(&learned).is_subset(&texts(&more)) && texts(&held).is_subset(&texts(&more_held)));
    assert!(texts(&more_held).len() > texts(&held).len());
    for held in [HoldOut::Share(0.0), HoldOut::Share(1.0), HoldOut::Count(u64::MAX)] {
        assert!(matches!(fables.hold_out(held, 1), Err(CorpusError::HoldOut { .. })));
    }
}

#[test]
fn the_first_record_is_shown_as_the_model_sees_it() {
    let folder = Folder::of(&[("a.jsonl", "{\"instruction\":\"add\",\"input\":\"1 2\",\"output\":\"3\"}\n")]);
    let piece = |text: &str, learned| Piece { text: text.into(), learned };
    let pieces = folder.open(model("byte-level")).unwrap().pieces(1000).unwrap();
    let shown = [
        piece("<|im_start|>user\nadd\n\n1 2<|im_end|>\n<|im_start|>assistant\n", false),
        piece("3<|im_end|>", true),
        piece("\n", false),
    ];
    assert_eq!(pieces, shown);
    let plain = folder.open(Reading::new(Tokenizer::bytes(), now())).unwrap().pieces(1000).unwrap();
    assert_eq!(plain, [piece("User: add\n\n1 2\nAssistant:", false), piece(" 3\n", true)]);
}

#[test]
fn a_conversation_that_cannot_be_learned_is_named() {
    let lines = "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}\n\
                 {\"messages\":[{\"role\":\"user\",\"content\":\"only asked\"}]}\n";
    let folder = Folder::of(&[("a.jsonl", lines)]);
    let corpus = folder.open(model("byte-level")).unwrap();
    assert_eq!(corpus.skipped.to_string(), "1 with nothing to learn");
    let changing = "{% for m in messages %}{{ m.content if loop.last else '' }}{% endfor %}.";
    let template = ChatTemplate::new(changing, BTreeMap::new()).unwrap();
    let reading = Reading { template: Some(template), ..model("byte-level") };
    let error = folder.open(reading.clone()).unwrap_err();
    assert!(matches!(error, CorpusError::Chat { line: 1, .. }), "{error}");
    let error = folder.open(Reading { skip_bad: true, ..reading }).unwrap_err();
    assert!(matches!(error, CorpusError::NothingLearned { records: 2, sequence: None }), "{error}");
}
