//! Downloads a model into a folder. In: what the Hub has of it. Out: the folder, whole, or as far as it came: a file on its way is
//! called `NAME.part`, and the next try goes on where it ends.
//!
//! Only what is computed and read is asked for: configuration, tokenizer, safetensors. A file counts when it has the size that was
//! announced and, where the Hub says it, the SHA-256.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use skein_pipeline::compute::hf::BESIDE;

use super::{
    HubError, Source,
    client::{Client, Listing, Sibling},
    shelf::Note,
};

const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const PIECE: usize = 1 << 20;
/// One after the other that brought nothing.
const TRIES: u32 = 5;
/// Of a file whose size nobody says.
const UNSAID_MAX: u64 = 1 << 20;

/// How far it is.
pub trait Progress {
    /// So many bytes in so many files are to come.
    fn begin(&self, files: usize, bytes: u64);
    /// So many of them are here.
    fn at(&self, bytes: u64);
    /// It broke off and is tried again.
    fn again(&self, why: &str);
}

/// Fills `folder`, which is made. `pause`: before a try after one that brought nothing, longer each time.
///
/// # Errors
/// See [`HubError`]. What came stays for the next try.
pub fn pull(
    client: &Client,
    source: &Source,
    folder: &Path,
    pause: Duration,
    progress: &dyn Progress,
) -> Result<Note, HubError> {
    let listing = client.list(source)?;
    let files = wanted(source, &listing)?;
    let commit = listing.sha.unwrap_or_else(|| source.revision.clone());
    if commit.contains(['/', '?', '#', '%']) {
        return Err(HubError::Unfit { model: source.to_string(), why: "has a commit that is no name".into() });
    }
    let disk = |path: &Path, source| HubError::Disk { path: path.into(), source, needed: 0 };
    fs::create_dir_all(folder).map_err(|error| disk(folder, error))?;
    let mut note = Note::begin(source, &commit, client.url());
    // What is there of another commit is of another model.
    if Note::read(folder).is_none_or(|old| old.commit != commit) {
        clear(folder).map_err(|error| disk(folder, error))?;
    }
    note.write(folder).map_err(|error| disk(folder, error))?;
    let total = files.iter().filter_map(size).sum();
    progress.begin(files.len(), total);
    let mut here = 0;
    for file in &files {
        let job = Job { client, source, commit: &commit, file, folder, needed: total };
        here += job.run(here, pause, progress)?;
    }
    note.bytes = here;
    note.complete = true;
    note.write(folder).map_err(|error| disk(folder, error))?;
    Ok(note)
}

/// Removes what an earlier try left.
fn clear(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn size(file: &Sibling) -> Option<u64> {
    file.lfs.as_ref().and_then(|lfs| lfs.size).or(file.size)
}

/// The files to download, small ones first.
fn wanted(source: &Source, listing: &Listing) -> Result<Vec<Sibling>, HubError> {
    let unfit = |why: String| Err(HubError::Unfit { model: source.to_string(), why });
    let all = &listing.siblings;
    let named = |name: &str| all.iter().find(|file| file.name == name);
    let mut files: Vec<Sibling> =
        BESIDE.iter().chain(&["config.json", "LICENSE"]).filter_map(|name| named(name)).cloned().collect();
    if named("config.json").is_none() {
        return unfit("has no config.json: it is no model that is computed here".into());
    }
    let shard = |file: &&Sibling| {
        let name = &file.name;
        name.starts_with("model-") && name.ends_with(".safetensors") && !name.contains(['/', '\\', '%', '?', '#'])
    };
    match (named(WHOLE), named(INDEX)) {
        (Some(whole), _) => files.push(whole.clone()),
        (None, Some(index)) => {
            files.push(index.clone());
            files.extend(all.iter().filter(shard).cloned());
        }
        (None, None) => {
            let pickle = all.iter().find(|file| [".bin", ".pt", ".pth"].iter().any(|end| file.name.ends_with(end)));
            return unfit(match pickle {
                Some(file) => {
                    format!("has its weights only in {}, and pickles are not read: they can run code", file.name)
                }
                None => "has no model.safetensors".into(),
            });
        }
    }
    Ok(files)
}

/// One file.
struct Job<'a> {
    client: &'a Client,
    source: &'a Source,
    commit: &'a str,
    file: &'a Sibling,
    folder: &'a Path,
    needed: u64,
}

