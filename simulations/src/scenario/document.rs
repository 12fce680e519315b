//! A scenario as a text: read, changed by `--set`, written as it runs. In: TOML and the name of its file. Out: a [`Scenario`] that
//! knows where each of its values was written, or every problem with its line. It reads no file.

use std::collections::BTreeMap;

use serde::Deserialize as _;
use skein_protocol::{hash, slip};
use toml::{
    Table, Value,
    de::{DeTable, DeValue},
};

use super::{
    Draft, Scenario,
    keys::{self, KEYS, Kind, SHORT},
    problem::{Place, Problem, Refused, unknown},
};

/// Bytes of a text: far above any scenario.
const TEXT_MAX: usize = 1 << 20;

/// Shares may miss 1 by this: a third is written 0.3333.
const SUM_SLACK: f64 = 1e-3;

/// Stands between a question and what was changed.
const CHANGED: &str = " (changed: ";

/// A question as its author asked it.
pub fn unchanged(asked: &str) -> &str {
    asked.split_once(CHANGED).map_or(asked, |(question, _)| question)
}

/// Texts of the files that scenarios name, by the name that they use.
pub type Files = BTreeMap<String, String>;

/// A scenario, and where it says what.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Name of the file, or of the scenario that comes with the program.
    pub file: String,
    pub scenario: Scenario,
    table: Table,
    places: BTreeMap<String, Place>,
    /// What was set, by key: the last of each.
    changed: Vec<(String, String)>,
}

impl Document {
    /// # Errors
    /// All problems: what is no TOML; keys that are unknown, missing or of a wrong kind.
    pub fn read(file: &str, text: &str) -> Result<Self, Refused> {
        Draft::read(file, text).whole()
    }

    fn complete(mut self) -> Result<Self, Refused> {
        // The walk has seen every key: what is left is a slip of the walk itself.
        let scenario = Scenario::deserialize(Value::Table(self.table.clone()));
        self.scenario = scenario.map_err(|error| Refused(vec![self.problem("", error.message().to_string())]))?;
        Ok(self)
    }

    /// Changes one value: `peers.count=500`, `churn=spot`, `access=cable:0.5,fibre:0.5`.
    ///
    /// # Errors
    /// What is wrong with the assignment; the scenario is then as it was.
    pub fn set(&mut self, assignment: &str) -> Result<(), Refused> {
        let place = Place::Set(assignment.into());
        let refuse = |key: &str, what: String| Refused(vec![Problem { place: place.clone(), key: key.into(), what }]);
        let Some((name, text)) = assignment.split_once('=') else {
            return Err(refuse("", "has no =; write key=value, like peers=500".into()));
        };
        let name = name.trim();
        let path = keys::whole(name);
        let mut changed = self.clone();
        let shares =
            path.rsplit_once('.').filter(|(above, _)| keys::find(above).is_some_and(|key| key.kind.names().is_some()));
        let kind = match (keys::find(path), shares) {
            (Some(key), _) => key.kind,
            (None, Some(_)) => Kind::Real(0.0, 1.0),
            (None, None) if name.is_empty() => {
                return Err(refuse("", "has nothing before its =; write key=value, like peers=500".into()));
            }
            (None, None) => return Err(refuse(name, no_key(name))),
        };
        let value = kind.parse(text).map_err(|what| refuse(path, what))?;
        // One word for both ways.
        let also = (name == "codec").then_some("run.backward");
        for path in [path].into_iter().chain(also) {
            changed.put(path, value.clone()).map_err(|what| refuse(path, what))?;
            changed.places.retain(|key, _| key.strip_prefix(path).is_none_or(|rest| !rest.starts_with('.')));
            changed.places.insert(path.into(), place.clone());
        }
        if path == "cost.prices" {
            // The table that is named now has a price of power, and what was written before speaks of another.
            changed.take("cost.usd_per_kwh");
        }
        let whole = shares.map_or(path, |(above, _)| above);
        let mut found = Vec::new();
        below(&changed.table, whole).into_iter().for_each(|value| {
            let wrong = keys::find(whole).map_or(Vec::new(), |key| shares_wrong(key.kind, value));
            found.extend(wrong.into_iter().map(|(_, what)| Problem { place: place.clone(), key: whole.into(), what }));
        });
        if !found.is_empty() {
            return Err(Refused(found));
        }
        if let Some(Value::Table(sizes)) = below(&changed.table, "run.model") {
            let missing = model_missing(sizes);
            if !missing.is_empty() {
                return Err(refuse("run.model", format!("lacks {}", missing.join(", "))));
            }
        }
        changed.changed.retain(|(key, _)| key != path);
        changed.changed.push((path.into(), format!("{name}={}", text.trim())));
        *self = changed.complete()?;
        Ok(())
    }

