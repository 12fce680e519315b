//! Lays the layers over each other and remembers, for each key, which one won. In: texts. Out: [`Settings`], or the first thing
//! that is wrong, with its file and line.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use skein_protocol::slip;
use toml::{
    Value,
    de::{DeTable, DeValue},
};

use super::{
    ConfigError, NodeConfig, Role, StageChoice,
    keys::{self, KEYS, Key},
    profile,
    value::Wrong,
};

/// Variables that belong to flags or commands and are no keys.
pub const SHORTHANDS: [&str; 12] = [
    "SKEIN_HOME",
    "SKEIN_CONFIG",
    "SKEIN_PROFILE",
    "SKEIN_LOG",
    "SKEIN_INVITE",
    "SKEIN_JSON",
    "SKEIN_COLOR",
    "SKEIN_NO_PROGRESS",
    "SKEIN_LOG_FILE",
    "SKEIN_LOG_FORMAT",
    "SKEIN_OFFLINE",
    "SKEIN_YES",
];

/// Which layer said it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    Profile(String),
    File { path: PathBuf, line: usize },
    Environment(String),
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Profile(name) => write!(f, "profile {name}"),
            Origin::File { path, line } => write!(f, "{}, line {line}", path.display()),
            Origin::Environment(name) => f.write_str(name),
            Origin::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// Where something wrong was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place(pub Origin);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            other => other.fmt(f),
        }
    }
}

/// A value that a flag of a command gives to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// With its dashes.
    pub name: &'static str,
    pub key: &'static str,
    pub text: String,
}

#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// One of the built-in profiles, or the path of a file.
    pub profile: Option<String>,
    pub file: Option<PathBuf>,
    /// Whether `file` was asked for by name, so that it must be there.
    pub file_named: bool,
    pub environment: Vec<(String, String)>,
    pub flags: Vec<Flag>,
}

/// One key, its value, and what the layers below had said.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    pub key: &'static str,
    pub value: Value,
    pub origin: Origin,
    /// The latest first.
    pub covered: Vec<(Value, Origin)>,
}

#[derive(Clone, Debug)]
pub struct Settings {
    settings: BTreeMap<&'static str, Setting>,
    /// Worth a line to the person, but no error.
    pub warnings: Vec<String>,
}

impl Settings {
    /// # Errors
    /// The first key that is unknown, not allowed, without its unit, or in contradiction with another.
    pub fn load(sources: &Sources) -> Result<Settings, ConfigError> {
        let mut settings = Settings::defaults();
        if let Some(name) = &sources.profile {
            let text = profile::find(name)?;
            settings.lay_text(&text, |_| Origin::Profile(name.clone()))?;
        }
        if let Some(path) = &sources.file
            && let Some(text) = read(path, sources.file_named)?
        {
            settings.lay_text(&text, |line| Origin::File { path: path.clone(), line })?;
        }
        settings.lay_environment(&sources.environment)?;
        for flag in &sources.flags {
            let key = keys::find(flag.key).expect("a flag belongs to a key");
            settings.lay(key, key.kind.read_text(&flag.text), Origin::Flag(flag.name))?;
        }
        settings.contradictions()?;
        Ok(settings)
    }

    /// What is wrong with the text of a configuration file, all of it.
    pub fn problems(path: &Path, text: &str) -> Vec<ConfigError> {
        let mut settings = Settings::defaults();
        let origin = |line| Origin::File { path: path.into(), line };
        let leaves = match leaves(text, &origin) {
            Ok(leaves) => leaves,
            Err(error) => return vec![error],
        };
        let mut problems: Vec<ConfigError> = leaves
            .into_iter()
            .filter_map(|leaf| leaf.and_then(|(key, value, line)| settings.lay(key, value, origin(line))).err())
            .collect();
        if problems.is_empty() {
            problems.extend(settings.contradictions().err());
        }
        problems
    }

    pub fn get(&self, key: &str) -> Option<&Setting> {
        self.settings.get(key)
    }

    /// A key and where its value came from: `give.roles (profile observer)`.
    pub fn named(&self, key: &str) -> String {
        format!("{key} ({})", self.settings[key].origin)
    }

