//! `skein serve` and `skein chat` as programs meet them: a tiny model in a folder, plain HTTP, pipes.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use skein::text::Tokenizer;
use skein_pipeline::{
    compute::hf,
    model::{StageModel, init},
};
use skein_protocol::run::{Family, ModelConfig};
use ureq::{Agent, Body, http::Response};

use crate::{deadline, model::small, process::Skein};

/// A model with the tokenizer and the chat template of the golden tests, and weights of a seed.
fn model(dir: &Path, context: u32) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/text/golden/byte-level");
    let config = ModelConfig { context, ..small(Tokenizer::open(&golden).unwrap().vocabulary()) };
    let model = StageModel::whole(config).unwrap();
    let weights = init::initial(&model, 3);
    fs::create_dir_all(dir).unwrap();
    hf::write(dir, Family::Llama, &[(model, weights)]).unwrap();
    for entry in fs::read_dir(golden).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
    }
}

struct Api {
    caller: Caller,
    skein: Skein,
    _home: tempfile::TempDir,
}

/// A program that asks.
struct Caller {
    url: String,
    agent: Agent,
    key: Option<&'static str>,
}

impl std::ops::Deref for Api {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

impl Api {
    fn start(context: u32, key: Option<&'static str>, more: &[&str]) -> Api {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("tiny");
        model(&dir, context);
        let (skein, caller) = served(home.path(), dir.to_str().unwrap(), key, more);
        Api { caller, skein, _home: home }
    }
}

/// `skein serve MODEL` with this home, and who asks it.
fn served(home: &Path, model: &str, key: Option<&'static str>, more: &[&str]) -> (Skein, Caller) {
    let mut args = vec!["serve", model, "--listen", "127.0.0.1:0"];
    args.extend(key.iter().flat_map(|key| ["--api-key", key]));
    args.extend(more);
    let mut skein = Skein::start(home, &args);
    let url = skein.wait_for("Serving")["url"].as_str().unwrap().to_string();
    let agent = Agent::config_builder().proxy(None).http_status_as_error(false).build().into();
    (skein, Caller { url, agent, key })
}

impl Caller {
    fn post(&self, path: &str, body: &Value) -> Response<Body> {
        self.send(path, body.to_string().as_bytes())
    }

    fn send(&self, path: &str, body: &[u8]) -> Response<Body> {
        let mut request = self.agent.post(format!("{}{path}", self.url)).content_type("application/json");
        if let Some(key) = self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        request.send(body).unwrap()
    }

    fn ask(&self, path: &str, body: &Value) -> (u16, Value) {
        let mut response = self.post(path, body);
        (response.status().as_u16(), response.body_mut().read_json().unwrap())
    }

    fn get(&self, path: &str) -> (u16, Value) {
        let mut response = self.agent.get(format!("{}{path}", self.url)).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_json().unwrap())
    }

    /// The data of each event.
    fn events(&self, path: &str, body: &Value) -> Vec<String> {
        let response = self.post(path, body);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let lines = BufReader::new(response.into_body().into_reader()).lines().map(Result::unwrap);
        lines.filter_map(|line| line.strip_prefix("data: ").map(str::to_string)).collect()
    }
}