    fn put(&mut self, path: &str, value: Value) -> Result<(), String> {
        let parts: Vec<&str> = path.split('.').collect();
        let (name, above) = parts.split_last().expect("a split text has a part");
        let mut table = &mut self.table;
        let mut seen = String::new();
        let mut rest = above.iter().peekable();
        while let Some(part) = rest.next() {
            seen = if seen.is_empty() { (*part).to_string() } else { format!("{seen}.{part}") };
            let inner = table.entry(*part).or_insert_with(|| {
                if *part == "fault" { Value::Array(Vec::new()) } else { Value::Table(Table::new()) }
            });
            table = match inner {
                Value::Table(table) => table,
                Value::Array(items) => {
                    let number = rest.next().and_then(|number| number.parse::<usize>().ok());
                    let count = items.len();
                    match number.and_then(|number| items.get_mut(number)) {
                        Some(Value::Table(table)) => table,
                        _ => return Err(format!("names no fault: the scenario has {count}, counted from fault.0")),
                    }
                }
                _ => return Err(format!("is below {seen}, which is a name here; give all sizes in one table")),
            };
        }
        table.insert((*name).into(), value);
        Ok(())
    }

    fn take(&mut self, path: &str) {
        let Some((above, name)) = path.rsplit_once('.') else { return };
        if let Some(Value::Table(table)) = self.table.get_mut(above) {
            table.remove(name);
        }
        self.places.remove(path);
    }

    /// The question, and what was changed since its author asked it: a number in it may be another one now. The seed, and what only
    /// says how it is simulated, change no question.
    pub fn asked(&self) -> String {
        let asks = |key: &str| {
            !matches!(key, "question" | "simulate.seed" | "simulate.fidelity" | "learning")
                && !key.starts_with("expect.")
        };
        let changed: Vec<&str> =
            self.changed.iter().filter(|(key, _)| asks(key)).map(|(_, change)| change.as_str()).collect();
        let question = &self.scenario.question;
        if changed.is_empty() { question.clone() } else { format!("{question}{CHANGED}{})", changed.join(", ")) }
    }