    /// In the order of the table of keys.
    pub fn iter(&self) -> impl Iterator<Item = &Setting> {
        KEYS.iter().map(|key| &self.settings[key.path])
    }

    pub fn node(&self) -> NodeConfig {
        let mut table = toml::Table::new();
        for setting in self.settings.values() {
            let (section, name) = setting.key.split_once('.').expect("a key has a section");
            let section = table.entry(section).or_insert_with(|| Value::Table(toml::Table::new()));
            section.as_table_mut().expect("made above").insert(name.into(), setting.value.clone());
        }
        table.try_into().expect("each value was checked when its layer was laid")
    }

    fn defaults() -> Settings {
        let setting =
            |key: &Key| Setting { key: key.path, value: default(key), origin: Origin::Default, covered: Vec::new() };
        Settings { settings: KEYS.iter().map(|key| (key.path, setting(key))).collect(), warnings: Vec::new() }
    }

    fn lay_text(&mut self, text: &str, origin: impl Fn(usize) -> Origin) -> Result<(), ConfigError> {
        for leaf in leaves(text, &origin)? {
            let (key, value, line) = leaf?;
            self.lay(key, value, origin(line))?;
        }
        Ok(())
    }

    fn lay_environment(&mut self, variables: &[(String, String)]) -> Result<(), ConfigError> {
        let mut variables: Vec<_> = variables.iter().filter(|(name, _)| name.starts_with("SKEIN_")).collect();
        variables.sort();
        for (name, text) in variables {
            if SHORTHANDS.contains(&name.as_str()) {
                continue;
            }
            match KEYS.iter().find(|key| variable(key) == *name) {
                Some(key) => self.lay(key, key.kind.read_text(text), Origin::Environment(name.clone()))?,
                None => {
                    let known = KEYS.iter().map(variable).chain(SHORTHANDS.iter().map(ToString::to_string));
                    let hint = nearest(name, known).map_or(String::new(), |near| format!(" Did you mean {near}?"));
                    self.warnings.push(format!("{name} is not a variable of skein.{hint}"));
                }
            }
        }
        Ok(())
    }

    fn lay(&mut self, key: &'static Key, value: Value, origin: Origin) -> Result<(), ConfigError> {
        key.kind.check(&value).map_err(|wrong| {
            let (key_path, shown) = (key.path.to_string(), shown(key.path, &value));
            let place = Place(origin.clone());
            match wrong {
                Wrong::NotAllowed => ConfigError::Value {
                    key: key_path,
                    value: shown,
                    allowed: key.kind.allowed(),
                    example: key.default.into(),
                    place,
                },
                Wrong::NoUnit { could_be, example } => {
                    let value = value.as_str().map_or(shown, ToString::to_string);
                    ConfigError::NoUnit { key: key_path, value, could_be, example, place }
                }
            }
        })?;
        let setting = self.settings.get_mut(key.path).expect("every key has a default");
        let covered = (std::mem::replace(&mut setting.value, value), std::mem::replace(&mut setting.origin, origin));
        setting.covered.insert(0, covered);
        Ok(())
    }

    fn contradictions(&self) -> Result<(), ConfigError> {
        let node = self.node();
        let contradiction =
            |a, b, reason| Err(ConfigError::Contradiction { a: self.named(a), b: self.named(b), reason });
        if node.give.stage != StageChoice::Auto && !node.give.roles.contains(&Role::Train) {
            return contradiction("give.stage", "give.roles", "a peer without the role train serves no stage");
        }
        if node.net.listen.is_empty() && !node.net.relay_use {
            return contradiction("net.listen", "net.relay_use", "nobody could connect, not even through a relay");
        }
        Ok(())
    }
}

fn default(key: &Key) -> Value {
    let mut table: toml::Table = format!("x = {}", key.default).parse().expect("defaults are TOML");
    table.remove("x").expect("just written")
}

/// As written in TOML; never a secret.
pub fn shown(key: &str, value: &Value) -> String {
    if key == "watch.token" && value.as_str() != Some("auto") { "\"…\"".into() } else { value.to_string() }
}

