//! SPEC.md says what `wire/` does: its tables are made from the sources, and compared. With `INSTA_UPDATE=always` they are
//! written anew.

use std::{collections::BTreeMap, fs, path::PathBuf};

use skein_protocol::wire::Frame;

use crate::samples::{Draw, FRAMES, frame};

const SOURCES: [(&str, &str); 14] = [
    ("mod", include_str!("../../src/wire/mod.rs")),
    ("limits", include_str!("../../src/wire/limits.rs")),
    ("hello", include_str!("../../src/wire/hello.rs")),
    ("spread", include_str!("../../src/wire/spread.rs")),
    ("membership", include_str!("../../src/wire/membership.rs")),
    ("flow", include_str!("../../src/wire/flow.rs")),
    ("average", include_str!("../../src/wire/average.rs")),
    ("state", include_str!("../../src/wire/state.rs")),
    ("generate", include_str!("../../src/wire/generate.rs")),
    ("id", include_str!("../../src/id.rs")),
    ("key", include_str!("../../src/key.rs")),
    ("hash", include_str!("../../src/hash.rs")),
    ("invite", include_str!("../../src/invite.rs")),
    ("manifest", include_str!("../../src/run/manifest.rs")),
];

const BEGIN: &str = "<!-- from the sources: begin -->\n";
const END: &str = "<!-- from the sources: end -->\n";

/// What stands above the line that is read: the words of its doc comment, and how it is encoded.
#[derive(Default)]
struct Reader {
    words: Vec<String>,
    number: Option<String>,
    /// Of a type: index only, transparent. Of a field: byte string, at most so many elements.
    form: Option<String>,
    encoded: bool,
    inside: bool,
    /// Number of the variant whose named fields are read.
    variant: Option<String>,
}

impl Reader {
    /// Reads a source; adds its constants and types to the tables.
    fn read(&mut self, file: &str, source: &str, limits: &mut Vec<String>, types: &mut Vec<String>) {
        let source = source.split("#[cfg(test)]").next().unwrap_or_default();
        for line in source.lines() {
            let trimmed = line.trim();
            if let Some(words) = trimmed.strip_prefix("/// ") {
                self.words.push(words.to_string());
            } else if trimmed.starts_with("#[derive(") {
                self.encoded = trimmed.contains("Encode");
            } else if let Some(number) = trimmed.strip_prefix("#[n(").and_then(|rest| rest.strip_suffix(")]")) {
                self.number = Some(number.to_string());
            } else if trimmed.starts_with("#[cbor(") {
                self.form = form(trimmed, source);
            } else if trimmed.starts_with("#[") {
                // How a file or a log writes it.
            } else if let Some((name, value)) =
                trimmed.strip_prefix("pub const ").and_then(|rest| rest.split_once(" = "))
            {
                let name = name.split(':').next().unwrap_or_default();
                let words = std::mem::take(&mut self.words).join(" ");
                limits.push(format!("| `{file}::{name}` | `{}` | {words} |", value.trim_end_matches(';')));
            } else if let Some(name) = type_name(trimmed).filter(|_| self.encoded) {
                self.inside = trimmed.ends_with(['{', '(']);
                let form = self.form.take().map_or(String::new(), |form| format!(" ({form})"));
                let words = std::mem::take(&mut self.words).join(" ");
                types.push(format!("\n#### {file}::{name}{form}\n\n{words}\n\n| n | what | meaning |\n|---|---|---|"));
                // `pub struct Utc(#[n(0)] pub u64);`
                if let Some((_, only)) = trimmed.split_once("(#[n(0)] pub ") {
                    types.push(format!("| 0 | `{}` |  |", only.trim_end_matches(");")));
                }
            } else if self.inside && self.number.is_some() {
                let what = trimmed.trim_end_matches([',', '{', ' ']).trim_start_matches("pub ").replace("#[n(0)] ", "");
                let form = self.form.take().map_or(String::new(), |form| format!(", {form}"));
                let words = std::mem::take(&mut self.words).join(" ");
                let number = self.number.take().unwrap_or_default();
                let place = self.variant.as_ref().map_or(number.clone(), |variant| format!("{variant}.{number}"));
                types.push(format!("| {place} | `{what}`{form} | {words} |"));
                self.variant = if trimmed.ends_with('{') { Some(number) } else { self.variant.take() };
            } else {
                match trimmed {
                    "}," => self.variant = None,
                    "}" | ");" => (self.inside, self.encoded) = (false, false),
                    _ => {}
                }
                self.words.clear();
                (self.number, self.form) = (None, None);
            }
        }
    }
}

