//! `skein model convert`: one model, in a folder or in a GGUF file. In: either. Out: the other, whole or not there.

use std::{ffi::OsStr, fs, path::Path};

use serde_json::json;
use skein_pipeline::{
    compute::{
        gguf::{self, Kept},
        hf::{self, Checkpoint, HfError, Written},
    },
    model::StageModel,
};

use super::{hub, unread};
use crate::{
    cli::{
        args,
        context::Context,
        failure::{Failure, Report},
        show::{Bytes, Count},
    },
    home::file::refused,
};

pub fn run(args: &args::ModelConvert, context: &Context) -> Result<u8, Report> {
    let is_file = args.out.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
    let path = args.out.display().to_string();
    let filled = fs::read_dir(&args.out).is_ok_and(|mut entries| entries.next().is_some());
    if filled || (args.out.exists() && !args.out.is_dir() && !args.force) {
        return Err(Failure::NotEmpty { path }.into());
    }
    let model = &*hub::local(&args.model, context)?;
    let unread = |error| unread(model, error);
    let checkpoint = Checkpoint::open(model).map_err(unread)?;
    let texts = checkpoint.texts().map_err(unread)?;
    let whole = checkpoint.whole().map_err(unread)?;
    let kept = match args.kept {
        args::KeptType::F32 => Kept::F32,
        args::KeptType::F16 => Kept::F16,
        args::KeptType::Bf16 => Kept::Bf16,
        args::KeptType::Q8 => Kept::Q8,
    };
    let name = model.canonicalize().ok();
    let name = name.as_deref().and_then(Path::file_stem).map(OsStr::to_string_lossy).unwrap_or("model".into());
    let needed = 4 * whole.1.len() as u64;
    let written = match is_file {
        true => gguf::write_gguf(&args.out, &name, checkpoint.family, &[whole], &texts, kept),
        false => folder(args, &checkpoint, whole, &texts),
    };
    let written = written.map_err(|error| match error {
        HfError::Io { path, source } => refused(&path, needed, source).into(),
        other => unread(other),
    })?;
    if context.out.style().json {
        let value = json!({ "out": args.out, "bytes": written.bytes, "parameters": written.parameters });
        context.out.document("model-convert", &value);
        return Ok(0);
    }
    context.out.done(&format!("{} parameters, {}", Count(written.parameters), Bytes(written.bytes)));
    context.out.print(&path);
    Ok(0)
}

fn folder(
    args: &args::ModelConvert,
    checkpoint: &Checkpoint,
    whole: (StageModel, Vec<f32>),
    texts: &hf::Texts,
) -> Result<Written, HfError> {
    fs::create_dir_all(&args.out).map_err(|source| HfError::Io { path: args.out.clone(), source })?;
    hf::write_with(&args.out, checkpoint.family, &[whole], texts)
}
