//! How a failure reaches a person: four parts on stderr, or one JSON object on stdout, and the exit code. In: [`Failure`]s, and
//! the typed errors of our other modules. Out: text. The words stand in `catalogue`.

use std::{error, fmt};

use serde::{Deserialize, Serialize};

pub use super::catalogue::{Failure, Hint, Level, TEXTS, Text};
use super::show::{Bytes, counted};
use crate::{
    config::{ConfigError, Origin, Place, profile},
    corpus::CorpusError,
    home::{HomeError, file},
    watch::{ClientError, Refusal},
};

/// What a command ends with when it did not succeed.
#[derive(Debug)]
pub struct Report {
    pub failure: Box<Failure>,
    /// What lies beneath, for `-v` and the log.
    pub cause: Option<Box<dyn error::Error + Send + Sync>>,
}

/// The form of a failure in `--json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    pub code: String,
    pub exit: u8,
    pub what: String,
    pub why: String,
    /// What to do, without what that is good for: each can be pasted.
    pub next: Vec<String>,
}

impl Failure {
    pub fn code(&self) -> &'static str {
        self.text().code
    }

    pub fn exit(&self) -> u8 {
        self.text().exit
    }

    pub fn what(&self) -> String {
        self.fill(self.text().what)
    }

    pub fn why(&self) -> String {
        self.fill(self.text().why)
    }

    /// What to do, and what that is good for.
    pub fn next(&self) -> Vec<(String, String)> {
        self.text().next.iter().map(|(act, note)| (self.fill(act), self.fill(note))).collect()
    }

    pub fn document(&self) -> Document {
        Document {
            code: self.code().into(),
            exit: self.exit(),
            what: self.what(),
            why: self.why(),
            next: self.next().into_iter().map(|(act, _)| act).collect(),
        }
    }

    /// The lines below the first: why, next and code, aligned.
    pub fn details(&self) -> String {
        let mut text = String::new();
        for (i, line) in self.why().lines().enumerate() {
            text.push_str(&format!("  {:<4}  {line}\n", if i == 0 { "why" } else { "" }));
        }
        let next = self.next();
        let width = next.iter().map(|(act, _)| act.chars().count()).max().unwrap_or(0);
        for (i, (act, note)) in next.iter().enumerate() {
            text.push_str(&format!("  {:<4}  {act:<width$}   {note}\n", if i == 0 { "next" } else { "" }));
        }
        let code = self.code();
        text.push_str(&format!("  code  {code} · skein explain {code}\n"));
        text
    }

    fn fill(&self, template: &str) -> String {
        let fields = self.fields();
        let mut text = String::with_capacity(template.len());
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').expect("templates are balanced, as a test sees");
            text.push_str(before);
            let value = fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value.as_str());
            text.push_str(value.expect("templates name fields, as a test sees"));
            rest = after;
        }
        text + rest
    }
}

impl Report {
    pub fn exit(&self) -> u8 {
        self.failure.exit()
    }
}

impl From<Failure> for Report {
    fn from(failure: Failure) -> Self {
        Report { failure: Box::new(failure), cause: None }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.failure.code(), self.failure.what())
    }
}

impl From<ConfigError> for Report {
    fn from(error: ConfigError) -> Self {
        Failure::from(error).into()
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        match error {
            ConfigError::Unknown { key, place, near } => {
                Failure::UnknownKey { key, place: place.to_string(), hint: near.into() }
            }
            ConfigError::Value { key, value, allowed, example, place } => {
                Failure::BadValue { fix: fix(&place, &key, &example), key, value, allowed, place: place.to_string() }
            }
            ConfigError::NoUnit { key, value, could_be, example, place } => {
                let (fix, could_be) = (fix(&place, &key, &example), could_be.into());
                Failure::NoUnit { fix, key, value, could_be, place: place.to_string() }
            }
            ConfigError::Contradiction { a, b, reason } => Failure::Contradiction { a, b, reason: reason.into() },
            ConfigError::Profile { name, near } => {
                let known: Vec<&str> = profile::names().collect();
                Failure::NoProfile { name, known: known.join(", "), hint: near.into() }
            }
            ConfigError::Syntax { place, message } => Failure::BadSyntax { place: place.to_string(), message },
            ConfigError::Unreadable { path, message } => {
                let owner = owner(&path);
                Failure::Unwritable { path: path.display().to_string(), error: message, owner }
            }
        }
    }
}

/// A value that would do, as it is written where the wrong one stands.
fn fix(place: &Place, key: &str, example: &str) -> String {
    let bare = example.trim_matches('"');
    match &place.0 {
        Origin::Flag(flag) => format!("{flag} {bare}"),
        Origin::Environment(name) => format!("{name}={bare}"),
        Origin::Default | Origin::Profile(_) | Origin::File { .. } => format!("{key} = {example}"),
    }
}

