//! `skein run`: write, check and show manifests.

use std::{fs, path::Path};

use serde_json::json;
use skein_pipeline::model::cost;
use skein_protocol::{
    Manifest, PeerId, RunId,
    run::{
        Severity, preset,
        text::{self, Parsed, TextProblem},
    },
};

use super::{invite, unknown_run};
use crate::{
    cli::{
        args,
        context::Context,
        failure::{Failure, Report},
        out::Out,
        show::{About, Bytes, Peer, Traffic, counted},
    },
    home::{
        RunFolder,
        file::{self, Reader},
    },
    node::signed,
};

pub fn run(args: &args::Run, context: &Context) -> Result<u8, Report> {
    match args {
        args::Run::New(args) => new(args, &context.out),
        args::Run::Check { file } => check(file, &context.out),
        args::Run::Show { what } => show(what.as_deref(), context),
    }
}

fn new(args: &args::RunNew, out: &Out) -> Result<u8, Report> {
    let (manifest, text) = new_manifest(args)?;
    match &args.out {
        // Its identity depends on who will own it.
        None if out.style().json => out.document("run new", &json!({ "run": null, "manifest": manifest })),
        None => out.print(text.trim_end()),
        Some(path) if path.exists() && !args.force => {
            return Err(Failure::NotEmpty { path: path.display().to_string() }.into());
        }
        Some(path) => {
            file::write(path, text.as_bytes(), Reader::Anyone)?;
            if out.style().json {
                out.document("run new", &json!({ "path": path }));
            } else {
                out.print(&path.display().to_string());
            }
            let shown = path.display();
            out.note(&format!("skein run check {shown}, then skein train --run {shown} --data ./books"));
        }
    }
    Ok(0)
}

/// The manifest of a preset with a name, and its text with comments.
fn new_manifest(args: &args::RunNew) -> Result<(Manifest, String), Report> {
    let mut manifest = preset(&args.preset).ok_or_else(|| super::train::no_preset(&args.preset))?;
    if let Some(name) = &args.name {
        manifest.run.name = name.clone();
        manifest.run.about = String::new();
    }
    let text = text::write(&manifest);
    match text::parse(&text, None) {
        Ok(_) => Ok((manifest, text)),
        Err(problems) => {
            let what = problems.first().map_or(String::new(), |problem| problem.what.clone());
            Err(Failure::Usage { message: format!("the name {}: {what}", manifest.run.name) }.into())
        }
    }
}

/// All problems of a manifest's text with their lines.
pub(super) fn not_valid(path: &Path, problems: &[TextProblem]) -> Failure {
    let line = |problem: &TextProblem| format!("line {}: {} {}", problem.line, problem.key, problem.what);
    let lines: Vec<String> = problems.iter().map(line).collect();
    Failure::BadManifest { path: path.display().to_string(), problems: lines.join("\n") }
}

fn read(path: &Path) -> Result<String, Report> {
    fs::read_to_string(path)
        .map_err(|error| Failure::DataUnreadable { path: path.display().to_string(), error: error.to_string() }.into())
}

fn check(path: &Path, out: &Out) -> Result<u8, Report> {
    let source = read(path)?;
    let (problems, manifest) = match text::parse(&source, None) {
        Ok(Parsed { manifest, remarks, .. }) => (remarks, Some(manifest)),
        Err(problems) => (problems, None),
    };
    let exit = if manifest.is_some() { 0 } else { 3 };
    if out.style().json {
        let list: Vec<_> = problems.iter().map(problem_document).collect();
        let costs = manifest.as_ref().map(cost_document);
        out.document("run check", &json!({ "path": path, "problems": list, "costs": costs }));
        return Ok(exit);
    }
    let mut page = vec![headline(path, &problems)];
    page.extend(problems.iter().map(|problem| excerpt(&source, problem)));
    page.extend(manifest.iter().flat_map(costs).map(|line| format!("  {line}")));
    out.print(&page.join("\n"));
    Ok(exit)
}

fn problem_document(problem: &TextProblem) -> serde_json::Value {
    let severity = match problem.severity {
        Severity::Error => "error",
        Severity::Remark => "remark",
    };
    let TextProblem { line, column, key, what, .. } = problem;
    json!({ "line": line, "column": column, "key": key, "what": what, "severity": severity })
}

fn headline(path: &Path, problems: &[TextProblem]) -> String {
    let count = |severity| problems.iter().filter(|problem| problem.severity == severity).count();
    let counts: Vec<String> = [(count(Severity::Error), "problem"), (count(Severity::Remark), "remark")]
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, word)| counted(n as u64, word))
        .collect();
    let counts = if counts.is_empty() { "nothing wrong".into() } else { counts.join(", ") };
    format!("{}: {counts}", path.display())
}

