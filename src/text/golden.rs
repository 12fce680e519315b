//! What Hugging Face's own tokenizers and transformers answer, compared byte for byte. `golden/make.py` makes the files.

use std::{collections::BTreeMap, path::PathBuf};

use jiff::civil::{DateTime, date};
use minijinja::value::{Serde, Value};
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Templates {
    templates: Vec<Style>,
    features: Vec<Feature>,
    failures: Vec<String>,
    conversations: BTreeMap<String, Vec<Message>>,
    /// In their order, which a JSON object need not keep.
    things: Vec<(String, serde_json::Value)>,
    generation: Generation,
}

#[derive(Deserialize)]
struct Style {
    style: String,
    template: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    conversation: String,
    text: String,
    /// All messages but the last, and how an answer begins.
    prompt: String,
    learned: Vec<(String, bool)>,
}

#[derive(Deserialize)]
struct Feature {
    template: String,
    text: String,
}

#[derive(Deserialize)]
struct Generation {
    template: String,
    cases: Vec<Marked>,
}

#[derive(Deserialize)]
struct Marked {
    conversation: String,
    text: String,
    /// In characters.
    spans: Vec<(usize, usize)>,
}

#[derive(Deserialize)]
struct Tokens {
    name: String,
    vocabulary: usize,
    cases: Vec<TokenCase>,
    chats: Vec<ChatCase>,
}

#[derive(Deserialize)]
struct TokenCase {
    text: String,
    ids: Vec<u32>,
    with_bos: Vec<u32>,
    as_text: Vec<u32>,
    decoded: String,
    skipped: String,
}

#[derive(Deserialize)]
struct ChatCase {
    conversation: String,
    ids: Vec<u32>,
    mask: Vec<u8>,
}

fn templates() -> Templates {
    serde_json::from_str(include_str!("golden/templates.json")).unwrap()
}

fn tokens() -> Vec<(Tokens, Files)> {
    let all: Vec<Tokens> = serde_json::from_str(include_str!("golden/tokenizers.json")).unwrap();
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/text/golden"));
    let files = |name: &str| Files::read(&folder.join(name)).unwrap();
    all.into_iter()
        .map(|tokens| {
            let files = files(&tokens.name);
            (tokens, files)
        })
        .collect()
}

fn now() -> DateTime {
    date(2026, 3, 7).at(9, 5, 2, 0)
}

fn compile(source: &str) -> ChatTemplate {
    let variables = [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, text)| (name.into(), text.into()));
    ChatTemplate::new(source, variables.into()).unwrap()
}

#[test]
fn eight_styles_render_as_transformers_renders_them() {
    let golden = templates();
    assert_eq!(golden.templates.len(), 8);
    for style in &golden.templates {
        let template = compile(&style.template);
        for case in &style.cases {
            let messages = &golden.conversations[&case.conversation];
            let context = format!("{} / {}", style.style, case.conversation);
            assert_eq!(template.render(messages, false, now()).unwrap(), case.text, "{context}");
            let prompt = template.render(&messages[..messages.len() - 1], true, now()).unwrap();
            assert_eq!(prompt, case.prompt, "{context}");
        }
    }
}

#[test]
fn what_is_learned_is_what_was_marked_by_hand() {
    let golden = templates();
    for style in &golden.templates {
        let template = compile(&style.template);
        for case in &style.cases {
            let messages = &golden.conversations[&case.conversation];
            let context = format!("{} / {}", style.style, case.conversation);
            let (text, spans) = chat::spans(&template, messages, Learn::Answers, now()).expect(&context);
            let got: Vec<&str> = spans.iter().map(|span| &text[span.clone()]).collect();
            let by_hand: Vec<&str> =
                case.learned.iter().filter(|(_, learned)| *learned).map(|(text, _)| text.as_str()).collect();
            assert_eq!(got, by_hand, "{context}");

            let example = chat::example(&Tokenizer::bytes(), &template, messages, Learn::Answers, now()).unwrap();
            let by_hand: Vec<bool> =
                case.learned.iter().flat_map(|(text, learned)| vec![*learned; text.len()]).collect();
            assert_eq!(example.learned, by_hand, "{context}");
        }
    }
}