fn chat(more: Value) -> Value {
    let mut request = json!({
        "model": "tiny",
        "messages": [{ "role": "user", "content": "the stone and the water" }],
        "max_tokens": 12,
        "seed": 7,
    });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

const CHAT: &str = "/chat/completions";

#[test]
fn a_folder_is_served_as_the_api_of_openai() {
    let api = Api::start(512, None, &[]);
    let (status, models) = api.get("/models");
    assert_eq!((status, &models["data"][0]["id"]), (200, &json!("tiny")));
    assert_eq!(api.get("/models/tiny").1["skein"]["context"], 512);
    let health = api.url.replace("/v1", "/health");
    assert_eq!(api.agent.get(health).call().unwrap().status(), 200);

    let (status, whole) = api.ask(CHAT, &chat(json!({})));
    assert_eq!((status, &whole["object"]), (200, &json!("chat.completion")), "{whole}");
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    let usage = &whole["usage"];
    assert!(usage["prompt_tokens"].as_u64().unwrap() > 5 && usage["completion_tokens"].as_u64().unwrap() <= 12);

    let events = api.events(CHAT, &chat(json!({ "stream": true, "stream_options": { "include_usage": true } })));
    assert_eq!(events.last().unwrap(), "[DONE]");
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    let streamed: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(streamed, text);
    let (last, before) = chunks.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), usage));
    assert!(before.iter().all(|chunk| chunk["usage"].is_null() && chunk["id"] == last["id"]));
    assert_eq!(before.last().unwrap()["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]);

    let prompt = json!({ "model": "tiny", "prompt": "the stone", "max_tokens": 6, "temperature": 0, "echo": true });
    let (_, completion) = api.ask("/completions", &prompt);
    assert!(completion["choices"][0]["text"].as_str().unwrap().starts_with("the stone"), "{completion}");
}

#[test]
fn errors_have_the_form_of_the_api_and_name_the_field() {
    let api = Api::start(64, None, &[]);
    for (path, body, status, code, param) in [
        (CHAT, chat(json!({ "tools": [{}] })), 400, "unsupported_parameter", json!("tools")),
        (CHAT, chat(json!({ "top_p": 2 })), 400, "invalid_value", json!("top_p")),
        (CHAT, chat(json!({ "model": "other" })), 404, "model_not_found", json!("model")),
        (
            CHAT,
            chat(json!({ "messages": [{ "role": "user", "content": "stone ".repeat(200) }] })),
            400,
            "context_length_exceeded",
            json!("messages"),
        ),
        ("/completions", json!({ "model": "tiny", "prompt": [9_999_999] }), 400, "invalid_value", json!("prompt")),
        ("/embeddings", json!({}), 404, "unknown_url", Value::Null),
        ("/models", json!({}), 405, "method_not_allowed", Value::Null),
    ] {
        let (got, answer) = api.ask(path, &body);
        let error = &answer["error"];
        assert_eq!((got, &error["code"], &error["param"]), (status, &json!(code), &param), "{body}: {answer}");
        assert!(error["message"].as_str().unwrap().ends_with('.') && error["type"].is_string(), "{answer}");
    }
    assert_eq!(api.send(CHAT, b"{").status(), 400);
    assert_eq!(api.send(CHAT, &vec![b' '; (8 << 20) + 1]).status(), 413);
    let ignored = api.post(CHAT, &chat(json!({ "user": "ada", "metadata": {} })));
    assert_eq!(ignored.headers()["x-skein-ignored"], "metadata, user");
    let foreign = api.agent.post(format!("{}{CHAT}", api.url)).header("Origin", "https://evil.example");
    assert_eq!(foreign.send(chat(json!({})).to_string().as_bytes()).unwrap().status(), 403);
}

#[test]
fn a_key_is_needed_where_there_is_one_and_beyond_this_machine() {
    let mut api = Api::start(64, Some("secret"), &[]);
    assert_eq!(api.ask(CHAT, &chat(json!({}))).0, 200);
    for key in [None, Some("secre"), Some("secret2")] {
        api.caller.key = key;
        let (status, answer) = api.ask(CHAT, &chat(json!({})));
        assert_eq!((status, &answer["error"]["code"]), (401, &json!("invalid_api_key")));
    }
    assert_eq!(api.agent.get(api.url.replace("/v1", "/health")).call().unwrap().status(), 200);
    let open = api.skein.ask(&["serve", "./tiny", "--listen", "0.0.0.0:0", "--json"]);
    assert!(open.status.code() == Some(2) && String::from_utf8_lossy(&open.stdout).contains("SK118"));
    let address = api.url.strip_prefix("http://").unwrap().strip_suffix("/v1").unwrap();
    let taken = api.skein.ask(&["serve", "./tiny", "--listen", address, "--json"]);
    assert!(taken.status.code() == Some(4) && String::from_utf8_lossy(&taken.stdout).contains("SK104"));
}

#[test]
fn sixteen_are_answered_together_and_more_than_wait_are_sent_away() {
    let api = Api::start(8192, None, &[]);
    let alone: Vec<Value> =
        (0..4).map(|seed| api.ask(CHAT, &chat(json!({ "seed": seed }))).1["choices"].clone()).collect();
    let together: Vec<Value> = thread::scope(|scope| {
        let one = |seed: usize| {
            let api = &api.caller;
            scope.spawn(move || api.ask(CHAT, &chat(json!({ "seed": seed }))).1["choices"].clone())
        };
        let asked: Vec<_> = (0..16).map(one).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert_eq!(together[..4], alone);

    let endless = json!({ "max_tokens": 8000, "stream": true, "logit_bias": ends() });
    let open: Vec<Response<Body>> =
        (0..12).map(|_| api.post(CHAT, &chat(merged(&endless, &json!({ "n": 4 }))))).collect();
    let (status, answer) = api.ask(CHAT, &chat(json!({})));
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("too_many_requests")), "{answer}");
    drop(open);
    let since = Instant::now();
    while api.ask(CHAT, &chat(json!({}))).0 == 429 {
        assert!(since.elapsed() < Duration::from_secs(20), "places of those who left are free again");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Forbids every token that ends a text.
fn ends() -> Value {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/text/golden/byte-level");
    let ends = Tokenizer::open(&golden).unwrap().ends().to_vec();
    ends.into_iter().map(|end| (end.to_string(), json!(-100))).collect::<serde_json::Map<_, _>>().into()
}

fn merged(a: &Value, b: &Value) -> Value {
    let mut whole = a.clone();
    whole.as_object_mut().unwrap().extend(b.as_object().unwrap().clone());
    whole
}

#[test]
fn a_client_that_vanishes_frees_its_place() {
    let api = Api::start(8192, None, &["--max-concurrent", "1"]);
    let address = api.url.strip_prefix("http://").unwrap().strip_suffix("/v1").unwrap();
    for stream in [true, false] {
        let endless = chat(json!({ "max_tokens": 8000, "stream": stream, "logit_bias": ends() })).to_string();
        let mut socket = TcpStream::connect(address).unwrap();
        let head = format!("POST /v1{CHAT} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n", endless.len());
        socket.write_all(head.as_bytes()).unwrap();
        socket.write_all(endless.as_bytes()).unwrap();
        if stream {
            socket.read_exact(&mut [0; 64]).unwrap();
        } else {
            thread::sleep(Duration::from_millis(300));
        }
        drop(socket);
        let since = Instant::now();
        assert_eq!(api.ask(CHAT, &chat(json!({ "max_tokens": 1 }))).0, 200);
        let took = since.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}: the one before is computed no more");
    }
}

/// What the API makes of a live run: `home` is that of one of its peers.
pub fn a_run_is_served(home: &Path, run: &str) {
    let (_skein, api) = served(home, run, None, &["--template", "plain"]);
    let ask = |more| merged(&json!({ "model": run, "prompt": "The fox", "max_tokens": 8, "seed": 7 }), &more);
    let (status, whole) = api.ask("/completions", &ask(json!({})));
    assert_eq!((status, &whole["usage"]["completion_tokens"]), (200, &json!(8)), "{whole}");
    let events = api.events("/completions", &ask(json!({ "stream": true })));
    let chunks = events[..events.len() - 1].iter().map(|event| serde_json::from_str::<Value>(event).unwrap());
    let streamed: String = chunks.filter_map(|c| c["choices"][0]["text"].as_str().map(str::to_string)).collect();
    assert!(!streamed.is_empty() && events.last().unwrap() == "[DONE]", "{events:?}");
    assert_eq!(api.ask(CHAT, &merged(&chat(json!({})), &json!({ "model": run }))).0, 200);
    let (status, answer) = api.ask("/completions", &ask(json!({ "prompt": "fox ".repeat(1000) })));
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")), "{answer}");
    // What decides between tokens, and how likely they were, is the same as of a model.
    let likely = ask(json!({ "logprobs": 2, "temperature": 0, "logit_bias": { "101": 100 }, "max_tokens": 3 }));
    let (status, answer) = api.ask("/completions", &likely);
    let choice = &answer["choices"][0];
    assert_eq!((status, &choice["text"]), (200, &json!("eee")), "{answer}");
    let odds = &choice["logprobs"];
    assert_eq!((&odds["tokens"], odds["top_logprobs"][2].as_object().unwrap().len()), (&json!(["e", "e", "e"]), 2));
    assert!(odds["token_logprobs"][0].as_f64().unwrap() < 0.0, "{answer}");
    let of_tokens = ask(json!({ "prompt": [84, 104, 101], "top_k": 1, "max_tokens": 2 }));
    let (status, answer) = api.ask("/completions", &of_tokens);
    assert_eq!((status, &answer["usage"]["prompt_tokens"]), (200, &json!(3)), "{answer}");
    let (status, answer) = api.ask("/completions", &ask(json!({ "prompt": [70_000] })));
    assert_eq!((status, answer["error"]["type"].as_str()), (400, Some("invalid_request_error")), "{answer}");
}

/// As [`a_run_is_served`], of a run with the tokenizer and the template of [`model`], on the machine where these lie.
pub fn a_run_converses_in_its_own_words(home: &Path, run: &str) {
    let (_skein, api) = served(home, run, None, &[]);
    assert_eq!(api.get("/models").1["data"][0]["skein"]["chat_template"], true);
    let of_folder = Api::start(128, None, &[]);
    let request = chat(json!({ "max_tokens": 3 }));
    let (_, folder) = of_folder.ask(CHAT, &request);
    let (status, whole) = api.ask(CHAT, &merged(&request, &json!({ "model": run })));
    assert_eq!((status, &whole["usage"]["prompt_tokens"]), (200, &folder["usage"]["prompt_tokens"]), "{whole}");
}

/// As [`a_run_is_served`], while a stage has no replica.
pub fn a_run_that_nobody_serves_is_asked_again_later(home: &Path, run: &str) {
    let (_skein, api) = served(home, run, None, &[]);
    let mut response = api.post("/completions", &json!({ "model": run, "prompt": "The fox" }));
    let answer: Value = response.body_mut().read_json().unwrap();
    assert_eq!((response.status().as_u16(), &answer["error"]["code"]), (503, &json!("stage_unavailable")), "{answer}");
    assert_eq!(response.headers()["retry-after"], "5");
    let (status, answer) = api.ask(CHAT, &merged(&chat(json!({})), &json!({ "model": run })));
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("no_chat_template")));
}