    /// Whether somebody wrote the value of `key`.
    pub fn says(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    /// A problem at the place of `key`, else of the nearest section above it that is written.
    pub fn problem(&self, key: &str, what: String) -> Problem {
        Problem { place: self.place(key), key: key.into(), what }
    }

    /// Where the value of `key` was written.
    pub fn place(&self, key: &str) -> Place {
        let mut path = key;
        loop {
            match (self.places.get(path), path.rsplit_once('.')) {
                (Some(place), _) => return place.clone(),
                (None, Some((above, _))) => path = above,
                (None, None) => return Place::Default { file: self.file.clone() },
            }
        }
    }

    /// Files that the scenario names: traces, probes, prices.
    pub fn files(&self) -> Vec<String> {
        let Scenario { churn, peers, cost, .. } = &self.scenario;
        let trace = churn.preset.strip_prefix("trace:").map(str::to_string);
        let probes = peers.devices.keys().filter(|name| Kind::Devices.is_file(name)).cloned();
        let prices = Some(cost.prices.clone()).filter(|file| !file.is_empty());
        trace.into_iter().chain(probes).chain(prices).collect()
    }

    /// The scenario as it runs, every default written out.
    pub fn write(&self) -> String {
        toml::to_string(&self.scenario).expect("a scenario is made of texts, numbers and tables")
    }

    /// One hash of the scenario as it runs and of the files that it names: `b3:...`.
    pub fn digest(&self, files: &Files) -> String {
        let text = self.write();
        let mut parts = vec![text.as_bytes()];
        for name in self.files() {
            parts.push(files.get(&name).map_or(&[][..], |text| text.as_bytes()));
        }
        hash::keyed("skein scenario 1", &parts).to_string()
    }
}

/// As much of a text as is right, and every problem of the rest. Nothing is left of what is no TOML.
pub(super) fn salvage(file: &str, text: &str) -> (Option<Document>, Vec<Problem>) {
    let mut reader = Reader { file, text, places: BTreeMap::new(), found: Vec::new() };
    if text.len() > TEXT_MAX {
        let what = format!("has {} bytes, at most {TEXT_MAX}", text.len());
        return (None, vec![reader.at(0, "", what)]);
    }
    let (spans, errors) = DeTable::parse_recoverable(text);
    let table = reader.plain("", spans.get_ref());
    reader.walk("", spans.get_ref(), &table);
    if !errors.is_empty() {
        let of =
            |error: &toml::de::Error| reader.at(error.span().map_or(0, |span| span.start), "", error.message().into());
        let broken: Vec<Problem> = errors.iter().map(of).collect();
        // A line that is no TOML is told once, and what it would have said is not missed.
        let is_there = |problem: &Problem| broken.iter().any(|broken| broken.place.line() == problem.place.line());
        reader.found.retain(|problem| !is_there(problem));
        reader.found.extend(broken);
        return (None, in_order(reader.found));
    }
    reader.missing(&table);
    let Reader { places, mut found, .. } = reader;
    let document = Document {
        file: file.into(),
        scenario: Scenario::default(),
        table: repaired(table, &found),
        places,
        changed: Vec::new(),
    };
    match document.complete() {
        Ok(document) => (Some(document), in_order(found)),
        Err(refused) => {
            // Of what could not be repaired everything else was said.
            if found.is_empty() {
                found.extend(refused.0);
            }
            (None, in_order(found))
        }
    }
}

/// A table that can be read: wrong values give way to defaults, what has no default to something that contradicts nothing.
fn repaired(mut table: Table, found: &[Problem]) -> Table {
    for problem in found {
        let path = problem.key.as_str();
        match path.split_once('.') {
            Some(("fault", rest)) => {
                let number = rest.split('.').next().and_then(|number| number.parse::<usize>().ok());
                let faults = table.get_mut("fault").and_then(Value::as_array_mut);
                if let Some(fault) = number.and_then(|number| faults?.get_mut(number)) {
                    *fault = Value::Table(
                        [("at", "0 s"), ("what", "slow")]
                            .map(|(key, value)| (key.into(), value.into()))
                            .into_iter()
                            .collect(),
                    );
                }
            }
            _ if path == "run.model" || path.starts_with("run.model.") => without(&mut table, "run.model"),
            Some(_) => {
                let shares = path.rsplit_once('.').map(|(above, _)| above);
                let shares = shares.filter(|above| keys::find(above).is_some_and(|key| key.kind.names().is_some()));
                without(&mut table, shares.unwrap_or(path));
            }
            None => without(&mut table, path),
        }
    }
    table.entry("question").or_insert_with(|| "?".into());
    if let Value::Table(run) = table.entry("run").or_insert_with(|| Value::Table(Table::new())) {
        run.entry("model").or_insert_with(|| "demo".into());
    }
    table
}

fn without(table: &mut Table, path: &str) {
    match path.split_once('.') {
        None => drop(table.remove(path)),
        Some((first, rest)) => {
            if let Some(Value::Table(inner)) = table.get_mut(first) {
                without(inner, rest);
            }
        }
    }
}

fn below<'t>(table: &'t Table, path: &str) -> Option<&'t Value> {
    let mut parts = path.split('.');
    let mut value = table.get(parts.next()?)?;
    for part in parts {
        value = value.get(part)?;
    }
    Some(value)
}

