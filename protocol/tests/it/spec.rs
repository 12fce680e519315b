//! SPEC.md says what `wire/` does: its tables are made from the sources, and compared. With `INSTA_UPDATE=always` they are
//! written anew.

use std::{collections::BTreeMap, fs, path::PathBuf};

use skein_protocol::wire::Frame;

use crate::samples::{Draw, FRAMES, frame};

const SOURCES: [(&str, &str); 11] = [
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
];

const BEGIN: &str = "<!-- from the sources: begin -->\n";
const END: &str = "<!-- from the sources: end -->\n";

/// A line of a source that an encoder sees, with the words of its doc comment.
#[derive(Default)]
struct Reader {
    words: Vec<String>,
    number: Option<String>,
    encoded: bool,
    inside: bool,
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
            } else if trimmed.starts_with("#[") {
                // How a field is written stands in its type's own section.
            } else if let Some(rest) = trimmed.strip_prefix("pub const ") {
                let (name, value) = rest.split_once(" = ").unwrap_or((rest, ""));
                let name = name.split(':').next().unwrap_or_default();
                let words = std::mem::take(&mut self.words).join(" ");
                limits.push(format!("| `{file}::{name}` | `{}` | {words} |", value.trim_end_matches(';')));
            } else if let Some(name) = type_name(trimmed).filter(|_| self.encoded) {
                self.inside = trimmed.ends_with('{') || trimmed.ends_with('(');
                let words = std::mem::take(&mut self.words).join(" ");
                types.push(format!("\n#### {file}::{name}\n\n{words}\n\n| n | what | meaning |\n|---|---|---|"));
            } else if self.inside && self.number.is_some() {
                let what = trimmed.trim_end_matches(',').trim_start_matches("pub ").replace("#[n(0)] ", "");
                let words = std::mem::take(&mut self.words).join(" ");
                let number = self.number.take().unwrap_or_default();
                types.push(format!("| {number} | `{what}` | {words} |"));
            } else {
                if matches!(trimmed, "}" | ");") {
                    (self.inside, self.encoded) = (false, false);
                }
                self.words.clear();
                self.number = None;
            }
        }
    }
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
