//! `skein export`: the model of the run as a Hugging Face folder. The peer that runs here collects the weights and writes.

use std::{
    fs,
    path::{self, PathBuf},
};

use serde_json::json;

use super::ask;
use crate::{
    cli::{
        args,
        context::Context,
        failure::{Failure, Report},
        progress::{Progress, Unit},
        show::{Bytes, Count},
    },
    watch::{Client, ExportForm, ExportNote, ExportRequest},
};

/// What an export wrote.
pub struct Exported {
    files: Vec<PathBuf>,
    bytes: u64,
    parameters: u64,
    pub step: u64,
}

/// Has the peer that runs here collect the model of its run, and write it.
///
/// # Errors
/// It cannot, or is gone.
pub fn collect(client: &Client, request: &ExportRequest, context: &Context) -> Result<Exported, Report> {
    let mut done = None;
    let mut progress: Option<Progress> = None;
    client.export(request, |note| match note {
        ExportNote::Collected { stages, of } => {
            let bar = progress
                .get_or_insert_with(|| Progress::start(&context.out, "collecting stages", of.into(), Unit::Things));
            bar.at(stages.into());
        }
        ExportNote::Missed { what } => context.out.warn(&what),
        ExportNote::Done { files, bytes, parameters, step } => done = Some(Exported { files, bytes, parameters, step }),
    })?;
    Ok(done.expect("an export that ends well ends with this"))
}

pub fn run(args: &args::Export, context: &Context) -> Result<u8, Report> {
    let client = ask::client(context)?;
    let run = ask::run_named(&client.state()?, &args.run)?;
    // The peer asks again when it writes; here the answer comes before anything is collected.
    let shown = args.out.display().to_string();
    if !args.force && fs::read_dir(&args.out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Failure::NotEmpty { path: shown }.into());
    }
    let out = path::absolute(&args.out).map_err(|error| Failure::Unwritable {
        path: shown,
        error: error.to_string(),
        owner: "nobody".into(),
    })?;
    let form = match (args.adapter, args.merge, args.gguf) {
        (true, ..) => ExportForm::Adapter,
        (_, true, _) => ExportForm::Merged,
        (.., true) => ExportForm::Gguf,
        (false, false, false) => ExportForm::Best,
    };
    let request = ExportRequest { out: out.clone(), overwrite: args.force, form };
    let Exported { files, bytes, parameters, step } = collect(&client, &request, context)?;
    if context.out.style().json {
        let value = json!({
            "run": run.name, "out": out, "files": files, "bytes": bytes, "parameters": parameters, "step": step,
        });
        context.out.document("export", &value);
        return Ok(0);
    }
    let (parameters, size) = (Count(parameters), Bytes(bytes));
    context.out.done(&format!("{} at step {}: {parameters} parameters, {size}", run.name, Count(step)));
    let written =
        |end: &str| files.iter().find(|file| file.ends_with(end) || file.extension().is_some_and(|e| e == end));
    let shown = out.display();
    context.out.note(&match (written("adapter_config.json"), written("gguf")) {
        (Some(_), _) => format!("the model with it:  skein model merge MODEL {shown} --out ./merged"),
        (_, Some(file)) => format!("try it:  skein generate {} \"The fox\"", file.display()),
        (None, None) => format!("try it:  skein generate {shown} \"The fox\""),
    });
    context.out.print(&out.display().to_string());
    Ok(0)
}