fn no_key(name: &str) -> String {
    let words: Vec<&str> = SHORT.iter().map(|(short, _)| *short).collect();
    match slip::nearest(name, words.iter().copied()) {
        Some(near) if !name.contains('.') => format!("is no key of a scenario; did you mean {near}?"),
        _ if !name.contains('.') => format!("{}; or short {}", keys::no_key(name), words.join(", ")),
        _ => keys::no_key(name),
    }
}

/// Sizes that a model's table lacks.
fn model_missing(sizes: &Table) -> Vec<&'static str> {
    let wanted = KEYS.iter().filter(|key| key.need).filter_map(|key| key.path.strip_prefix("run.model."));
    wanted.filter(|name| !sizes.contains_key(*name)).collect()
}

/// What is wrong with a table of shares: name (empty: the whole table) and problem.
fn shares_wrong(kind: Kind, value: &Value) -> Vec<(String, String)> {
    let (Some(known), Value::Table(table)) = (kind.names(), value) else { return Vec::new() };
    let mut wrong: Vec<(String, String)> = Vec::new();
    for (name, share) in table {
        if !known.contains(name) && !kind.is_file(name) {
            wrong.push((name.clone(), unknown(name, &known)));
        } else if let Err(what) = Kind::Real(0.0, 1.0).accepts(share) {
            wrong.push((name.clone(), what));
        }
    }
    let sum: f64 = table.values().map(keys::real).sum();
    if wrong.is_empty() && (sum - 1.0).abs() > SUM_SLACK {
        wrong.push((String::new(), format!("sums to {}; shares sum to 1", (sum * 1e6).round() / 1e6)));
    }
    wrong
}

pub(super) fn in_order(mut found: Vec<Problem>) -> Vec<Problem> {
    found.sort_by(|a, b| a.place.cmp(&b.place));
    found
}

struct Reader<'t> {
    file: &'t str,
    text: &'t str,
    places: BTreeMap<String, Place>,
    found: Vec<Problem>,
}

