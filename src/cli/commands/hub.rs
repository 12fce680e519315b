//! Models of the Hub: `skein model pull`, `list`, `rm`, and `hf:OWNER/NAME` where a folder is expected. In: a name. Out: a folder in
//! the home, downloaded when it is not there yet.

use std::{
    borrow::Cow,
    cell::RefCell,
    fs,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::json;
use skein_pipeline::compute::hf::Checkpoint;

use crate::{
    cli::{
        context::Context,
        failure::{Failure, Report},
        out::Out,
        progress::{self, Unit},
        show::{Bytes, counted},
        table::{Column, Table},
    },
    home::file::refused,
    hub::{self, Client, Endpoint, HubError, PREFIX, Source, shelf},
};

/// Before the second try without a byte; each further one waits longer.
const PAUSE: Duration = Duration::from_secs(2);

/// The path as it is, or of a model of the Hub its folder here. It is downloaded first where that is needed.
///
/// # Errors
/// No name of a model, or why it cannot be downloaded.
pub fn local<'a>(named: &'a Path, context: &Context) -> Result<Cow<'a, Path>, Report> {
    let Some(name) = named.to_str().filter(|name| name.starts_with(PREFIX)) else { return Ok(named.into()) };
    let source = parsed(name)?;
    match shelf::find(&context.home.models_dir(), &source) {
        Some(folder) => Ok(folder.into()),
        None => download(&source, context).map(Into::into),
    }
}

fn parsed(name: &str) -> Result<Source, Report> {
    name.parse().map_err(|message| Failure::Usage { message }.into())
}

pub fn pull(name: &str, context: &Context) -> Result<u8, Report> {
    let source = parsed(name)?;
    let folder = download(&source, context)?;
    match context.out.style().json {
        true => context.out.document("model-pull", &json!({ "model": source.to_string(), "path": folder })),
        false => {
            context.out.note(&format!("try it:  skein generate {PREFIX}{source} \"The fox\""));
            context.out.print(&folder.display().to_string());
        }
    }
    Ok(0)
}

fn download(source: &Source, context: &Context) -> Result<PathBuf, Report> {
    let folder = context.home.models_dir().join(source.folder());
    let client = Client::new(Endpoint::of_environment());
    context.out.note(&format!("asking {} for {source}", client.url()));
    let bar = Bar { out: &context.out, bar: RefCell::default() };
    let pulled = hub::pull(&client, source, &folder, PAUSE, &bar);
    bar.bar.take();
    let note = pulled.map_err(|error| failed(error, source))?;
    context.out.done(&format!("{source}  {}, checked", Bytes(note.bytes)));
    Ok(folder)
}

struct Bar<'a> {
    out: &'a Out,
    bar: RefCell<Option<progress::Progress>>,
}

impl hub::Progress for Bar<'_> {
    fn begin(&self, files: usize, bytes: u64) {
        let label = format!("downloading {}", counted(files as u64, "file"));
        *self.bar.borrow_mut() = Some(progress::Progress::start(self.out, &label, bytes, Unit::Bytes));
    }

    fn at(&self, bytes: u64) {
        if let Some(bar) = &*self.bar.borrow() {
            bar.at(bytes);
        }
    }

    fn again(&self, why: &str) {
        self.out.note(&format!("the line broke ({why}): going on from there"));
    }
}

fn failed(error: HubError, source: &Source) -> Report {
    let failure = match &error {
        HubError::Unreachable { endpoint, why } => {
            let folder = format!("./{}", source.name);
            Failure::NoHub { endpoint: endpoint.clone(), why: why.clone(), folder }
        }
        HubError::Refused { model, why } => Failure::HubRefuses { model: model.clone(), why: why.clone() },
        HubError::Unknown { model } => {
            Failure::NotOnHub { model: model.clone(), why: "there is no model or revision of that name".into() }
        }
        HubError::Unfit { model, why } => Failure::NotOnHub { model: model.clone(), why: format!("it {why}") },
        HubError::Other { file, why } => {
            let file = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Failure::NotAsAnnounced { file, why: why.clone() }
        }
        HubError::Disk { path, source, needed } => {
            Failure::from(&refused(path, *needed, io::Error::new(source.kind(), source.to_string())))
        }
    };
    Report { failure: Box::new(failure), cause: Some(Box::new(error)) }
}

pub fn list(context: &Context) -> Result<u8, Report> {
    let found = shelf::list(&context.home.models_dir());
    let mut table =
        Table::new(vec![Column::Left("model"), Column::Right("size"), Column::Left("family"), Column::Left("when")]);
    let mut documents = Vec::new();
    for (path, note) in &found {
        let name = note.source().map_or_else(|| note.id.clone(), |source| format!("{PREFIX}{source}"));
        let (size, when) = (shelf::bytes(path), &note.began);
        let family = match Checkpoint::open(path) {
            _ if !note.complete => "unfinished".into(),
            Ok(checkpoint) => format!("{:?}", checkpoint.family).to_lowercase(),
            Err(_) => "unknown".to_string(),
        };
        documents.push(json!({
            "model": name, "path": path, "bytes": size, "family": family, "commit": note.commit,
            "complete": note.complete, "when": when,
        }));
        let when = when.get(..16).unwrap_or_default().replace('T', " ");
        table.row(vec![name, Bytes(size).to_string(), family, when]);
    }
    match (context.out.style().json, found.is_empty()) {
        (true, _) => context.out.document("model-list", &documents),
        (false, true) => context.out.note("no model of the Hub is here yet: skein model pull hf:OWNER/NAME"),
        (false, false) => context.out.table(&table),
    }
    Ok(0)
}

pub fn remove(name: &str, yes: bool, context: &Context) -> Result<u8, Report> {
    let source = parsed(name)?;
    let found = shelf::list(&context.home.models_dir());
    let Some((path, _)) = found.iter().find(|(_, note)| note.source().as_ref() == Some(&source)) else {
        let names: Vec<String> = found.iter().filter_map(|(_, note)| Some(note.source()?.to_string())).collect();
        let known = if names.is_empty() { "none".into() } else { names.join(", ") };
        return Err(Failure::NotHere { model: source.to_string(), known }.into());
    };
    let size = Bytes(shelf::bytes(path));
    if !yes && !agreed(&format!("remove {source}, {size}?"), context)? {
        context.out.note("nothing was removed");
        return Ok(0);
    }
    fs::remove_dir_all(path).map_err(|error| refused(path, 0, error))?;
    context.out.done(&format!("{source}  removed, {size}"));
    if context.out.style().json {
        context.out.document("model-rm", &json!({ "model": source.to_string(), "path": path }));
    }
    Ok(0)
}

/// Asks on a terminal. Elsewhere nobody could answer.
fn agreed(question: &str, context: &Context) -> Result<bool, Report> {
    if !io::stdin().is_terminal() || context.out.style().json {
        let message = format!("{question} Nobody can be asked here: --yes says so beforehand");
        return Err(Failure::Usage { message }.into());
    }
    context.out.plain_anyway(&format!("{question} [y/N] "));
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|error| Failure::Usage { message: error.to_string() })?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
