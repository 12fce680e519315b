//! Logs for developers: to stderr, to a file if one is named, and the last lines into memory for a report after a panic.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use tracing::{Level as Severity, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::Targets,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use super::{failure::Failure, failure::Report, out::Out};
use crate::config::{Level, Log, LogFormat};

/// Lines kept for a report.
const RING: usize = 200;
/// Our crates. What the libraries beneath say is for developers: with -v their warnings, too.
const OURS: [&str; 5] = ["skein", "skein_protocol", "skein_gossip", "skein_pipeline", "skein_simulations"];

static LAST: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// The last lines, oldest first.
pub fn last_lines() -> Vec<String> {
    LAST.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

/// Starts logging as the configuration says; `SKEIN_LOG` overrides its level by a filter. Once a process.
///
/// # Errors
/// The log file cannot be written, or the filter is no filter.
pub fn start(log: &Log, out: &Out) -> Result<(), Report> {
    let terminal = match std::env::var("SKEIN_LOG") {
        Ok(filter) if !filter.is_empty() => {
            let filter = EnvFilter::try_new(&filter)
                .map_err(|error| Failure::Usage { message: format!("SKEIN_LOG={filter}: {error}") })?;
            story(log.format, out).with_filter(filter).boxed()
        }
        _ => story(log.format, out).with_filter(filter(severity(log.level))).boxed(),
    };
    let mut layers = vec![terminal];
    layers.push(fmt::layer().with_ansi(false).with_writer(Ring).with_filter(filter(Severity::DEBUG)).boxed());
    if !log.file.is_empty() {
        layers.push(file(Path::new(&log.file), log.format)?.with_filter(filter(Severity::DEBUG)).boxed());
    }
    // A second start in one process (as tests do) keeps the first.
    let _ = tracing_subscriber::registry().with(layers).try_init();
    Ok(())
}

fn story(format: LogFormat, out: &Out) -> Box<dyn Layer<Registry> + Send + Sync> {
    let layer = fmt::layer().with_ansi(out.style().colour_stderr).with_writer(ToOut(out.clone()));
    match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().boxed(),
    }
}

fn file(path: &Path, format: LogFormat) -> Result<Box<dyn Layer<Registry> + Send + Sync>, Report> {
    let open = || File::options().create(true).append(true).open(path);
    let file = open().map_err(|source| crate::home::HomeError::Denied { path: path.into(), source })?;
    let layer = fmt::layer().with_ansi(false).with_writer(Arc::new(file));
    Ok(match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().boxed(),
    })
}

fn filter(severity: Severity) -> Targets {
    let others = if severity >= Severity::DEBUG { LevelFilter::WARN } else { LevelFilter::OFF };
    OURS.iter().fold(Targets::new().with_default(others), |targets, name| targets.with_target(*name, severity))
}

fn severity(level: Level) -> Severity {
    match level {
        Level::Error => Severity::ERROR,
        Level::Warn => Severity::WARN,
        Level::Info => Severity::INFO,
        Level::Debug => Severity::DEBUG,
        Level::Trace => Severity::TRACE,
    }
}

/// A writer that respects bars.
struct ToOut(Out);

impl<'a> MakeWriter<'a> for ToOut {
    type Writer = Line<'a>;
    fn make_writer(&'a self) -> Line<'a> {
        Line { to: Some(&self.0), text: Vec::new() }
    }
}

struct Ring;

impl<'a> MakeWriter<'a> for Ring {
    type Writer = Line<'a>;
    fn make_writer(&'a self) -> Line<'a> {
        Line { to: None, text: Vec::new() }
    }
}

/// Collects one line, and hands it over whole.
struct Line<'a> {
    to: Option<&'a Out>,
    text: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if self.text.is_empty() {
            return;
        }
        let text = String::from_utf8_lossy(&self.text);
        let line = text.trim_end();
        match self.to {
            Some(out) => out.tell(line),
            None => {
                let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
                if last.len() == RING {
                    last.pop_front();
                }
                last.push_back(line.to_string());
            }
        }
    }
}