#[cfg(unix)]
#[test]
fn an_answer_under_way_is_finished_when_the_server_is_asked_to_end() {
    let api = Api::start(8192, None, &[]);
    let request = json!({ "max_tokens": 1500, "stream": true, "logit_bias": ends() });
    let response = api.post(CHAT, &chat(request));
    api.skein.signal(libc::SIGINT);
    let lines: Vec<String> = BufReader::new(response.into_body().into_reader()).lines().map(Result::unwrap).collect();
    assert_eq!(lines.iter().rev().find(|line| !line.is_empty()).unwrap(), "data: [DONE]");
    let Api { skein, .. } = api;
    assert!(skein.finish().1.success());
}

#[test]
fn the_openai_package_of_python_is_content() {
    let python = std::env::var("SKEIN_TEST_PYTHON").unwrap_or("python3".into());
    let there = Command::new(&python).args(["-c", "import openai"]).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        eprintln!("skipped: {python} has no package `openai`; SKEIN_TEST_PYTHON names another");
        return;
    }
    let api = Api::start(512, Some("secret"), &[]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/talk/clients.py");
    let output = deadline::output(Command::new(python).arg(script).args([&api.url, "secret", "tiny"]));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.ends_with("ok\n"), "{stdout}{stderr}");
}

#[test]
fn a_conversation_through_pipes_has_an_answer_for_each_line() {
    let home = tempfile::tempdir().unwrap();
    model(&home.path().join("tiny"), 512);
    let talk = |lines: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_skein"))
            .args(["chat", "./tiny", "--seed", "7", "--max-tokens", "8", "--json"])
            .env_clear()
            .env("SKEIN_HOME", home.path())
            .current_dir(home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let output = deadline::output_of(child);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let stdout = String::from_utf8(output.stdout).unwrap();
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let answers = talk("the stone\nand the water\n/save talk.jsonl\n/reset\n/seed 7\nthe stone\n/bye\nnever said\n");
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[0]["text"], answers[2]["text"], "the same from the same beginning");
    let saved: Value = serde_json::from_str(&fs::read_to_string(home.path().join("talk.jsonl")).unwrap()).unwrap();
    let roles: Vec<&str> = saved["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"]);
    let again = talk("the stone\n/regenerate\n");
    assert_eq!(again[0]["text"], answers[0]["text"]);
    assert_eq!(again.len(), 2);
}
