//! Files around a simulation: the scenario and what it names, the summary of a report.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use skein_simulations::{
    report::Summary,
    scenario::{Document, Draft, Files, Refused, Unread, built_in},
};

use crate::{
    cli::{
        args::Ask,
        failure::{Failure, Report},
    },
    config::nearest,
};

/// Bytes of a scenario, a trace or a table of prices at most.
const FILE_MAX: u64 = 256 << 20;

/// A scenario, with everything that was asked for set in it, and the files that it names.
pub struct Opened {
    /// As the report's folder and its charts call it.
    pub name: String,
    pub document: Document,
    pub files: Files,
}

/// `what`: a built-in scenario or a file.
pub fn open(what: &str, ask: &Ask) -> Result<Opened, Report> {
    drafted(what, ask)?.map_err(refused)
}

/// The same, with the problems as they are.
pub fn drafted(what: &str, ask: &Ask) -> Result<Result<Opened, Refused>, Report> {
    let path = Path::new(what);
    let (file, text, beside) = match built_in().iter().find(|(name, _)| *name == what) {
        Some((name, text)) => ((*name).to_string(), (*text).to_string(), PathBuf::new()),
        None if path.is_dir() => {
            let why = "it is a folder, and a scenario is a file or a name".into();
            return Err(Failure::NoScenario { what: what.into(), why, hint: None.into() }.into());
        }
        None if path.is_file() => (what.to_string(), read(path)?, path.parent().map(PathBuf::from).unwrap_or_default()),
        None => return Err(unknown(what)),
    };
    let name = path.file_stem().map_or(file.clone(), |stem| stem.to_string_lossy().into_owned());
    let mut draft = Draft::read(&file, &text);
    ask.changes().iter().for_each(|change| draft.set(change));
    Ok(checked(name, draft, &beside))
}

/// The scenario that stands in a report, with some of it set, and the files that it names, looked for here.
pub fn of_report(summary: &Summary, sets: &[String]) -> Result<Opened, Report> {
    let mut draft = Draft::read(&summary.scenario, &summary.text);
    sets.iter().for_each(|set| draft.set(set));
    checked(summary.scenario.clone(), draft, Path::new("")).map_err(refused)
}

/// Contradictions are told before anything is made.
fn checked(name: String, draft: Draft, beside: &Path) -> Result<Opened, Refused> {
    let (files, unread) = named(draft.files(), beside);
    draft.checked(&files, &unread).map(|document| Opened { name, document, files })
}

/// The files that a scenario names, meant beside the scenario, or here; and why those that are missing are.
fn named(names: Vec<String>, beside: &Path) -> (Files, Unread) {
    let (mut files, mut unread) = (Files::new(), Unread::new());
    for name in names {
        let place = beside.join(&name);
        let place = if place.exists() { place } else { PathBuf::from(&name) };
        match text(&place) {
            Ok(text) => drop(files.insert(name, text)),
            Err(why) => drop(unread.insert(name, why)),
        }
    }
    (files, unread)
}

fn read(path: &Path) -> Result<String, Report> {
    let no = |why| Failure::NoScenario { what: path.display().to_string(), why, hint: None.into() };
    text(path).map_err(|why| no(why).into())
}

/// The text of a file, or why there is none.
fn text(path: &Path) -> Result<String, String> {
    let facts = fs::metadata(path).map_err(|error| in_words(&error))?;
    if facts.is_dir() {
        return Err("it is a folder".into());
    }
    if facts.len() > FILE_MAX {
        return Err(format!("it has more than {} MiB", FILE_MAX >> 20));
    }
    fs::read_to_string(path).map_err(|error| in_words(&error))
}

fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it is not there".into(),
        io::ErrorKind::InvalidData => "it is not text (UTF-8)".into(),
        _ => error.to_string(),
    }
}

fn unknown(what: &str) -> Report {
    let names = built_in().iter().map(|(name, _)| (*name).to_string());
    let hint = nearest(what, names);
    let why = "there is no such file, and none of the built-in scenarios has that name".into();
    Failure::NoScenario { what: what.into(), why, hint: hint.into() }.into()
}

/// Every problem of a scenario, with its line.
pub fn refused(refused: Refused) -> Report {
    let problems = refused.0.len() as u64;
    let lines: Vec<String> = refused.0.iter().map(ToString::to_string).collect();
    Failure::BadScenario { problems: crate::cli::show::counted(problems, "problem"), list: lines.join("\n") }.into()
}

/// The summary of a report: its folder, or the file itself.
pub fn summary(report: &Path) -> Result<Summary, Report> {
    let path = if report.is_dir() { report.join("summary.json") } else { report.to_path_buf() };
    let no = |why: String| Report::from(Failure::NoReport { path: path.display().to_string(), why });
    let text = text(&path).map_err(no)?;
    Summary::read(&text).map_err(|error| no(error.to_string()))
}
