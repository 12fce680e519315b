//! The folder of a report: claimed before anything is simulated, written whole or not at all. In: a path, what is to lie there. Out:
//! the files, or why not. A folder with anything else in it is left alone unless `--force` was said.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use skein_simulations::report::{Folder, Summary};

use crate::{
    cli::failure::{Failure, Report},
    cli::show::Bytes,
    home::file,
};

/// What a report of each kind leaves in its folder.
const OF_ONE: &[&str] =
    &["report.html", "summary.json", "series.csv", "peers.csv", "stages.csv", "events.jsonl", "plots"];
const OF_SWEEP: &[&str] = &["sweep.html", "sweep.json", "sweep.csv", "plots"];
/// Names of what is not finished begin with this.
const UNFINISHED: &str = ".skein-";

/// Which of the two a folder is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    One,
    Sweep,
}

/// A folder that a report may be written to.
#[derive(Debug)]
pub struct Place {
    dir: PathBuf,
    /// A report of the same scenario lies there.
    pub replaces: bool,
}

impl Place {
    /// Sees that a report of the scenario `name` can be written to `dir`, and makes the folder.
    pub fn claim(dir: &Path, kind: Kind, name: &str, force: bool) -> Result<Place, Report> {
        let refused = |error: String| Failure::NoReportFolder { path: dir.display().to_string(), error };
        if dir.exists() && !dir.is_dir() {
            return Err(refused("it is a file, and a report is a folder".into()).into());
        }
        let holds = names(dir);
        let replaces = !holds.is_empty();
        if replaces && !force && !is_own(dir, &holds, kind, name) {
            return Err(Failure::NotEmpty { path: dir.display().to_string() }.into());
        }
        file::probe(dir).map_err(|error| refused(in_words(&error)))?;
        Ok(Place { dir: dir.into(), replaces })
    }

    /// Writes everything into a folder inside, and moves it out when all of it is there: a disk that fills leaves what was there
    /// before.
    pub fn write(&self, folder: &Folder) -> Result<(), Report> {
        let needed: u64 = folder.files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        self.put(folder).map_err(|error| {
            let path = self.dir.display().to_string();
            match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Failure::ReportTooLarge {
                    path,
                    need: Bytes(needed),
                    free: Bytes(file::free(&self.dir).unwrap_or(0)),
                }
                .into(),
                _ => Failure::NoReportFolder { path, error: error.to_string() }.into(),
            }
        })
    }

    fn put(&self, folder: &Folder) -> io::Result<()> {
        let unfinished = tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(&self.dir)?;
        for (name, bytes) in &folder.files {
            let path = unfinished.path().join(name);
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            let mut file = File::create(path)?;
            file.write_all(bytes)?;
            file.sync_all()?;
        }
        // The events of another run would be taken for those of this one.
        match fs::remove_file(self.dir.join("events.jsonl")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        for (name, _) in &folder.files {
            let path = self.dir.join(name);
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::rename(unfinished.path().join(name), path)?;
        }
        Ok(())
    }
}

/// What lies in a folder, but for what an ended process left unfinished.
fn names(dir: &Path) -> BTreeSet<OsString> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    entries.filter(|name| !name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes())).collect()
}

/// Whether nothing is there but a report of this scenario.
fn is_own(dir: &Path, holds: &BTreeSet<OsString>, kind: Kind, name: &str) -> bool {
    let (known, file) = match kind {
        Kind::One => (OF_ONE, "summary.json"),
        Kind::Sweep => (OF_SWEEP, "sweep.json"),
    };
    if !holds.iter().all(|name| known.iter().any(|known| name == known)) {
        return false;
    }
    let Ok(text) = fs::read_to_string(dir.join(file)) else { return false };
    let scenario = match kind {
        Kind::One => Summary::read(&text).ok().map(|summary| summary.scenario),
        Kind::Sweep => swept(&text),
    };
    scenario.is_some_and(|scenario| Path::new(&scenario).file_stem().is_some_and(|stem| stem.to_string_lossy() == name))
}

/// The scenario of a sweep, as its first point that was simulated has it.
fn swept(text: &str) -> Option<String> {
    let document: serde_json::Value = serde_json::from_str(text).ok()?;
    let points = document.get("points")?.as_array()?;
    points.iter().find_map(|point| Some(point.get("summary")?.get("scenario")?.as_str()?.to_string()))
}

fn in_words(error: &crate::home::HomeError) -> String {
    match error {
        crate::home::HomeError::Denied { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> Folder {
        Folder { files: files.iter().map(|(name, text)| ((*name).to_string(), text.as_bytes().to_vec())).collect() }
    }

    fn claimed(dir: &Path, force: bool) -> Result<Place, &'static str> {
        Place::claim(dir, Kind::One, "first", force).map_err(|report| report.failure.code())
    }

    #[test]
    fn a_file_and_a_place_that_does_not_exist_are_no_folders_of_a_report() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("f");
        fs::write(&file, "mine").unwrap();
        assert_eq!(claimed(&file, true).unwrap_err(), "SK152");
        assert_eq!(claimed(&file.join("below"), false).unwrap_err(), "SK152");
        assert_eq!(fs::read_to_string(file).unwrap(), "mine");
    }

    #[test]
    fn what_is_not_a_report_of_the_same_scenario_stays() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("report");
        assert!(!claimed(&dir, false).unwrap().replaces, "it is new");
        fs::write(dir.join("diary.txt"), "dear diary").unwrap();
        assert_eq!(claimed(&dir, false).unwrap_err(), "SK314");
        let place = claimed(&dir, true).unwrap();
        place.write(&folder(&[("report.html", "x"), ("plots/a.png", "y")])).unwrap();
        assert_eq!(fs::read_to_string(dir.join("plots/a.png")).unwrap(), "y");
        assert_eq!(fs::read_to_string(dir.join("diary.txt")).unwrap(), "dear diary");
        assert_eq!(names(&dir).len(), 3);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 3, "nothing unfinished is left");
    }

    #[test]
    fn a_report_that_cannot_be_written_whole_leaves_what_was_there() {
        let home = tempfile::tempdir().unwrap();
        let place = claimed(&home.path().join("report"), false).unwrap();
        place.write(&folder(&[("report.html", "before")])).unwrap();
        // The second is a folder by the time that it is written.
        let broken = folder(&[("report.html", "after"), ("plots/a.png", "y"), ("plots", "no folder")]);
        assert!(place.write(&broken).is_err());
        assert_eq!(fs::read_to_string(home.path().join("report/report.html")).unwrap(), "before");
        assert_eq!(fs::read_dir(home.path().join("report")).unwrap().count(), 1);
    }
}
