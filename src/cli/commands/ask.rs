//! What the commands share that ask somebody: the peer of this home, its run, or a model in a folder.

use std::path::Path;

use crate::{
    cli::{
        args,
        context::Context,
        failure::{Failure, Report},
        petname,
    },
    config::nearest,
    hub::PREFIX,
    node::{base::Words, signed},
    talk::{Limits, Model, OpenError, Sampling},
    watch::{Client, RunState, State},
};

/// That many requests wait beyond those that are answered.
const WAITING_MAX: usize = 32;

/// The folder or file that is meant, if it is no run: it is there, or is written as a path or as a model of the Hub.
pub fn folder(named: &str) -> Option<&Path> {
    let path = Path::new(named);
    (path.exists() || named.contains(['/', '\\', '.']) || named.starts_with(PREFIX)).then_some(path)
}

/// A folder with its weights, or the run of the peer that runs here, to answer `most` at a time.
///
/// # Errors
/// The folder cannot be read as a model; no peer runs here, or it works on another run.
pub fn model(named: &str, name: Option<String>, most: usize, context: &Context) -> Result<Model, Report> {
    if let Some(folder) = folder(named) {
        let last = folder.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        return open(folder, name.or(last).unwrap_or_else(|| named.into()), most, context);
    }
    let client = client(context)?;
    let run = run_named(&client.state()?, named)?;
    let limits = Limits { sessions_max: most, waiting_max: WAITING_MAX, cache_bytes_max: 0 };
    let folder = context.home.runs().list().into_iter().find(|folder| folder.run == run.id);
    let signed = folder.as_ref().and_then(|folder| folder.manifest().ok()?);
    let manifest = signed.and_then(|bytes| signed::open(&bytes, run.id).ok());
    let words = manifest.as_ref().and_then(|manifest| Words::of_run(&context.home.shelf(), manifest).ok()?);
    let template = words.and_then(|words| words.template);
    let reads = manifest.map(|manifest| manifest.model.config.context as usize);
    let (owner, fingerprint) = (petname::of(&run.owner), format!("sk_{}", run.id.short(8)));
    Ok(Model::swarm(client, name.unwrap_or(run.name), owner, fingerprint, reads, template, limits))
}

/// The model of a folder, in memory. It is said where its text can only be guessed.
///
/// # Errors
/// See [`model`].
pub fn open(folder: &Path, name: String, most: usize, context: &Context) -> Result<Model, Report> {
    let folder = &*super::hub::local(folder, context)?;
    let give = &context.node.give;
    let memory = give.memory_bytes(&context.machine);
    // The weights, and once more as products read them.
    let room = |parameters: usize| memory.saturating_sub(8 * parameters as u64).max(memory / 4);
    let limits =
        |parameters| Limits { sessions_max: most, waiting_max: WAITING_MAX, cache_bytes_max: room(parameters) };
    let threads = give.thread_count(&context.machine).into();
    let model = Model::folder(folder, name, threads, limits).map_err(|error| unopened(folder, error))?;
    if model.guessed_bytes {
        let path = folder.display();
        context.out.warn(&format!("{path} has no tokenizer.json: its tokens are taken for bytes, which may be wrong"));
    }
    Ok(model)
}

/// # Errors
/// Wrong usage: a value that no choice can be made by.
pub fn sampling(choice: &args::Choice) -> Result<Sampling, Report> {
    let args::Choice { temperature, top_p, seed } = *choice;
    let usage = |message: String| Err(Failure::Usage { message }.into());
    if !(temperature.is_finite() && temperature >= 0.0) {
        return usage(format!("--temperature {temperature}: 0 or more"));
    }
    if !(top_p > 0.0 && top_p <= 1.0) {
        return usage(format!("--top-p {top_p}: above 0, at most 1"));
    }
    Ok(Sampling { temperature, top_p, seed: seed.unwrap_or_else(rand::random) })
}

fn unopened(folder: &Path, error: OpenError) -> Report {
    match error {
        OpenError::Base(error) => super::train::unusable(folder, error),
        other => Failure::Other { message: other.to_string() }.into(),
    }
}

pub fn client(context: &Context) -> Result<Client, Report> {
    Ok(Client::find(&context.home.control_file())?)
}

/// The run of the peer that runs here, if it goes by `name`: its label, or the beginning of its hash.
///
/// # Errors
/// The peer works on another run, or does not know yet.
pub fn run_named(state: &State, name: &str) -> Result<RunState, Report> {
    match &state.run {
        Some(run) if run.name == name || is_hash_of(name, run) => Ok(run.clone()),
        Some(run) => {
            let hint = nearest(name, [run.name.clone()]);
            let known = format!("{}, which the peer here works on", run.name);
            Err(Failure::UnknownRun { name: name.into(), known, hint: hint.into() }.into())
        }
        None => Err(Failure::NotPossible { why: "it does not know its run yet".into() }.into()),
    }
}

fn is_hash_of(name: &str, run: &RunState) -> bool {
    let digits = name.strip_prefix("b3:").unwrap_or(name);
    digits.len() >= 6 && run.id.to_hex().starts_with(digits)
}

#[cfg(test)]
mod tests {
    use skein_protocol::{PeerId, hash::Digest};

    use super::*;
    use crate::watch::Me;

    #[test]
    fn a_run_goes_by_its_label_or_its_hash() {
        let mut state = State::starting(Me::default(), 0);
        assert_eq!(run_named(&state, "tiny").unwrap_err().failure.code(), "SK703");
        let run =
            RunState { name: "tiny".into(), id: Digest([0xab; 32]), about: String::new(), owner: PeerId([1; 32]) };
        state.run = Some(run.clone());
        for name in ["tiny", "ababab", "b3:abababab"] {
            assert_eq!(run_named(&state, name).unwrap(), run, "{name}");
        }
        for name in ["tinny", "ab", "b3:", "cdcdcd"] {
            assert_eq!(run_named(&state, name).unwrap_err().failure.code(), "SK312", "{name}");
        }
    }
}
