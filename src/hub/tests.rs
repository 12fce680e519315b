//! Against a little server that answers as the Hub does, and as it does on bad days.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Client, Endpoint, HubError, Progress, Source, pull, shelf};

/// What the server does wrong.
#[derive(Clone, Debug, Default)]
struct Day {
    /// Each answer with a file ends after so many bytes.
    cut: Option<usize>,
    /// Ranges are not known to it.
    whole: bool,
    /// Instead of any answer.
    status: Option<u16>,
    /// It wants this key.
    token: Option<String>,
}

struct Hub {
    url: String,
    day: Arc<Mutex<Day>>,
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    listing: Arc<Mutex<Value>>,
    /// Paths that were asked for, with the range.
    asked: Arc<Mutex<Vec<String>>>,
}

fn weights() -> Vec<u8> {
    (0..300_000u32).map(|i| (i * 31 % 251) as u8).collect()
}

impl Hub {
    fn start() -> Hub {
        let files: BTreeMap<String, Vec<u8>> = [
            ("config.json", b"{\"model_type\":\"llama\"}".to_vec()),
            ("tokenizer.json", b"{}".to_vec()),
            ("model.safetensors", weights()),
            ("pytorch_model.bin", b"\x80".to_vec()),
            ("onnx/model.onnx", b"no".to_vec()),
        ]
        .map(|(name, bytes)| (name.to_string(), bytes))
        .into();
        let listing = listing(&files, "c0ffee");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = Hub {
            url: format!("http://{}", listener.local_addr().unwrap()),
            day: Arc::default(),
            files: Arc::new(Mutex::new(files)),
            listing: Arc::new(Mutex::new(listing)),
            asked: Arc::default(),
        };
        let (day, files, listing, asked) = (hub.day.clone(), hub.files.clone(), hub.listing.clone(), hub.asked.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let day = day.lock().unwrap().clone();
                // Who hangs up is of no interest.
                _ = answer(stream, &day, &files.lock().unwrap(), &listing.lock().unwrap(), &asked);
            }
        });
        hub
    }

    fn client(&self, token: Option<&str>) -> Client {
        Client::new(Endpoint { url: self.url.clone(), token: token.map(str::to_string) })
    }

    fn on(&self, day: Day) {
        *self.day.lock().unwrap() = day;
    }
}

fn listing(files: &BTreeMap<String, Vec<u8>>, sha: &str) -> Value {
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(&Sha256::digest(bytes));
    let siblings: Vec<Value> = files
        .iter()
        .map(|(name, bytes)| match name.ends_with(".safetensors") {
            true => {
                json!({ "rfilename": name, "size": bytes.len(), "lfs": { "sha256": hex(bytes), "size": bytes.len() } })
            }
            false => json!({ "rfilename": name, "size": bytes.len() }),
        })
        .collect();
    json!({ "id": "tiny/model", "sha": sha, "gated": false, "siblings": siblings })
}

fn answer(
    stream: TcpStream,
    day: &Day,
    files: &BTreeMap<String, Vec<u8>>,
    listing: &Value,
    asked: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_string();
    let (mut from, mut key) = (0, None);
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ").unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "range" => from = value.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0),
            "authorization" => key = value.strip_prefix("Bearer ").map(str::to_string),
            _ => {}
        }
    }
    asked.lock().unwrap().push(format!("{path} {from}"));
    let mut stream = stream;
    let mut head = |status: &str, len: usize| {
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n")
    };
    if let Some(status) = day.status {
        return head(&format!("{status} No"), 0);
    }
    if day.token.is_some() && day.token != key {
        return head("401 Unauthorized", 0);
    }
    if path.starts_with("/api/models/tiny/model/revision/main") {
        let body = listing.to_string();
        head("200 OK", body.len())?;
        return stream.write_all(body.as_bytes());
    }
    let Some(bytes) = path.strip_prefix("/tiny/model/resolve/").and_then(|rest| files.get(rest.split_once('/')?.1))
    else {
        return head("404 Not Found", 0);
    };
    let from = if day.whole { 0 } else { from };
    let bytes = &bytes[from.min(bytes.len())..];
    head(if from > 0 { "206 Partial Content" } else { "200 OK" }, bytes.len())?;
    stream.write_all(&bytes[..bytes.len().min(day.cut.unwrap_or(usize::MAX))])
}