impl From<&HomeError> for Failure {
    fn from(error: &HomeError) -> Self {
        match error {
            HomeError::Nowhere => Failure::NoHome {},
            HomeError::InUse { path, pid } => {
                let home = path.parent().map_or("skein-home".into(), |home| home.display().to_string());
                Failure::HomeInUse {
                    holder: pid.map_or("of unknown number".into(), |pid| pid.to_string()),
                    path: path.display().to_string(),
                    other: format!("{home}-2"),
                }
            }
            HomeError::KeyOpen { path, mode } => {
                Failure::KeyOpen { path: path.display().to_string(), mode: format!("{mode:04o}") }
            }
            HomeError::NotAKey { path, bytes, reason } => {
                Failure::NotAKey { path: path.display().to_string(), bytes: *bytes, reason: reason.to_string() }
            }
            HomeError::Damaged { path, why } => Failure::Damaged { path: path.display().to_string(), why: why.clone() },
            HomeError::DiskFull { path, free, needed } => {
                Failure::DiskFull { path: path.display().to_string(), free: Bytes(*free), need: Bytes(*needed) }
            }
            HomeError::Denied { path, source } => {
                Failure::Unwritable { path: path.display().to_string(), error: source.to_string(), owner: owner(path) }
            }
        }
    }
}

impl From<HomeError> for Report {
    fn from(error: HomeError) -> Self {
        Report { failure: Box::new(Failure::from(&error)), cause: Some(Box::new(error)) }
    }
}

fn owner(path: &std::path::Path) -> String {
    file::owner(path).map_or("another user".into(), |uid| format!("user {uid}"))
}

impl From<CorpusError> for Report {
    fn from(error: CorpusError) -> Self {
        let failure = match &error {
            CorpusError::Unreadable { path, source } => {
                Failure::DataUnreadable { path: path.display().to_string(), error: source.to_string() }
            }
            CorpusError::NotUtf8 { path, byte, offset, line, guess } => Failure::NotText {
                file: path.display().to_string(),
                byte: format!("{byte:#04x}"),
                offset: *offset,
                line: *line,
                guess: guess.to_string(),
            },
            CorpusError::Empty { paths, files, records, skipped } => {
                let (files, records) = (counted(*files, "file"), counted(*records, "record"));
                let found = match skipped.total() {
                    0 => "no .txt, .md, .jsonl or .parquet file in it".into(),
                    _ => format!("{files}, {records}, none usable ({skipped})"),
                };
                Failure::NoData { path: paths.clone(), found }
            }
            CorpusError::Record { path, .. }
            | CorpusError::Columns { path, .. }
            | CorpusError::Mixed { path, .. }
            | CorpusError::Chat { path, .. }
            | CorpusError::Text { path, .. }
            | CorpusError::Changed { path, .. } => {
                Failure::DataUnreadable { path: path.display().to_string(), error: error.to_string() }
            }
            CorpusError::Pattern { pattern, reason } => {
                Failure::DataUnreadable { path: pattern.clone(), error: reason.clone() }
            }
            CorpusError::NothingLearned { .. } | CorpusError::HoldOut { .. } => {
                Failure::NoData { path: "the data".into(), found: error.to_string() }
            }
        };
        Report { failure: Box::new(failure), cause: Some(Box::new(error)) }
    }
}

impl From<ClientError> for Report {
    fn from(error: ClientError) -> Self {
        let failure = match &error {
            ClientError::NobodyHere { control, why } => {
                Failure::NobodyHere { control: control.display().to_string(), why: why.clone() }
            }
            ClientError::Silent { pid } => Failure::Silent { pid: *pid },
            ClientError::Garbled(why) => Failure::OtherVersion { why: why.clone() },
            ClientError::Interrupted(why) => Failure::NotPossible { why: why.clone() },
            ClientError::Refused(refusal) => return Failure::from(refusal.clone()).into(),
        };
        Report { failure: Box::new(failure), cause: Some(Box::new(error)) }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NoReplica { stages } => {
                let stages: Vec<String> = stages.iter().map(ToString::to_string).collect();
                Failure::CannotAnswer { stages: stages.join(", ") }
            }
            Refusal::TooLong { .. } | Refusal::NoSuchToken { .. } => Failure::Usage { message: refusal.to_string() },
            Refusal::Unwritable { path, error } => {
                let owner = owner(&path);
                Failure::Unwritable { path: path.display().to_string(), error, owner }
            }
            Refusal::NotEmpty { path } => Failure::NotEmpty { path: path.display().to_string() },
            Refusal::DiskFull { path, free, needed } => {
                Failure::DiskFull { path: path.display().to_string(), free: Bytes(free), need: Bytes(needed) }
            }
            Refusal::Other { why } => Failure::NotPossible { why },
        }
    }
}