fn variable(key: &Key) -> String {
    format!("SKEIN_{}", key.path.replace('.', "__").to_uppercase())
}

fn read(path: &Path, named: bool) -> Result<Option<String>, ConfigError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !named => Ok(None),
        Err(error) => Err(ConfigError::Unreadable { path: path.into(), message: error.to_string() }),
    }
}

type Leaf = Result<(&'static Key, Value, usize), ConfigError>;

/// Every key of a TOML text with its line.
fn leaves(text: &str, origin: &impl Fn(usize) -> Origin) -> Result<Vec<Leaf>, ConfigError> {
    let line = |at: usize| text[..at].bytes().filter(|&byte| byte == b'\n').count() + 1;
    let document = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        place: Place(origin(error.span().map_or(1, |span| line(span.start.min(text.len()))))),
        message: error.message().to_string(),
    })?;
    let mut found = Vec::new();
    walk("", document.get_ref(), &mut |path, at, value| {
        let line = line(at);
        found.push((
            at,
            match keys::find(path) {
                Some(key) => Ok((key, plain(value), line)),
                None => Err(ConfigError::Unknown {
                    key: path.to_string(),
                    place: Place(origin(line)),
                    near: nearest(path, KEYS.iter().map(|key| key.path.to_string())),
                }),
            },
        ));
    });
    found.sort_by_key(|(at, _)| *at);
    Ok(found.into_iter().map(|(_, leaf)| leaf).collect())
}

fn walk<'t>(prefix: &str, table: &'t DeTable<'_>, visit: &mut impl FnMut(&str, usize, &'t DeValue<'_>)) {
    for (name, value) in table {
        let path = if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
        match value.get_ref() {
            DeValue::Table(inner) if keys::is_section(&path) => walk(&path, inner, visit),
            other => visit(&path, name.span().start, other),
        }
    }
}

fn plain(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::String(number.as_str().into()),
        },
        DeValue::Float(number) => {
            number.as_str().parse().map(Value::Float).unwrap_or_else(|_| Value::String(number.as_str().into()))
        }
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Datetime(time) => Value::Datetime(*time),
        DeValue::Array(items) => Value::Array(items.iter().map(|item| plain(item.get_ref())).collect()),
        DeValue::Table(table) => Value::Table(
            table.iter().map(|(name, value)| (name.get_ref().to_string(), plain(value.get_ref()))).collect(),
        ),
    }
}

