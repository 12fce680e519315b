//! Files around a simulation: the scenario and what it names, the summary of a report.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use skein_simulations::{
    report::Summary,
    scenario::{Document, Files, Refused, built_in, check::check},
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
    let mut document = Document::read(&file, &text).map_err(refused)?;
    for change in ask.changes() {
        document.set(&change).map_err(refused)?;
    }
    let files = named(&document, &beside)?;
    // Contradictions are told before anything is made.
    check(&document, &files).map_err(refused)?;
    Ok(Opened { name, document, files })
}

/// A scenario that stands in a report, with the files that it names, looked for here.
pub fn with_files(name: String, document: Document) -> Result<Opened, Report> {
    let files = named(&document, Path::new(""))?;
    Ok(Opened { name, document, files })
}

/// The files that a scenario names: meant beside the scenario, or here.
fn named(document: &Document, beside: &Path) -> Result<Files, Report> {
    let named = document.files().into_iter().map(|name| {
        let place = beside.join(&name);
        let place = if place.is_file() { place } else { PathBuf::from(&name) };
        // What is missing is the scenario's problem, with its line.
        Ok(place.is_file().then(|| read(&place)).transpose()?.map(|text| (name, text)))
    });
    Ok(named.collect::<Result<Vec<_>, Report>>()?.into_iter().flatten().collect())
}

fn read(path: &Path) -> Result<String, Report> {
    let too_long = fs::metadata(path).is_ok_and(|facts| facts.len() > FILE_MAX);
    if too_long {
        let why = format!("it has more than {} MiB", FILE_MAX >> 20);
        return Err(Failure::NoScenario { what: path.display().to_string(), why, hint: None.into() }.into());
    }
    fs::read_to_string(path).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::InvalidData => "it is not text (UTF-8)".to_string(),
            _ => error.to_string(),
        };
        Failure::NoScenario { what: path.display().to_string(), why, hint: None.into() }.into()
    })
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
    let text = fs::read_to_string(&path).map_err(|error| no(error.to_string()))?;
    Summary::read(&text).map_err(|error| no(error.to_string()))
}