/// docs/errors.md.
pub fn markdown() -> String {
    let mut text = String::from(
        "# Messages\n\nEvery failure has a code, says what happened, why, and what to do next. `skein explain CODE` prints the same page \
         offline. Words in braces are filled in.\n\n| exit | class |\n|---|---|\n",
    );
    for (exit, class) in EXITS {
        text.push_str(&format!("| {exit} | {class} |\n"));
    }
    for entry in TEXTS {
        text.push_str(&format!("\n## {}\n\n{}", entry.code, page(entry)));
    }
    text
}

/// Exit codes by class.
pub const EXITS: [(u8, &str); 13] = [
    (0, "done, or stopped politely after a drain"),
    (1, "failed for a reason without a class of its own"),
    (2, "wrong usage"),
    (3, "configuration or manifest invalid"),
    (4, "this machine lacks something (device, port, memory, disk, permission), or no peer runs here"),
    (5, "network: nobody reachable, or lost for good"),
    (6, "the run refuses us (not invited, expired, version, full)"),
    (7, "data, tokenizer, model or checkpoint unusable"),
    (8, "training cannot go on"),
    (9, "something is not what its hash or signature says"),
    (
        10,
        "the answer is \"no\": `demo` did not do all that it promises, or a simulation or a log broke a property, and says what",
    ),
    (70, "a bug in skein; a report file is named"),
    (130, "stopped at once: by the second Ctrl-C, the demo by the first"),
];

/// What `skein explain CODE` prints.
pub fn page(entry: &Text) -> String {
    let class = match entry.level {
        Level::Failure => format!("ends the command with exit code {}", entry.exit),
        Level::Warning => "a warning: the peer goes on".into(),
    };
    let mut text = format!("{}\n\n- why: {}\n", entry.what, entry.why);
    for (act, note) in entry.next {
        text.push_str(&format!("- next: `{act}` ({note})\n"));
    }
    text.push_str(&format!("- {class}\n\n{}\n", entry.about));
    text
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn codes_are_unique_and_in_order() {
        let codes: Vec<&str> = TEXTS.iter().map(|text| text.code).collect();
        let mut sorted: Vec<&str> = codes.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        sorted.sort_unstable();
        assert_eq!(codes, sorted);
    }

    /// Names of the catalogue that the sources make, outside of tests.
    fn made_in(dir: &Path, made: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                made_in(&path, made);
            } else if path.extension().is_some_and(|ext| ext == "rs") && !path.ends_with("cli/catalogue.rs") {
                let source = fs::read_to_string(&path).unwrap();
                let code = source.split("#[cfg(test)]").next().unwrap();
                let names = code.split("Failure::").skip(1).filter_map(|rest| rest.split_once(" {"));
                made.extend(names.map(|(name, _)| name.to_string()));
            }
        }
    }

    #[test]
    fn every_text_belongs_to_something_that_happens() {
        let mut made = BTreeSet::new();
        made_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut made);
        for failure in Failure::examples() {
            let shown = format!("{failure:?}");
            let name = shown.split(' ').next().unwrap();
            assert!(made.contains(name), "{} {name} is never made", failure.code());
        }
    }

    #[test]
    fn every_text_reads_as_it_should() {
        let all: Vec<String> = Failure::examples()
            .iter()
            .map(|failure| {
                let mark = match failure.text().level {
                    Level::Failure => '✗',
                    Level::Warning => '!',
                };
                format!("{mark} {}\n{}", failure.what(), failure.details())
            })
            .collect();
        insta::assert_snapshot!(all.join("\n"));
    }

    #[test]
    fn texts_keep_the_rules() {
        for failure in Failure::examples() {
            let (code, what, why) = (failure.code(), failure.what(), failure.why());
            assert!(what.ends_with('.'), "{code}: {what}");
            for text in [&what, &why] {
                let lower = text.to_lowercase();
                assert!(
                    !lower.contains("please") && !lower.contains("failed to") && !text.contains('!'),
                    "{code}: {text}"
                );
            }
            assert!(failure.next().len() <= 3, "{code}");
            assert!(failure.text().level != Level::Failure || !failure.next().is_empty(), "{code}: nothing to do");
            assert!(EXITS.iter().any(|(exit, _)| *exit == failure.exit()), "{code}");
            assert_eq!(failure.exit() == 0, failure.text().level != Level::Failure, "{code}");
        }
    }

    #[test]
    fn the_json_form_is_settled() {
        let failure =
            Failure::PortTaken { port: 5000, origin: "flag --port".into(), command: "join".into(), free: 5001 };
        let json = serde_json::to_string(&failure.document()).unwrap();
        assert_eq!(
            json,
            r#"{"code":"SK101","exit":4,"what":"Port 5000 is already in use.","why":"You asked for this port (flag --port), and another program listens on it.","next":["skein status","skein join --port 5001"]}"#
        );
    }
}
