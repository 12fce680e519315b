//! Answers of tiny models: what comes together is what comes alone, and ends where it should.

use std::{fs, path::Path, sync::mpsc, thread, time::Duration};

use skein_pipeline::{
    compute::{Device, engine, hf},
    exact::Settings,
    model::{StageModel, init},
};
use skein_protocol::run::{Arithmetic, Family, ModelConfig};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{
    batch::Batch,
    session::{Place, Session},
    *,
};
use crate::{
    node::base::BaseError,
    text::{Message, Special, TextError, Tokenizer},
};

fn config(vocab: u32, context: u32) -> ModelConfig {
    ModelConfig {
        hidden: 16,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        ffn: 32,
        vocab,
        context,
        rope_theta: 10_000.0,
        tie_embeddings: false,
        norm_eps: 1e-5,
        head: None,
        rope_scaling: None,
        window: None,
        qkv_bias: false,
        qk_norm: false,
    }
}

/// A model in a folder, with the tokenizer `text` of the golden ones, or bytes.
fn folder(vocab: u32, text: Option<&str>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let model = StageModel::whole(config(vocab, 400)).unwrap();
    let params = init::initial(&model, 3);
    hf::write(dir.path(), Family::Llama, &[(model, params)]).unwrap();
    if let Some(name) = text {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/text/golden").join(name);
        for entry in fs::read_dir(golden).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    dir
}

const LIMITS: Limits = Limits { sessions_max: 4, waiting_max: 8, cache_bytes_max: 1 << 30 };

fn open(dir: &Path) -> Model {
    Model::folder(dir, "tiny".into(), 1, |_| LIMITS).unwrap()
}

fn ask(prompt: &str, seed: u64) -> Ask {
    let sampling = Sampling { temperature: 1.0, top_p: 1.0, seed };
    Ask { tokens_max: Some(12), ..Ask::new(Prompt::Text(prompt.into()), sampling) }
}

fn all(mut said: UnboundedReceiver<Said>) -> (String, Vec<Token>, End) {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    loop {
        match said.blocking_recv() {
            Some(Said::Piece(piece)) => {
                text.push_str(&piece.text);
                tokens.extend(piece.tokens);
            }
            Some(Said::End(end)) => return (text, tokens, end),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_seed_gives_its_text_alone_and_among_others() {
    let dir = folder(256, None);
    let model = open(dir.path());
    let alone: Vec<_> = (0..8).map(|seed| all(model.ask(ask("The fox", seed)).unwrap())).collect();
    assert_ne!(alone[0].0, alone[1].0);
    assert!(alone.iter().all(|(_, _, end)| *end == End { why: Why::Length, prompt_tokens: 7, tokens: 12 }));
    let together: Vec<_> = (0..8).map(|seed| model.ask(ask("The fox", seed)).unwrap()).collect();
    let together: Vec<_> = together.into_iter().map(all).collect();
    assert_eq!(alone, together);
}

#[test]
fn the_context_ends_an_answer_and_what_does_not_fit_is_refused() {
    let dir = folder(256, None);
    let model = open(dir.path());
    let long = Ask { tokens_max: None, ..ask(&"a".repeat(390), 1) };
    assert_eq!(all(model.ask(long).unwrap()).2, End { why: Why::Context, prompt_tokens: 390, tokens: 10 });
    assert!(matches!(model.ask(ask(&"a".repeat(400), 1)), Err(Trouble::TooLong { got: 400, context: 400 })));
    assert!(matches!(model.ask(ask("", 1)), Err(Trouble::Empty)));
    let ids = Ask { ..Ask::new(Prompt::Tokens(vec![256]), Sampling::default()) };
    assert!(matches!(model.ask(ids), Err(Trouble::NoSuchToken { token: 256, vocabulary: 256 })));
    assert!(matches!(model.chat(&[Message::new("user", "hi")]), Err(Trouble::NoTemplate)));
}

#[test]
fn a_stop_ends_the_text_before_it() {
    let dir = folder(256, None);
    let model = open(dir.path());
    let letters = |stops: &[&str]| Ask {
        tokens_max: Some(300),
        taste: Taste {
            bias: (0..256).filter(|t| !(97..100).contains(t)).map(|t| (t, -100.0)).collect(),
            ..Taste::default()
        },
        stops: stops.iter().map(ToString::to_string).collect(),
        ..ask("abc", 5)
    };
    let (whole, _, _) = all(model.ask(letters(&[])).unwrap());
    assert!(whole.len() == 300 && whole.bytes().all(|letter| (b'a'..=b'c').contains(&letter)), "{whole}");
    let (text, _, end) = all(model.ask(letters(&["abc", "cab"])).unwrap());
    let at = whole.find("abc").into_iter().chain(whole.find("cab")).min().unwrap();
    assert_eq!((text.as_str(), end.why), (&whole[..at], Why::Stop));
}

#[test]
fn an_end_token_ends_a_text_and_is_not_shown() {
    let tokenizer =
        Tokenizer::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/text/golden/sentence-piece")).unwrap();
    let dir = folder(tokenizer.vocabulary() as u32 + 3, Some("sentence-piece"));
    let model = open(dir.path());
    assert!(!model.guessed_bytes && matches!(model.template, Some(Template::Own(_))));
    let forced = Taste { bias: [(tokenizer.ends()[0], 100.0)].into(), ..Taste::default() };
    let (text, _, end) = all(model.ask(Ask { taste: forced, ..ask("the stone", 1) }).unwrap());
    let prompt = tokenizer.encode("the stone", Special::Parse, true).unwrap().len() as u64;
    assert_eq!((text.as_str(), end), ("", End { why: Why::Stop, prompt_tokens: prompt, tokens: 1 }));
    // The head has rows that are no tokens: they are never drawn.
    let (text, tokens, end) = all(model.ask(Ask { logprobs: Some(3), ..ask("the stone", 4) }).unwrap());
    assert!(tokens.iter().all(|token| (token.this.id as usize) < tokenizer.vocabulary() && token.top.len() == 3));
    assert!(tokens.len() as u64 >= end.tokens - 1 && !text.contains("</s>"), "{text}");
    let (prompt, stops) = model.chat(&[Message::new("user", "hi")]).unwrap();
    assert!(matches!(prompt, Prompt::Rendered(_)) && stops.is_empty());
}

#[test]
fn a_folder_without_a_tokenizer_is_bytes_or_nothing() {
    let dir = folder(300, None);
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let model = open(dir.path());
    assert!(model.guessed_bytes);
    assert!(all(model.ask(ask("x", 1)).unwrap()).2.tokens == 12);
    let dir = folder(96, None);
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let opened = Model::folder(dir.path(), "tiny".into(), 1, |_| LIMITS);
    assert!(matches!(opened, Err(OpenError::Base(BaseError::Text(TextError::NoTokenizer { .. })))));
}

#[test]
fn more_than_there_are_places_for_are_sent_away() {
    let dir = folder(256, None);
    let limits = Limits { sessions_max: 1, waiting_max: 1, cache_bytes_max: 0 };
    let model = Model::folder(dir.path(), "tiny".into(), 1, |_| limits).unwrap();
    let long = || model.ask(Ask { tokens_max: Some(380), ..ask("a", 1) });
    let (one, two) = (long().unwrap(), long().unwrap());
    assert!(matches!(long(), Err(Trouble::Busy { answering: 1, waiting: 1 })));
    drop((one, two));
    let free = (0..200).any(|_| {
        thread::sleep(Duration::from_millis(5));
        long().is_ok()
    });
    assert!(free, "whoever leaves makes room");
}

/// A batch without a thread.
struct Bench {
    batch: Batch,
    taken: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

impl Bench {
    fn new(limits: Limits) -> Bench {
        let model = StageModel::whole(config(256, 4000)).unwrap();
        let params = init::initial(&model, 3);
        let settings = Settings::still(1, 1);
        let engine = engine(Device::Cpu { threads: 1 }, Arithmetic::F32, model, settings, params).unwrap();
        Bench { batch: Batch::new(engine, limits), taken: Default::default() }
    }

    fn push(&mut self, owner: u64, prompt: usize, tokens_max: u32) -> UnboundedReceiver<Said> {
        let (reply, said) = unbounded_channel();
        let ask = Ask { owner, tokens_max: Some(tokens_max), ..ask("", 1) };
        let place = Place::take(&self.taken, usize::MAX).unwrap();
        self.batch.push(Session::new(ask, vec![97; prompt], Tokenizer::bytes(), 4000, reply, place));
        said
    }
}

/// Whether it is over, after all that was said.
fn is_over(said: &mut UnboundedReceiver<Said>) -> bool {
    std::iter::from_fn(|| said.try_recv().ok()).any(|said| matches!(said, Said::End(_)))
}

#[test]
fn a_long_prompt_holds_nobody_up() {
    let mut bench = Bench::new(LIMITS);
    let mut long = bench.push(1, 1000, 1);
    let mut short = bench.push(2, 1, 3);
    for turn in 1..=4 {
        bench.batch.turn();
        assert_eq!(is_over(&mut long), turn == 4, "256 tokens a turn");
        assert_eq!(is_over(&mut short), turn == 3, "one token a turn");
    }
    assert!(bench.batch.is_idle());
}

#[test]
fn who_has_least_comes_first_and_who_leaves_makes_room() {
    let mut bench = Bench::new(Limits { sessions_max: 2, ..LIMITS });
    let mut greedy: Vec<_> = (0..3).map(|_| bench.push(1, 1, 2)).collect();
    bench.batch.turn();
    let mut modest = bench.push(2, 1, 2);
    bench.batch.turn();
    assert!(is_over(&mut greedy[0]) && is_over(&mut greedy[1]));
    bench.batch.turn();
    bench.batch.turn();
    assert!(is_over(&mut modest) && is_over(&mut greedy[2]));
    let first = bench.push(1, 1, 1000);
    let _second = bench.push(1, 1, 1000);
    let _third = bench.push(1, 1, 1000);
    bench.batch.turn();
    let mut other = bench.push(2, 1, 1);
    bench.batch.turn();
    assert!(!is_over(&mut other), "it came when both places were given to one who had none");
    drop(first);
    bench.batch.turn();
    assert!(is_over(&mut other), "before the third of another");
}

#[test]
fn the_cache_has_a_bound_and_one_alone_is_always_answered() {
    // 2 layers, 2 times 8 values of 4 bytes: 128 bytes a token.
    let mut bench = Bench::new(Limits { cache_bytes_max: 128 * 20, ..LIMITS });
    let mut large = bench.push(1, 50, 2);
    let mut small = bench.push(2, 5, 5);
    bench.batch.turn();
    bench.batch.turn();
    assert!(is_over(&mut large));
    let mut second = bench.push(3, 5, 5);
    let mut third = bench.push(4, 5, 5);
    for _ in 0..5 {
        bench.batch.turn();
    }
    assert!(is_over(&mut small) && is_over(&mut second), "these fit beside each other");
    assert!(!is_over(&mut third));
}

#[test]
fn a_batch_ends_when_nobody_can_ask_any_more() {
    let mut bench = Bench::new(LIMITS);
    let mut said = bench.push(1, 3, 4);
    let (asks, asked) = mpsc::channel();
    drop(asks);
    bench.batch.run(&asked);
    assert!(is_over(&mut said));
}