/// The known word that is at most two letters away, or that is the same key in another section.
pub fn nearest(word: &str, known: impl IntoIterator<Item = String>) -> Option<String> {
    let tail = |text: &str| text.rsplit('.').next().map(str::to_string);
    let known: Vec<String> = known.into_iter().collect();
    slip::nearest(word, known.iter().map(String::as_str))
        .map(str::to_string)
        .or_else(|| known.iter().find(|near| near.contains('.') && tail(near) == tail(word)).cloned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Device, Memory};

    fn load(file: &str, environment: &[(&str, &str)], flags: Vec<Flag>) -> Result<Settings, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, file).unwrap();
        let environment = environment.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
        Settings::load(&Sources { file: Some(path), file_named: true, environment, flags, profile: None })
    }

    fn memory_flag(text: &str) -> Vec<Flag> {
        vec![Flag { name: "--memory", key: "give.memory", text: text.into() }]
    }

    #[test]
    fn the_defaults_are_valid() {
        let node = Settings::load(&Sources::default()).unwrap().node();
        assert_eq!((node.net.port, node.give.memory, node.give.device), (4747, Memory::Auto, Device::Auto));
        assert!(node.give.works());
        assert_eq!(node.store.checkpoint_every.as_secs(), 600);
    }

    #[test]
    fn later_layers_win_and_what_they_cover_is_remembered() {
        let file = "[give]\n\nmemory = \"2GiB\"\n";
        let settings =
            load(file, &[("SKEIN_GIVE__MEMORY", "3GiB"), ("SKEIN_NET__LAN", "off")], memory_flag("4GiB")).unwrap();
        let memory = settings.get("give.memory").unwrap();
        assert_eq!((memory.value.as_str(), &memory.origin), (Some("4GiB"), &Origin::Flag("--memory")));
        let below: Vec<String> = memory.covered.iter().map(|(value, origin)| format!("{value} {origin}")).collect();
        assert_eq!(below[0], "\"3GiB\" SKEIN_GIVE__MEMORY");
        assert!(below[1].starts_with("\"2GiB\"") && below[1].ends_with("config.toml, line 3"), "{}", below[1]);
        assert_eq!(below[2], "\"auto\" default");
        assert!(!settings.node().net.lan);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_a_neighbour() {
        match load("[give]\nmemori = \"2GiB\"\n", &[], vec![]) {
            Err(ConfigError::Unknown { key, place: Place(Origin::File { line: 2, .. }), near }) => {
                assert_eq!((key.as_str(), near.as_deref()), ("give.memori", Some("give.memory")));
            }
            other => panic!("{other:?}"),
        }
        match load("port = 1\n", &[], vec![]) {
            Err(ConfigError::Unknown { near, .. }) => assert_eq!(near.as_deref(), Some("net.port")),
            other => panic!("{other:?}"),
        }
        assert!(matches!(load("[giv]\nx = 1\n", &[], vec![]), Err(ConfigError::Unknown { .. })));
        assert!(matches!(load("give = 1\n", &[], vec![]), Err(ConfigError::Unknown { .. })));
    }

    #[test]
    fn a_bare_number_and_a_wrong_value_are_two_things() {
        assert!(matches!(load("[give]\nmemory = 4\n", &[], vec![]), Err(ConfigError::NoUnit { .. })));
        assert!(matches!(load("", &[], memory_flag("4096")), Err(ConfigError::NoUnit { .. })));
        assert!(matches!(load("[give]\nmemory = \"1MiB\"\n", &[], vec![]), Err(ConfigError::Value { .. })));
        assert!(matches!(load("[net]\nport = 70000\n", &[], vec![]), Err(ConfigError::Value { .. })));
        assert!(matches!(load("", &[("SKEIN_NET__PORT", "x")], vec![]), Err(ConfigError::Value { .. })));
        assert!(matches!(load("[net\nport = 1\n", &[], vec![]), Err(ConfigError::Syntax { .. })));
    }

    #[test]
    fn two_settings_can_contradict_each_other() {
        let error = load("[give]\nstage = 1\nroles = []\n", &[], vec![]).unwrap_err();
        assert!(matches!(error, ConfigError::Contradiction { .. }), "{error}");
    }

    #[test]
    fn a_strange_variable_is_a_warning() {
        let settings = load("", &[("SKEIN_NET__PORTT", "1"), ("SKEIN_HOME", "x"), ("OTHER", "y")], vec![]).unwrap();
        assert_eq!(settings.warnings, ["SKEIN_NET__PORTT is not a variable of skein. Did you mean SKEIN_NET__PORT?"]);
    }

    #[test]
    fn all_problems_of_a_file_are_found_at_once() {
        let text = "[give]\nmemory = 4\nthreads = -1\n[nett]\nport = 1\n";
        let problems = Settings::problems(Path::new("my.toml"), text);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[0].to_string().starts_with("my.toml:2"), "{}", problems[0]);
        assert!(problems[2].to_string().starts_with("my.toml:4"), "{}", problems[2]);
    }

    #[test]
    fn a_secret_is_not_shown() {
        let settings = load("", &[("SKEIN_WATCH__TOKEN", "0123456789abcdef")], vec![]).unwrap();
        let token = settings.get("watch.token").unwrap();
        assert_eq!(shown(token.key, &token.value), "\"…\"");
        assert!(!format!("{:?}", settings.node().watch).contains("0123456789abcdef"));
    }

    #[test]
    fn a_slip_of_two_letters_finds_its_word() {
        assert_eq!(nearest("chekc", ["check".into(), "show".into()]), Some("check".into()));
        assert_eq!(nearest("dance", ["check".into(), "show".into()]), None);
    }
}
