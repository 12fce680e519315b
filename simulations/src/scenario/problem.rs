//! What is wrong with a scenario, and where somebody wrote it.

use std::fmt;

use skein_protocol::slip::nearest;

/// A problem, in one sentence that begins with the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    /// Dotted path; empty where the text is no TOML.
    pub key: String,
    /// What is wrong and what is allowed, to be read after the key.
    pub what: String,
}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Lines and columns count from 1, columns in characters.
    Line { file: String, line: usize, column: usize },
    /// `--set` and its text.
    Set(String),
    /// `--over`, and one of its values.
    Over(String),
    /// Nowhere: a default.
    Default { file: String },
}

impl Place {
    /// Of a text.
    pub fn line(&self) -> Option<usize> {
        match self {
            Place::Line { line, .. } => Some(*line),
            Place::Set(_) | Place::Over(_) | Place::Default { .. } => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Place::Set(text) => write!(f, "--set {text}"),
            Place::Over(text) => write!(f, "--over {text}"),
            Place::Default { file } => write!(f, "{file}"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gap = if self.key.is_empty() { "" } else { " " };
        write!(f, "{}: {}{gap}{}", self.place, self.key, self.what)
    }
}

/// Why a scenario is not simulated: at least one problem, in the order of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub Vec<Problem>);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

/// `is not known here`, with the nearest of the known names and all of them.
pub fn unknown(name: &str, known: &[impl AsRef<str>]) -> String {
    let near = nearest(name, known.iter().map(AsRef::as_ref));
    let hint = near.map_or(String::new(), |near| format!(", did you mean {near}?"));
    let gap = if hint.is_empty() { ";" } else { "" };
    let all: Vec<&str> = known.iter().map(AsRef::as_ref).collect();
    format!("\"{name}\" is not known{hint}{gap} allowed: {}", all.join(", "))
}

/// What is wrong with the name of a file whose text is not there.
pub fn unread(name: &str) -> String {
    format!("names a file that could not be read: {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_answered_with_the_name_and_the_list() {
        assert_eq!(unknown("sopt", &["none", "spot"]), "\"sopt\" is not known, did you mean spot? allowed: none, spot");
        assert_eq!(unknown("weather", &["none", "spot"]), "\"weather\" is not known; allowed: none, spot");
    }

    #[test]
    fn a_problem_reads_as_one_line() {
        let place = Place::Line { file: "my.toml".into(), line: 3, column: 9 };
        let problem = Problem { place, key: "peers.count".into(), what: "cannot be 0".into() };
        assert_eq!(problem.to_string(), "my.toml:3:9: peers.count cannot be 0");
    }
}