/// The line of the text with a mark below it:
/// ```text
///   12 | micro_batches_per_step = 3
///      |                          ^ must be a multiple of 2
/// ```
fn excerpt(source: &str, problem: &TextProblem) -> String {
    let line = source.lines().nth(problem.line.saturating_sub(1)).unwrap_or("").trim_end();
    let number = format!("{:>4}", problem.line);
    let gap = " ".repeat(problem.column.saturating_sub(1));
    // A tab is as wide below as it is above.
    let gap: String = gap
        .chars()
        .zip(line.chars().chain(std::iter::repeat(' ')))
        .map(|(_, c)| if c == '\t' { c } else { ' ' })
        .collect();
    let code = if problem.key.is_empty() { "SK146 " } else { "" };
    let key = if problem.key.is_empty() { String::new() } else { format!("{} ", problem.key) };
    let remark = if problem.severity == Severity::Remark { "remark: " } else { "" };
    format!("{number} | {line}\n     | {gap}^ {remark}{code}{key}{}", problem.what)
}

/// What a run costs those who take part.
fn costs(manifest: &Manifest) -> Vec<String> {
    let stages = 0..manifest.stages.count;
    let parameters: u64 = stages.clone().map(|stage| cost::stage_parameters(manifest, stage)).sum();
    let mut lines = vec![format!(
        "{} parameters in {}; a step has {} tokens",
        About(parameters as f64),
        counted(manifest.stages.count.into(), "stage"),
        About((manifest.samples_per_step() * u64::from(manifest.train.sequence)) as f64)
    )];
    // Stages that cost the same stand in one line.
    let cost_of = |stage| (cost::stage_parameters(manifest, stage), cost::memory(manifest, stage));
    let all: Vec<u16> = stages.clone().collect();
    for alike in all.chunk_by(|a, b| cost_of(*a) == cost_of(*b)) {
        let (first, last) = (alike[0], alike[alike.len() - 1]);
        let (parameters, memory) = cost_of(first);
        let (top, (bottom, count)) = (manifest.layers_of(first).0, manifest.layers_of(last));
        lines.push(format!(
            "{}  {}  {} parameters{}, {} of memory ({} at times)",
            span("stage", first.into(), last.into()),
            span("layer", top, (bottom + count).saturating_sub(1)),
            About(parameters as f64),
            if first == last { "" } else { " each" },
            Bytes(memory.steady()),
            Bytes(memory.peak())
        ));
    }
    let smallest = stages.map(|stage| cost::memory(manifest, stage).peak()).min().unwrap_or(0);
    lines.push(format!("smallest useful peer: {} of memory", Bytes(smallest)));
    lines.push(format!(
        "a micro-batch sends {} over each hop and back, as f32; its codecs make that less",
        Traffic(2 * hop_bytes(manifest))
    ));
    lines
}

/// `stage 0`, `stages 1-4`
fn span(word: &str, first: u32, last: u32) -> String {
    if first >= last { format!("{word} {first}") } else { format!("{word}s {first}-{last}") }
}

/// One activation of a micro-batch as f32.
fn hop_bytes(manifest: &Manifest) -> u64 {
    manifest.tokens_per_micro_batch() * u64::from(manifest.model.config.hidden) * 4
}

fn cost_document(manifest: &Manifest) -> serde_json::Value {
    let stages: Vec<_> = (0..manifest.stages.count)
        .map(|stage| {
            let (memory, (first_layer, layers)) = (cost::memory(manifest, stage), manifest.layers_of(stage));
            json!({
                "stage": stage,
                "first_layer": first_layer,
                "layers": layers,
                "parameters": cost::stage_parameters(manifest, stage),
                "memory_bytes": memory.steady(),
                "memory_bytes_max": memory.peak(),
            })
        })
        .collect();
    json!({ "stages": stages, "activation_bytes": hop_bytes(manifest) })
}

/// What `run show` found.
struct Shown {
    id: Option<RunId>,
    manifest: Manifest,
    /// Who signed it.
    by: Option<PeerId>,
}

fn show(what: Option<&str>, context: &Context) -> Result<u8, Report> {
    let shown = match what {
        None => {
            let last = context.home.runs().last().ok_or_else(|| unknown_run(context, "of last time"))?;
            of_folder(&last, context)?
        }
        Some(word) if word.trim_start().to_lowercase().starts_with("skein1") => return of_invite(word, context),
        Some(path) if path.contains(['/', '\\']) || path.ends_with(".toml") => of_file(Path::new(path))?,
        Some(name) => {
            let folder = context.home.runs().named(name).ok_or_else(|| unknown_run(context, name))?;
            of_folder(&folder, context)?
        }
    };
    print(&shown, &context.out);
    Ok(0)
}