impl Reader<'_> {
    fn place(&self, offset: usize) -> Place {
        let before = self.text.get(..offset.min(self.text.len())).unwrap_or("");
        let line = before.bytes().filter(|&byte| byte == b'\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        Place::Line { file: self.file.into(), line, column }
    }

    fn at(&self, offset: usize, key: &str, what: String) -> Problem {
        Problem { place: self.place(offset), key: key.into(), what }
    }

    /// Values without their places. A whole number that TOML's 64 bits do not hold is a problem, and left out.
    fn plain(&mut self, prefix: &str, spans: &DeTable<'_>) -> Table {
        let mut table = Table::new();
        for (name, value) in spans {
            let name = name.get_ref().as_ref();
            let path = if prefix.is_empty() { name.to_string() } else { format!("{prefix}.{name}") };
            if let Some(value) = self.value(&path, value.span().start, value.get_ref()) {
                table.insert(name.to_string(), value);
            }
        }
        table
    }

    fn value(&mut self, path: &str, at: usize, value: &DeValue<'_>) -> Option<Value> {
        Some(match value {
            DeValue::String(text) => Value::String(text.to_string()),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Value::Integer(number),
                Err(_) => {
                    let what = format!("cannot be {number}: whole numbers go to {}", i64::MAX);
                    self.found.push(self.at(at, path, what));
                    return None;
                }
            },
            DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(is) => Value::Boolean(*is),
            DeValue::Datetime(time) => Value::Datetime(*time),
            DeValue::Array(items) => {
                let each = items.iter().enumerate();
                let value = |(i, item): (usize, &toml::Spanned<DeValue<'_>>)| {
                    self.value(&format!("{path}.{i}"), item.span().start, item.get_ref()).unwrap_or(Value::Integer(0))
                };
                Value::Array(each.map(value).collect())
            }
            DeValue::Table(table) => Value::Table(self.plain(path, table)),
        })
    }

    fn walk(&mut self, prefix: &str, spans: &DeTable<'_>, table: &Table) {
        for (name, value) in spans {
            let name_at = name.span().start;
            let (name, value_at) = (name.get_ref().as_ref(), value.span().start);
            let path = if prefix.is_empty() { name.to_string() } else { format!("{prefix}.{name}") };
            let Some(plain) = table.get(name) else { continue };
            let section = keys::is_section(&path);
            // The value of `[section]` begins wherever its first key does: the name is what a reader looks for.
            let place = self.place(if section { name_at } else { value_at });
            self.places.insert(path.clone(), place);
            match (value.get_ref(), plain, keys::find(&path)) {
                (DeValue::Array(items), Value::Array(plain), _) if path == "fault" => {
                    for (number, (item, plain)) in items.iter().zip(plain).enumerate() {
                        self.fault(&format!("fault.{number}"), item.span().start, item.get_ref(), plain);
                    }
                }
                (DeValue::Table(inner), Value::Table(plain), _) if section && path != "fault" => {
                    self.walk(&path, inner, plain);
                }
                (spans, plain, Some(key)) => {
                    if let Err(what) = key.kind.accepts(plain) {
                        self.found.push(self.at(value_at, &path, what));
                    } else {
                        self.shares(&path, key.kind, value_at, spans, plain);
                    }
                }
                (_, _, None) if path == "fault" => {
                    self.found.push(self.at(name_at, &path, "is a list: write [[fault]]".into()));
                }
                (_, _, None) if section => {
                    self.found.push(self.at(value_at, &path, format!("is a section: [{path}]")));
                }
                (_, _, None) => self.found.push(self.at(name_at, &path, keys::no_key(&path))),
            }
        }
    }

    fn fault(&mut self, path: &str, at: usize, spans: &DeValue<'_>, plain: &Value) {
        self.places.insert(path.into(), self.place(at));
        match (spans, plain) {
            (DeValue::Table(spans), Value::Table(plain)) => {
                self.walk(path, spans, plain);
                for name in ["at", "what"] {
                    if !plain.contains_key(name) {
                        self.found.push(self.at(at, &format!("{path}.{name}"), "is missing".into()));
                    }
                }
            }
            _ => self.found.push(self.at(at, path, "is no table: write [[fault]]".into())),
        }
    }

    fn shares(&mut self, path: &str, kind: Kind, value_at: usize, spans: &DeValue<'_>, plain: &Value) {
        for (name, what) in shares_wrong(kind, plain) {
            let found = spans.as_table().and_then(|table| table.iter().find(|(key, _)| key.get_ref().as_ref() == name));
            let at = found.map_or(value_at, |(key, _)| key.span().start);
            let key = if name.is_empty() { path.to_string() } else { format!("{path}.{name}") };
            self.found.push(self.at(at, &key, what));
        }
        for (name, value) in spans.as_table().into_iter().flatten() {
            let place = self.place(value.span().start);
            self.places.insert(format!("{path}.{}", name.get_ref()), place);
        }
    }

    fn missing(&mut self, table: &Table) {
        if !table.contains_key("question") {
            self.found.push(self.at(0, "question", "is missing: one sentence that the scenario answers".into()));
        }
        let model = below(table, "run.model");
        let at = |reader: &Self, key: &str| reader.places.get(key).cloned().unwrap_or_else(|| reader.place(0));
        if model.is_none() && table.get("run").is_none_or(Value::is_table) {
            let what = format!("is missing; one of {}", keys::MODELS.join(", "));
            self.found.push(Problem { place: at(self, "run"), key: "run.model".into(), what });
        }
        if let Some(Value::Table(sizes)) = model {
            for name in model_missing(sizes) {
                let place = at(self, "run.model");
                self.found.push(Problem { place, key: format!("run.model.{name}"), what: "is missing".into() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::FidelityChoice;

    const TEXT: &str = "question = \"Will it?\"\n[run]\nmodel = \"demo\"\n[peers]\ncount = 6\n";

    fn document() -> Document {
        Document::read("my.toml", TEXT).unwrap()
    }

    /// Problems of `text`, as a user reads them.
    fn said(text: &str) -> String {
        Document::read("my.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn a_short_scenario_has_defaults_for_the_rest() {
        let document = document();
        assert_eq!(document.scenario.peers.count, 6);
        assert_eq!(document.scenario.network.access, [("home".into(), 1.0)].into());
    }

    #[test]
    fn a_question_says_what_was_changed_since_it_was_asked() {
        let mut document = document();
        document.set("seed=7").unwrap();
        assert_eq!(document.asked(), "Will it?");
        ["peers=20", "upload=5 Mbit/s", "peers.count=30"].iter().for_each(|set| document.set(set).unwrap());
        assert_eq!(document.asked(), "Will it? (changed: upload=5 Mbit/s, peers.count=30)");
        assert_eq!(unchanged(&document.asked()), "Will it?");
        // It is no other scenario by what it was made of.
        let written = Document::read("my.toml", &document.write()).unwrap();
        assert_eq!(written.digest(&Files::new()), document.digest(&Files::new()));
    }

    #[test]
    fn what_runs_can_be_written_and_read_again() {
        let mut document = document();
        document.set("up=20Mbit/s").unwrap();
        document.set("expect.goodput_min=0.5").unwrap();
        let text = document.write();
        let again = Document::read("my.toml", &text).unwrap();
        assert_eq!(again.scenario, document.scenario, "{text}");
        assert_eq!(again.write(), text);
        assert_eq!(again.digest(&Files::new()), document.digest(&Files::new()));
        let digest = document.digest(&Files::new());
        assert!(digest.starts_with("b3:") && digest.matches("b3:").count() == 1, "{digest}");
        document.set("seed=2").unwrap();
        assert_ne!(again.digest(&Files::new()), document.digest(&Files::new()));
    }

    #[test]
    fn every_wrong_key_and_value_is_told_at_once_with_its_line() {
        let text = "question = 3\n[run]\nmodel = \"7c\"\nstages = -1\n[peers]\ncuont = 6\ncount = 1.5\ndevices = { core = 0.5, \
            rtx409 = 0.5 }\n[network]\nup = 20\ndelay = \"10\"\nregions = \"asw\"\naccess = { cable = 0.5, dsl = 0.2 }\n\
            relayed = nan\n[churn]\npreset = \"sopt\"\n[[fault]]\nat = \"1 h\"\nwhat = \"dei\"\n[[fault]]\nwhat = \"die\"\n\
            [wether]\n";
        let said = said(text);
        for part in [
            "my.toml:1:12: question is integer, and must be a text in quotes",
            "my.toml:3:9: run.model \"7c\" is not known, did you mean 7b? allowed: tiny, demo,",
            "my.toml:4:10: run.stages cannot be -1; allowed: 0 to 256",
            "my.toml:6:1: peers.cuont is no key of a scenario; did you mean peers.count?",
            "my.toml:7:9: peers.count is float, and must be a whole number, 1 to 1000000",
            "my.toml:8:25: peers.devices.rtx409 \"rtx409\" is not known, did you mean rtx4090? allowed: a100,",
            "my.toml:10:6: network.up is integer, and must be a rate with its unit in quotes, like \"20 Mbit/s\"",
            "my.toml:11:9: network.delay \"10\" has no unit",
            "my.toml:12:11: network.regions \"asw\" is not known, did you mean aws? allowed: one, population, aws, gcp",
            "my.toml:13:10: network.access sums to 0.7; shares sum to 1",
            "my.toml:14:11: network.relayed cannot be NaN; allowed: 0 to 1",
            "my.toml:16:10: churn.preset \"sopt\" is not known, did you mean spot?",
            "my.toml:19:8: fault.0.what \"dei\" is not known, did you mean die?",
            "fault.1.at is missing",
            "my.toml:22:2: wether is no key of a scenario; allowed here: adversaries",
        ] {
            assert!(said.contains(part), "missing: {part}\nin:\n{said}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let none = said("[run]\nstages = 3\n");
        assert!(none.contains("question is missing") && none.contains("my.toml:1:2: run.model is missing"), "{none}");
        let said = said("question = \"?\"\n[run]\nmodel = { hidden = 64, layers = 2, heads = 4 }\n");
        assert!(said.contains("run.model.ffn is missing") && !said.contains("kv_heads"), "{said}");
    }

    #[test]
    fn what_is_no_toml_says_where() {
        let none = said("question = \"\n[run]\n");
        assert!(none.starts_with("my.toml:1:"), "{none}");
        let large = said("question = \"?\"\n[run]\nmodel = \"demo\"\n[peers]\ncount = 99999999999999999999\n");
        let wrong = "my.toml:5:9: peers.count cannot be 99999999999999999999: whole numbers go to 9223372036854775807";
        assert_eq!(large, wrong);
    }

    #[test]
    fn short_words_and_full_keys_change_the_same() {
        let mut document = document();
        for assignment in [
            "peers=500",
            "churn=spot",
            "upload=20Mbit/s",
            "download = 300 Mbit/s",
            "delay=10 ms",
            "stages=2",
            "model=7b",
            "device=rtx4090",
            "access=cable:0.5,fibre:0.5",
            "regions=aws",
            "loss=0.1",
            "learning=none",
            "duration=6h",
            "seed=7",
            "fidelity=fleet",
            "codec=int4",
            "relayed=0.2",
            "liars=0.05",
            "network.delay=\"20 ms\"",
            "peers.devices={ core = 0.25, laptop = 0.75 }",
        ] {
            document.set(assignment).unwrap_or_else(|refused| panic!("{refused}"));
        }
        let Scenario { run, peers, network, churn, simulate, adversaries, .. } = &document.scenario;
        assert_eq!((peers.count, run.stages, simulate.seed), (500, 2, 7));
        assert_eq!((churn.preset.as_str(), network.up.as_str(), network.delay.as_str()), ("spot", "20Mbit/s", "20 ms"));
        assert_eq!((run.forward.as_str(), run.backward.as_str()), ("int4", "int4"));
        assert_eq!((peers.devices.len(), network.access["fibre"], adversaries.share), (2, 0.5, 0.05));
        assert_eq!(simulate.fidelity, FidelityChoice::Fleet);
        assert_eq!(document.place("peers.count"), Place::Set("peers=500".into()));
        assert!(matches!(document.place("run.sequence"), Place::Line { line: 2, .. }));
    }

    #[test]
    fn a_wrong_set_is_refused_and_changes_nothing() {
        let mut document = document();
        for (assignment, part) in [
            ("peers", "has no =; write key=value"),
            ("peers=many", "--set peers=many: peers.count is \"many\", and must be a whole number"),
            ("=3", "--set =3: has nothing before its ="),
            ("seed=99999999999999999999", "simulate.seed cannot be 99999999999999999999; allowed: 0 to"),
            ("expect.answers=yes", "expect.answers is \"yes\", and must be true or false"),
            ("pers=5", "pers is no key of a scenario; did you mean peers?"),
            ("weather=5", "or short peers, feeders,"),
            ("network.u=5", "did you mean network.up?"),
            ("upload=20", "has no unit"),
            ("access=cable:0.5", "sums to 0.5"),
            ("access=cabel", "did you mean cable?"),
            ("peers.devices.core=0.5", "sums to 0.5"),
            ("churn=trace:", "names no file"),
            ("liars=2", "cannot be 2; allowed: 0 to 1"),
            ("loss=nan", "cannot be NaN"),
            ("fault.0.at=3 s", "names no fault: the scenario has 0"),
            ("run.model.hidden=64", "is below run.model, which is a name here"),
            ("model={ hidden = 64 }", "lacks layers, heads"),
        ] {
            let before = document.clone();
            let said = document.set(assignment).expect_err(assignment).to_string();
            assert!(said.contains(part), "{said} should say {part}");
            assert_eq!(document, before);
        }
    }

    #[test]
    fn files_that_it_names_are_listed_and_are_part_of_its_digest() {
        let mut document = document();
        document.set("churn=trace:my.trace").unwrap();
        document.set("peers.devices={ core = 0.5, \"mine.json\" = 0.5 }").unwrap();
        document.set("cost.prices=prices.toml").unwrap();
        assert_eq!(document.files(), ["my.trace", "mine.json", "prices.toml"]);
        let files: Files = [("my.trace".into(), "0,add,a".into())].into();
        assert_ne!(document.digest(&files), document.digest(&Files::new()));
    }
}