#[derive(Default)]
struct Seen(RefCell<(u64, u64, u32)>);

impl Progress for Seen {
    fn begin(&self, _: usize, bytes: u64) {
        self.0.borrow_mut().0 = bytes;
    }
    fn at(&self, bytes: u64) {
        self.0.borrow_mut().1 = bytes;
    }
    fn again(&self, _: &str) {
        self.0.borrow_mut().2 += 1;
    }
}

fn source() -> Source {
    "hf:tiny/model".parse().unwrap()
}

fn pulled(hub: &Hub, models: &std::path::Path, token: Option<&str>) -> Result<(u64, u64, u32), HubError> {
    let seen = Seen::default();
    let folder = models.join(source().folder());
    pull(&hub.client(token), &source(), &folder, Duration::ZERO, &seen)?;
    Ok(seen.0.into_inner())
}

#[test]
fn names_are_taken_apart_and_nothing_else_is_one() {
    let parsed = |text: &str| text.parse::<Source>();
    let full = parsed("hf:Tiny-Org/Tiny_1.1B@v1.0").unwrap();
    assert_eq!((full.id().as_str(), full.folder().as_str()), ("Tiny-Org/Tiny_1.1B", "Tiny-Org--Tiny_1.1B@v1.0"));
    assert_eq!(parsed("gpt2").unwrap().folder(), "gpt2@main");
    assert_eq!(
        (parsed("a/b").unwrap().to_string(), full.to_string()),
        ("a/b".into(), "Tiny-Org/Tiny_1.1B@v1.0".into())
    );
    for wrong in
        ["", "hf:", "a/", "/b", "a/b/c", "../b", "a/..", "a/b@", "a/b@x/y", "a b/c", "a/b?x", "a--b/c", "a/.b", "ä/b"]
    {
        assert!(parsed(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn what_is_needed_comes_and_nothing_else() {
    let (hub, models) = (Hub::start(), tempfile::tempdir().unwrap());
    let (begun, done, again) = pulled(&hub, models.path(), None).unwrap();
    assert_eq!((begun, done, again), (done, 300_024, 0));
    let folder = shelf::find(models.path(), &source()).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "skein-source.json", "tokenizer.json"]);
    let listed = shelf::list(models.path());
    assert!(listed.len() == 1 && listed[0].1.complete && listed[0].1.commit == "c0ffee" && listed[0].1.bytes == done);
    assert_eq!(listed[0].1.source(), Some(source()));
    // Once more: nothing of it is asked for again.
    hub.asked.lock().unwrap().clear();
    pulled(&hub, models.path(), None).unwrap();
    assert_eq!(hub.asked.lock().unwrap().len(), 1);
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_was() {
    let (hub, models) = (Hub::start(), tempfile::tempdir().unwrap());
    hub.on(Day { cut: Some(70_000), ..Day::default() });
    let (_, _, again) = pulled(&hub, models.path(), None).unwrap();
    assert_eq!(again, 4, "five pieces");
    let asked = hub.asked.lock().unwrap().clone();
    let of_weights: Vec<&str> =
        asked.iter().filter_map(|line| line.strip_prefix("/tiny/model/resolve/c0ffee/model.safetensors ")).collect();
    assert_eq!(of_weights, ["0", "70000", "140000", "210000", "280000"]);
    assert_eq!(fs::read(models.path().join("tiny--model@main/model.safetensors")).unwrap(), weights());
}

#[test]
fn one_that_died_is_taken_up_by_the_next_and_a_server_without_ranges_begins_anew() {
    for whole in [false, true] {
        let (hub, models) = (Hub::start(), tempfile::tempdir().unwrap());
        let folder = models.path().join(source().folder());
        fs::create_dir_all(&folder).unwrap();
        hub.on(Day { cut: Some(0), ..Day::default() });
        assert!(matches!(pulled(&hub, models.path(), None), Err(HubError::Unreachable { .. })));
        assert!(shelf::find(models.path(), &source()).is_none() && shelf::list(models.path()).len() == 1);
        fs::write(folder.join("model.safetensors.part"), &weights()[..100_000]).unwrap();
        hub.on(Day { whole, ..Day::default() });
        pulled(&hub, models.path(), None).unwrap();
        assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
        let asked = hub.asked.lock().unwrap().clone();
        assert!(asked.last().unwrap().ends_with(" 100000"), "{asked:?}");
    }
}

#[test]
fn what_is_left_of_another_commit_is_not_mixed_in() {
    let (hub, models) = (Hub::start(), tempfile::tempdir().unwrap());
    pulled(&hub, models.path(), None).unwrap();
    let mut new = weights();
    new[7] ^= 1;
    hub.files.lock().unwrap().insert("model.safetensors".into(), new.clone());
    *hub.listing.lock().unwrap() = listing(&hub.files.lock().unwrap(), "beef");
    pulled(&hub, models.path(), None).unwrap();
    assert_eq!(fs::read(models.path().join("tiny--model@main/model.safetensors")).unwrap(), new);
}

#[test]
fn bytes_that_were_not_announced_are_refused_and_do_not_stay() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 3] = [
        ("SHA-256", |bytes| bytes[5] ^= 1),
        ("more come", |bytes| bytes.push(0)),
        ("broke off", |bytes| bytes.truncate(200_000)),
    ];
    for (said, damage) in damages {
        let (hub, models) = (Hub::start(), tempfile::tempdir().unwrap());
        damage(hub.files.lock().unwrap().get_mut("model.safetensors").unwrap());
        let told = pulled(&hub, models.path(), None).unwrap_err().to_string();
        assert!(told.contains(said), "{told}");
        assert!(!models.path().join("tiny--model@main/model.safetensors").exists());
        assert!(shelf::find(models.path(), &source()).is_none());
    }
}

#[test]
fn refusals_have_their_reason() {
    let (hub, models) = (Hub::start(), tempfile::tempdir().unwrap());
    hub.on(Day { token: Some("hf_key".into()), ..Day::default() });
    assert!(
        matches!(pulled(&hub, models.path(), None), Err(HubError::Refused { why, .. }) if why.contains("HF_TOKEN is set"))
    );
    assert!(
        matches!(pulled(&hub, models.path(), Some("no")), Err(HubError::Refused { why, .. }) if why.contains("not taken"))
    );
    pulled(&hub, models.path(), Some("hf_key")).unwrap();
    for (status, what) in [(403, "Refused"), (404, "Unknown"), (429, "Unreachable"), (500, "Unreachable")] {
        hub.on(Day { status: Some(status), ..Day::default() });
        let told = format!("{:?}", pulled(&hub, models.path(), None).unwrap_err());
        assert!(told.starts_with(what), "{told}");
    }
    hub.on(Day::default());
    for (gone, said) in [("model.safetensors", "pickles are not read"), ("config.json", "no config.json")] {
        hub.files.lock().unwrap().remove(gone);
        *hub.listing.lock().unwrap() = listing(&hub.files.lock().unwrap(), "c0ffee");
        let told = pulled(&hub, models.path(), None).unwrap_err().to_string();
        assert!(told.contains(said), "{told}");
    }
    *hub.listing.lock().unwrap() = json!("not the Hub");
    assert!(matches!(pulled(&hub, models.path(), None), Err(HubError::Unreachable { .. })));
    let nobody = Client::new(Endpoint { url: "http://127.0.0.1:9".into(), token: None });
    assert!(matches!(nobody.list(&source()), Err(HubError::Unreachable { .. })));
}