#[test]
fn single_features_render_as_in_python() {
    let golden = templates();
    let things = golden.things.iter().map(|(name, value)| (name.as_str(), Value::from(Serde(value))));
    let more = [("things", Value::from_pairs(things)), ("nothing", Value::from(()))];
    let messages = &golden.conversations["two turns with a system"];
    for feature in &golden.features {
        let got = compile(&feature.template).rendered(messages, false, now(), &more);
        match got {
            Ok(got) => assert_eq!(got, feature.text, "{}", feature.template),
            Err(error) => panic!("{}: {error}", feature.template),
        }
    }
    for source in &golden.failures {
        let compiled = ChatTemplate::new(source, BTreeMap::new());
        let got = compiled.and_then(|template| template.render(messages, false, now()));
        assert!(got.is_err(), "{source}: {got:?}");
    }
}

#[test]
fn generation_marks_are_where_transformers_finds_them() {
    let golden = templates();
    let template = compile(&golden.generation.template);
    assert!(template.marks_generation());
    for case in &golden.generation.cases {
        let messages = &golden.conversations[&case.conversation];
        assert_eq!(template.render(messages, false, now()).unwrap(), case.text);
        let (text, spans) = template.render_spans(messages, now()).unwrap();
        assert_eq!(text, case.text);
        let chars = |bytes: usize| text[..bytes].chars().count();
        let got: Vec<(usize, usize)> = spans.into_iter().map(|span| (chars(span.start), chars(span.end))).collect();
        assert_eq!(got, case.spans, "{}", case.conversation);
    }
}

#[test]
fn ids_and_text_are_those_of_the_python_tokenizers() {
    for (golden, files) in tokens() {
        let tokenizer = Tokenizer::from_files(&files).unwrap();
        assert_eq!(tokenizer.vocabulary(), golden.vocabulary, "{}", golden.name);
        for case in &golden.cases {
            let context = format!("{}: {:?}", golden.name, case.text);
            let encode = |special, bos| tokenizer.encode(&case.text, special, bos).unwrap();
            assert_eq!(encode(Special::Parse, false), case.ids, "{context}");
            assert_eq!(encode(Special::Parse, true), case.with_bos, "{context}");
            assert_eq!(encode(Special::AsText, false), case.as_text, "{context}");
            let spans = tokenizer.encode_spans(&case.text, Special::Parse).unwrap();
            assert_eq!(spans.iter().map(|(id, _)| *id).collect::<Vec<_>>(), case.ids, "{context}");
            assert_eq!(tokenizer.decode(&case.ids, false), case.decoded, "{context}");
            assert_eq!(tokenizer.decode(&case.ids, true), case.skipped, "{context}");
            for (skip, whole) in [(false, &case.decoded), (true, &case.skipped)] {
                let mut decoder = tokenizer.decoder(skip);
                let mut pieces: Vec<String> = case.ids.iter().map(|id| decoder.push(*id)).collect();
                pieces.push(decoder.finish());
                assert_eq!(&pieces.concat(), whole, "{context}: {pieces:?}");
            }
        }
    }
}

#[test]
fn conversations_become_the_ids_and_the_mask_of_transformers() {
    let conversations = templates().conversations;
    for (golden, files) in tokens() {
        let tokenizer = Tokenizer::from_files(&files).unwrap();
        let template = ChatTemplate::from_files(&files).unwrap().unwrap();
        for case in &golden.chats {
            let messages = &conversations[&case.conversation];
            let example = chat::example(&tokenizer, &template, messages, Learn::Answers, now()).unwrap();
            assert_eq!(example.tokens, case.ids, "{}", golden.name);
            let mask: Vec<bool> = case.mask.iter().map(|bit| *bit == 1).collect();
            let told: Vec<_> =
                example.tokens.iter().zip(&example.learned).zip(&mask).filter(|((_, a), b)| a != b).collect();
            assert_eq!(example.learned, mask, "{} {} {told:?}", golden.name, case.conversation);
        }
    }
}