/// What a `#[cbor(..)]` says of what is below it: the elements that its decoder takes are looked up in the same source.
fn form(attribute: &str, source: &str) -> Option<String> {
    for (word, form) in [("index_only", "index only"), ("transparent", "transparent"), ("\"minicbor::bytes\"", "bytes")]
    {
        if attribute.contains(word) {
            return Some(form.to_string());
        }
    }
    let decoder = attribute.split("decode_with = \"").nth(1)?.split('"').next()?;
    let body = source.split(&format!("fn {decoder}<")).nth(1)?.split("\n}\n").next()?;
    let limit = match body.split("limits::list::<").nth(1) {
        Some(list) => list.split('>').next()?.rsplit(", ").next()?,
        None => body.split("len() > ").nth(1)?.split(' ').next()?,
    };
    Some(format!("at most {limit}"))
}

fn type_name(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub struct ").or_else(|| line.strip_prefix("pub enum "))?;
    rest.split(|c: char| !c.is_alphanumeric()).next()
}

/// The part of SPEC.md that is made from the sources.
fn tables() -> String {
    let (mut limits, mut types) = (Vec::new(), Vec::new());
    for (file, source) in SOURCES {
        Reader::default().read(file, source, &mut limits, &mut types);
    }
    let mut out = String::from("\n### Limits\n\n| name | value | meaning |\n|---|---|---|\n");
    limits.iter().for_each(|line| out += &format!("{line}\n"));
    out += "\n### Types\n";
    types.iter().for_each(|line| out += &format!("{line}\n"));
    out += "\n### One of each\n\nEach frame, encoded. Numbers are made up.\n\n";
    for n in 0..FRAMES {
        let sample = frame(n, &mut Draw::new(n as u64));
        let hex: String = sample.encode().iter().map(|byte| format!("{byte:02x}")).collect();
        out += &format!("- {}: `{hex}`\n", name_of(&sample));
    }
    out + "\n"
}

/// `Flow Forward`, from what a debugger would print.
fn name_of(frame: &Frame) -> String {
    let printed = format!("{frame:?}");
    let mut words = printed.split(['(', ')', ' ']);
    format!("{} {}", words.next().unwrap_or_default(), words.next().unwrap_or_default())
}

fn spec() -> (PathBuf, String) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("SPEC.md");
    let text = fs::read_to_string(&path).expect("SPEC.md is there");
    (path, text)
}

#[test]
fn the_tables_of_the_specification_are_those_of_the_sources() {
    let (path, text) = spec();
    let (before, rest) = text.split_once(BEGIN).expect("a marked part");
    let (written, after) = rest.split_once(END).expect("its end");
    let made = tables();
    if std::env::var("INSTA_UPDATE").is_ok_and(|update| update == "always") {
        return fs::write(path, [before, BEGIN, &made, END, after].concat()).expect("SPEC.md can be written");
    }
    for (written, made) in written.lines().zip(made.lines()) {
        assert_eq!(written, made, "SPEC.md is not what the sources say; INSTA_UPDATE=always writes it anew");
    }
    assert_eq!(written.lines().count(), made.lines().count(), "SPEC.md is not what the sources say");
}

#[test]
fn every_frame_of_the_sources_has_a_sample_and_the_samples_decode() {
    let mut seen = BTreeMap::new();
    for n in 0..FRAMES {
        *seen.entry(name_of(&frame(n, &mut Draw::new(n as u64)))).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), FRAMES, "each number is another frame");
    let variants = |file: &str| {
        let source = SOURCES.iter().find(|(name, _)| *name == file).expect("a source").1;
        let body = source.split("pub enum Frame {").nth(1).and_then(|rest| rest.split("\n}\n").next());
        body.expect("its frames").matches("\n    #[n(").count()
    };
    let files = ["hello", "spread", "flow", "average", "state", "generate"];
    assert_eq!(variants("mod"), files.len());
    assert_eq!(files.map(variants).iter().sum::<usize>(), FRAMES, "a frame without a sample, or the other way about");
    let text = spec().1;
    for line in text.lines().filter(|line| line.starts_with("- ") && line.ends_with('`')) {
        let Some((name, hex)) = line.trim_start_matches("- ").trim_end_matches('`').split_once(": `") else { continue };
        let bytes: Vec<u8> =
            (0..hex.len() / 2).filter_map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).ok()).collect();
        let read = Frame::decode(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((name_of(&read), read.encode()), (name.to_string(), bytes));
    }
}
