//! The models of `skein bench` in PyTorch and what is built on it, for a measurement in the same minutes. In: a Python, sizes. Out: its tokens/s.

use std::{
    ffi::OsString,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use serde::{Deserialize, de::DeserializeOwned};
use skein_protocol::Manifest;

use super::other;
use crate::cli::failure::Report;

const STAGE: &str = include_str!("../../../../pipeline/benches/stage.py");
const GENERATE: &str = include_str!("../../../../pipeline/benches/generate.py");

/// The last line of the script.
#[derive(Clone, Debug, Deserialize)]
pub struct Torch {
    /// Its version.
    pub torch: String,
    pub params: u64,
    pub tokens_per_s: f64,
}

/// Trains the model for `steps` micro-batches.
///
/// # Errors
/// The Python cannot be started, has no torch, or the script fails: with its last words.
pub fn stage(
    python: &Path,
    manifest: &Manifest,
    threads: u16,
    steps: u32,
    text: Option<&Path>,
) -> Result<Torch, Report> {
    let (config, train) = (&manifest.model.config, &manifest.train);
    let sizes = [
        config.hidden,
        config.layers,
        config.heads,
        config.ffn,
        config.vocab,
        train.sequence,
        train.micro_batch,
        u32::from(threads),
        steps,
    ];
    let mut args: Vec<OsString> = vec!["-".into()];
    args.extend(sizes.map(|size| size.to_string().into()));
    args.extend(text.map(|file| file.as_os_str().to_owned()));
    args.push("--json".into());
    run(python, STAGE, &args)
}

/// What another library makes of the model of `skein bench generate`.
#[derive(Clone, Debug, Deserialize)]
pub struct Read {
    /// Versions.
    pub torch: String,
    pub params: u64,
    pub tokens_per_s: f64,
    pub prefill_tokens_per_s: f64,
    pub clients_tokens_per_s: f64,
}

/// The same model in `transformers`: `sizes` as the script takes them.
pub fn generate(python: &Path, manifest: &Manifest, sizes: [u32; 4]) -> Result<Read, Report> {
    run(python, GENERATE, &words("generate", manifest, sizes.map(|size| size.to_string())))
}

/// The same adapters in PEFT: threads, sequence, batch, rank, targets, steps.
pub fn finetune(python: &Path, manifest: &Manifest, sizes: [String; 6]) -> Result<Torch, Report> {
    run(python, GENERATE, &words("finetune", manifest, sizes))
}

fn words<const N: usize>(what: &str, manifest: &Manifest, sizes: [String; N]) -> Vec<OsString> {
    let config = &manifest.model.config;
    let shape = [config.hidden, config.layers, config.heads, config.ffn, config.vocab].map(|size| size.to_string());
    let all = ["-".to_string(), what.to_string()].into_iter().chain(shape).chain(sizes);
    all.map(OsString::from).collect()
}

/// Runs a script, whose last line is the answer.
///
/// # Errors
/// The Python cannot be started, lacks a library, or the script fails: with its last words.
fn run<T: DeserializeOwned>(python: &Path, script: &str, args: &[OsString]) -> Result<T, Report> {
    let said = |what: &dyn std::fmt::Display| other(format!("--torch {}: {what}", python.display()));
    let child =
        Command::new(python).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| said(&error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A Python that ended already says why below.
        let _ = stdin.write_all(script.as_bytes());
    }
    let ended = child.wait_with_output().map_err(|error| said(&error))?;
    let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    let last = |text: &str| text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().to_string();
    if !ended.status.success() {
        return Err(said(&last(&err)));
    }
    serde_json::from_str(&last(&out)).map_err(|_| said(&last(&out)))
}

#[cfg(test)]
mod tests {
    use skein_protocol::run::preset::preset;

    use super::*;
    use crate::cli::failure::Failure;

    #[test]
    fn a_program_that_is_no_python_with_torch_is_refused_with_its_name() {
        let manifest = preset("tiny").unwrap();
        let refused = |python: &str| match *stage(Path::new(python), &manifest, 1, 1, None).unwrap_err().failure {
            Failure::Other { message } => message,
            other => panic!("{other:?}"),
        };
        let missing = refused("no-such-python");
        assert!(missing.contains("--torch no-such-python"), "{missing}");
        if cfg!(unix) {
            let silent = refused("true");
            assert!(silent.contains("--torch true"), "{silent}");
        }
    }
}