/// How a try ended that did not bring all.
enum Broken {
    /// It may go on.
    Line(String),
    Final(HubError),
}

impl Job<'_> {
    /// Its bytes. `before`: those of the files before it.
    fn run(&self, before: u64, pause: Duration, progress: &dyn Progress) -> Result<u64, HubError> {
        let (path, part) = (self.folder.join(&self.file.name), self.part());
        if let Ok(facts) = fs::metadata(&path)
            && size(self.file).is_none_or(|size| size == facts.len())
        {
            progress.at(before + facts.len());
            return Ok(facts.len());
        }
        let mut idle = 0;
        loop {
            let had = self.had();
            let why = match self.attempt(had, before, progress) {
                Ok(()) => break,
                Err(Broken::Final(error)) => return Err(error),
                Err(Broken::Line(why)) => why,
            };
            idle = if self.had() > had { 0 } else { idle + 1 };
            if idle == TRIES {
                let endpoint = self.client.url().to_string();
                return Err(HubError::Unreachable { endpoint, why: format!("{} broke off: {why}", self.file.name) });
            }
            progress.again(&why);
            thread::sleep(pause * idle);
        }
        self.checked()?;
        let bytes = self.had();
        fs::rename(&part, &path).map_err(|source| self.disk(source))?;
        progress.at(before + bytes);
        Ok(bytes)
    }

    fn part(&self) -> PathBuf {
        self.folder.join(format!("{}.part", self.file.name))
    }

    fn had(&self) -> u64 {
        fs::metadata(self.part()).map_or(0, |facts| facts.len())
    }

    fn disk(&self, source: io::Error) -> HubError {
        HubError::Disk { path: self.part(), source, needed: self.needed }
    }

    fn other(&self, why: String) -> HubError {
        // What is wrong once stays wrong: the next try begins anew.
        _ = fs::remove_file(self.part());
        HubError::Other { file: self.folder.join(&self.file.name), why }
    }

    /// Asks for what is missing, once.
    fn attempt(&self, had: u64, before: u64, progress: &dyn Progress) -> Result<(), Broken> {
        let most = size(self.file);
        if most == Some(had) {
            return Ok(());
        }
        if most.is_some_and(|most| had > most) {
            _ = fs::remove_file(self.part());
            return Err(Broken::Line("more was here than the file has".into()));
        }
        let coming =
            self.client.fetch(self.source, self.commit, &self.file.name, had).map_err(|error| match error {
                HubError::Unreachable { why, .. } => Broken::Line(why),
                other => Broken::Final(other),
            })?;
        let from = coming.from;
        let open = match from {
            0 => File::create(self.part()),
            _ => OpenOptions::new().append(true).open(self.part()),
        };
        let mut file = open.map_err(|source| Broken::Final(self.disk(source)))?;
        let (mut bytes, mut piece, mut here) = (coming.bytes, vec![0; PIECE], from);
        loop {
            let read = match bytes.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) => return Err(Broken::Line(error.to_string())),
            };
            here += read as u64;
            if here > most.unwrap_or(UNSAID_MAX) {
                let announced =
                    most.map_or_else(|| "no size was announced".into(), |most| format!("{most} bytes were announced"));
                return Err(Broken::Final(self.other(format!("{announced}, and more come"))));
            }
            file.write_all(&piece[..read]).map_err(|source| Broken::Final(self.disk(source)))?;
            progress.at(before + here);
        }
        file.sync_all().map_err(|source| Broken::Final(self.disk(source)))?;
        match most {
            Some(most) if here < most => Err(Broken::Line(format!("it ended after {here} of {most} bytes"))),
            _ => Ok(()),
        }
    }

    fn checked(&self) -> Result<(), HubError> {
        let Some(announced) = self.file.lfs.as_ref().and_then(|lfs| lfs.sha256.as_deref()) else { return Ok(()) };
        let (mut hash, mut piece) = (Sha256::new(), vec![0; PIECE]);
        let mut file = File::open(self.part()).map_err(|source| self.disk(source))?;
        loop {
            match file.read(&mut piece).map_err(|source| self.disk(source))? {
                0 => break,
                read => hash.update(&piece[..read]),
            }
        }
        let found = HEXLOWER.encode(&hash.finalize());
        match found.eq_ignore_ascii_case(announced) {
            true => Ok(()),
            false => Err(self.other(format!("its SHA-256 is {found}, {announced} was announced"))),
        }
    }
}