fn print(shown: &Shown, out: &Out) {
    let Shown { id, manifest, by } = shown;
    if out.style().json {
        out.document("run show", &json!({ "run": id, "signed_by": by, "manifest": manifest }));
        return;
    }
    let id = id.map_or("no identity yet: its owner is who starts it".to_string(), |id| id.to_string());
    let signed = by.map_or("not signed".to_string(), |by| format!("signed by {}", Peer(by)));
    let mut head = vec![format!("{}  {id}", manifest.run.name), signed];
    head.extend(costs(manifest));
    let head: Vec<String> = head.iter().map(|line| format!("# {line}")).collect();
    out.print(&format!("{}\n\n{}", head.join("\n"), text::write(manifest).trim_end()));
}

fn of_folder(folder: &RunFolder, context: &Context) -> Result<Shown, Report> {
    let bytes = folder.manifest()?.ok_or_else(|| unknown_run(context, &folder.name))?;
    let manifest = signed::open(&bytes, folder.run).map_err(|error| {
        let path = folder.path.join("manifest").display().to_string();
        Report { failure: Box::new(Failure::Damaged { path, why: error.to_string() }), cause: Some(Box::new(error)) }
    })?;
    Ok(Shown { id: Some(folder.run), by: Some(manifest.run.owner), manifest })
}

fn of_file(path: &Path) -> Result<Shown, Report> {
    let source = read(path)?;
    let Parsed { manifest, signature, .. } =
        text::parse(&source, None).map_err(|problems| not_valid(path, &problems))?;
    if let Some(signature) = signature
        && !signed::holds(&manifest, signature.peer, signature.signature)
    {
        let by = Peer(signature.peer).to_string();
        return Err(Failure::BadSignature { path: path.display().to_string(), by }.into());
    }
    let owned = manifest.run.owner != PeerId::default();
    Ok(Shown { id: owned.then(|| signed::id(&manifest)), by: signature.map(|signature| signature.peer), manifest })
}

/// An invite holds the hash only; the manifest is shown where this home knows it.
fn of_invite(word: &str, context: &Context) -> Result<u8, Report> {
    let invite = invite::read(word)?;
    match context.home.runs().list().into_iter().find(|folder| folder.run == invite.run) {
        Some(folder) => print(&of_folder(&folder, context)?, &context.out),
        None => {
            let code = invite::show(&invite, context);
            context.out.note("its manifest is not known here: skein join fetches and checks it");
            return Ok(code);
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_protocol::run::PRESETS;

    fn args(name: &str, preset: &str) -> args::RunNew {
        args::RunNew { name: Some(name.into()), preset: preset.into(), out: None, force: false }
    }

    #[test]
    fn a_new_manifest_is_clean_and_has_its_name() {
        for preset in PRESETS {
            let (manifest, text) = new_manifest(&args("my-run", preset)).unwrap();
            assert_eq!(text::parse(&text, None).unwrap().manifest, manifest);
            assert_eq!(manifest.run.name, "my-run");
        }
        assert_eq!(new_manifest(&args("my-run", "tinny")).unwrap_err().failure.code(), "SK145");
        assert_eq!(new_manifest(&args("My Run!", "tiny")).unwrap_err().failure.code(), "SK100");
    }

    #[test]
    fn a_problem_points_at_its_place() {
        let problem = TextProblem {
            line: 2,
            column: 7,
            key: "train.sequence".into(),
            what: "cannot be 1".into(),
            severity: Severity::Error,
        };
        let shown = excerpt("[a]\n\tseq = 1\n", &problem);
        assert_eq!(shown, "   2 | \tseq = 1\n     | \t     ^ train.sequence cannot be 1");
        assert_eq!(headline(Path::new("my.toml"), &[problem]), "my.toml: 1 problem");
        assert_eq!(headline(Path::new("my.toml"), &[]), "my.toml: nothing wrong");
    }

    #[test]
    fn costs_name_every_stage() {
        let manifest = preset("tiny").unwrap();
        assert_eq!(manifest.stages.split, [2, 2, 2, 2]);
        let lines: Vec<String> = costs(&manifest).into_iter().filter(|line| line.starts_with("stage")).collect();
        assert!(lines[0].starts_with("stage 0  layers 0-1  "), "{lines:?}");
        assert!(lines[1].starts_with("stages 1-2  layers 2-5  ") && lines[1].contains(" each, "), "{lines:?}");
        assert!(lines[2].starts_with("stage 3  layers 6-7  ") && lines.len() == 3, "{lines:?}");
    }
}
