//! Everything that a person or a program reads from us. stdout is the result, stderr the story.
//!
//! In: sentences, tables, documents, events. Out: text for a terminal (marks, colour, bars), lines with a time for a log, tab-
//! separated tables for a pipe, JSON for `--json`. Nothing else in this crate writes to either stream.

use std::{
    env,
    io::{self, IsTerminal, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use indicatif::MultiProgress;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use skein_protocol::event::Record;

use super::{
    failure::{Failure, Level, Report},
    table::Table,
};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Colour {
    #[default]
    Auto,
    Always,
    Never,
}

/// What stands before a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    Done,
    Warning,
    Failure,
    Note,
}

/// How this process speaks. Cheap to clone.
#[derive(Clone)]
pub struct Out(Arc<Inner>);

struct Inner {
    style: Style,
    seq: AtomicU64,
    bars: MultiProgress,
    sinks: Mutex<Sinks>,
    /// Why part of the result was not written.
    failed: Mutex<Option<io::Error>>,
}

/// What was asked for, and what the streams are.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    pub json: bool,
    pub quiet: bool,
    /// stderr is a terminal that can move its cursor.
    pub terminal: bool,
    /// Bars and spinners are wanted.
    pub progress: bool,
    /// stdout goes into a file or another program.
    pub piped: bool,
    pub colour_stdout: bool,
    pub colour_stderr: bool,
    pub unicode: bool,
    /// Columns of the terminal.
    pub width: usize,
}

struct Sinks {
    stdout: Box<dyn Write + Send>,
    stderr: Box<dyn Write + Send>,
}

impl Style {
    /// Looks at the streams and the environment of this process.
    pub fn look(json: bool, quiet: bool, colour: Colour, no_progress: bool) -> Style {
        let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        let coloured = |terminal: bool| match colour {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto if set("NO_COLOR") => false,
            Colour::Auto => {
                env::var_os("CLICOLOR_FORCE").is_some_and(|value| !value.is_empty() && value != "0")
                    || (terminal && !dumb)
            }
        };
        let (stdout, stderr) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        let width = terminal_size::terminal_size().map_or(100, |(width, _)| usize::from(width.0));
        Style {
            json,
            quiet,
            terminal: stderr && !dumb,
            progress: stderr && !dumb && !no_progress && !quiet,
            piped: !stdout,
            colour_stdout: coloured(stdout),
            colour_stderr: coloured(stderr),
            unicode: speaks_unicode(|name| env::var(name).ok()),
            width,
        }
    }
}

/// Windows consoles do; elsewhere the locale says.
fn speaks_unicode(variable: impl Fn(&str) -> Option<String>) -> bool {
    if cfg!(windows) {
        return true;
    }
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(variable).find(|value| !value.is_empty());
    locale.is_some_and(|locale| {
        let locale = locale.to_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

impl Out {
    pub fn new(style: Style) -> Out {
        Out::into(style, Box::new(io::stdout()), Box::new(io::stderr()))
    }

    fn into(style: Style, stdout: Box<dyn Write + Send>, stderr: Box<dyn Write + Send>) -> Out {
        let sinks = Mutex::new(Sinks { stdout, stderr });
        Out(Arc::new(Inner {
            style,
            seq: AtomicU64::new(0),
            bars: MultiProgress::new(),
            sinks,
            failed: Mutex::default(),
        }))
    }

    pub fn style(&self) -> Style {
        self.0.style
    }

    pub(super) fn bars(&self) -> &MultiProgress {
        &self.0.bars
    }

    /// Something is done.
    pub fn done(&self, sentence: &str) {
        self.say(Mark::Done, sentence, &[]);
    }

    /// Something is worth knowing.
    pub fn note(&self, sentence: &str) {
        self.say(Mark::Note, sentence, &[]);
    }

    /// Something should not stay as it is.
    pub fn warn(&self, sentence: &str) {
        self.say(Mark::Warning, sentence, &[]);
    }

    /// One line of the story. `fields` are for logs: on a terminal the sentence says it all.
    pub fn say(&self, mark: Mark, sentence: &str, fields: &[(&str, &dyn std::fmt::Display)]) {
        let style = self.0.style;
        if style.quiet && matches!(mark, Mark::Done | Mark::Note) {
            return;
        }
        if style.terminal {
            return self.tell(&format!("{} {sentence}", self.mark(mark)));
        }
        let level = match mark {
            Mark::Done | Mark::Note => "info",
            Mark::Warning => "warn",
            Mark::Failure => "error",
        };
        let mut line = format!("{:.0} {level} {sentence}", Timestamp::now());
        for (name, value) in fields {
            line.push_str(&format!(" {name}={value}"));
        }
        self.tell(&line);
    }

    /// Lines of the story without a mark, such as a picture of a run. Only for a terminal; a log has [`Out::say`].
    pub fn plain(&self, lines: &str) {
        if self.0.style.terminal && !self.0.style.quiet {
            self.tell(lines);
        }
    }

    /// Lines that somebody asked for, on a terminal or not, beside the result.
    pub fn plain_anyway(&self, lines: &str) {
        self.tell(lines);
    }

    /// How a command ended, if not well: in four parts on stderr and, with `--json`, as one object on stdout.
    pub fn report(&self, report: &Report, verbose: bool) {
        let style = self.0.style;
        let failure = &report.failure;
        if style.json {
            self.print(&json!({ "error": failure.document() }).to_string());
        }
        if style.json && style.quiet {
            return;
        }
        let mark = match failure.text().level {
            Level::Failure => Mark::Failure,
            Level::Warning => Mark::Warning,
        };
        self.four_parts(mark, failure, report.cause.as_ref().filter(|_| verbose).map(|cause| cause.to_string()));
    }

    /// What does not end the process but should be known, with its code: in four parts on a terminal, as one line in a log.
    pub fn trouble(&self, failure: &Failure) {
        if self.0.style.terminal {
            return self.four_parts(Mark::Warning, failure, None);
        }
        let why: Vec<String> = failure.why().lines().map(str::to_string).collect();
        self.say(Mark::Warning, &format!("{} {}", failure.what(), why.join("; ")), &[("code", &failure.code())]);
    }

    fn four_parts(&self, mark: Mark, failure: &Failure, cause: Option<String>) {
        let mut text = format!("{} {}\n{}", self.mark(mark), failure.what(), failure.details());
        if let Some(cause) = cause {
            text.push_str(&format!("  from  {cause}\n"));
        }
        if !self.0.style.unicode {
            text = text.replace('·', "-").replace('…', "...");
        }
        self.tell(text.trim_end());
    }

    /// The result, as text.
    pub fn print(&self, text: &str) {
        self.put(&format!("{text}\n"));
    }

    fn put(&self, text: &str) {
        let mut sinks = self.sinks();
        let written = sinks.stdout.write_all(text.as_bytes()).and_then(|()| sinks.stdout.flush());
        // A reader that has seen enough (`head`) is no failure.
        if let Err(error) = written
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            self.0.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    }

    /// Why the result is not whole, if it is not.
    pub(super) fn stdout_error(&self) -> Option<Report> {
        let error = self.0.failed.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(Failure::ResultLost { error: error.to_string() }.into())
    }

    /// A piece of the result, without a line end, seen at once.
    pub fn print_piece(&self, text: &str) {
        self.put(text);
    }

    /// The result, as a table: aligned on a terminal, tab-separated in a pipe.
    pub fn table(&self, table: &Table) {
        let style = self.0.style;
        let text = if style.piped { table.tab_separated() } else { table.aligned(style.width, style.colour_stdout) };
        self.print(text.trim_end_matches('\n'));
    }

    /// The result of a one-shot command in `--json`: one document.
    pub fn document<T: Serialize>(&self, command: &str, value: &T) {
        let mut document = json!({ "skein": env!("CARGO_PKG_VERSION"), "schema": 1, "command": command });
        match serde_json::to_value(value).expect("results are plain data") {
            Value::Object(fields) => document.as_object_mut().expect("made above").extend(fields),
            other => document["result"] = other,
        }
        self.print(&document.to_string());
    }

    /// One line of a long command in `--json`. `value` is an object.
    pub fn event<T: Serialize>(&self, kind: &str, value: &T) {
        let seq = self.0.seq.fetch_add(1, Ordering::Relaxed);
        let mut line = json!({ "t": format!("{:.3}", Timestamp::now()), "seq": seq, "type": kind });
        if let Value::Object(fields) = serde_json::to_value(value).expect("events are plain data") {
            line.as_object_mut().expect("made above").extend(fields);
        }
        self.print(&line.to_string());
    }

    /// One event of the machines, as a line of `--json`: the time and the sequence number are the peer's.
    pub fn record(&self, record: &Record) {
        let mut line = serde_json::to_value(record).expect("events are plain data");
        let millis = i64::try_from(record.utc).unwrap_or(i64::MAX);
        if let (Ok(time), Some(fields)) = (Timestamp::from_millisecond(millis), line.as_object_mut()) {
            fields.remove("utc");
            fields.insert("t".into(), format!("{time:.3}").into());
        }
        self.print(&line.to_string());
    }

    fn mark(&self, mark: Mark) -> String {
        let Style { unicode, colour_stderr, .. } = self.0.style;
        let (sign, plain, colour) = match mark {
            Mark::Done => ("✓", "ok", "32"),
            Mark::Warning => ("!", "!", "33"),
            Mark::Failure => ("✗", "x", "31"),
            Mark::Note => ("·", "-", "2"),
        };
        let sign = if unicode { sign } else { plain };
        if colour_stderr { format!("\x1b[{colour}m{sign}\x1b[0m") } else { sign.into() }
    }

    /// One or more lines to stderr, above the bars if there are any.
    pub(super) fn tell(&self, lines: &str) {
        self.0.bars.suspend(|| {
            let mut sinks = self.sinks();
            let _ = writeln!(sinks.stderr, "{lines}");
        });
    }

    fn sinks(&self) -> std::sync::MutexGuard<'_, Sinks> {
        self.0.sinks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cli::failure::Failure;

    /// A stream that can be read afterwards.
    #[derive(Clone, Default)]
    pub struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Paper {
        pub fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    pub const TERMINAL: Style = Style {
        json: false,
        quiet: false,
        terminal: true,
        progress: false,
        piped: false,
        colour_stdout: false,
        colour_stderr: false,
        unicode: true,
        width: 80,
    };

    pub fn on_paper(style: Style) -> (Out, Paper, Paper) {
        let (stdout, stderr) = (Paper::default(), Paper::default());
        (Out::into(style, Box::new(stdout.clone()), Box::new(stderr.clone())), stdout, stderr)
    }

    fn taken() -> Report {
        Failure::PortTaken { port: 5000, origin: "flag --port".into(), command: "join".into(), free: 5001 }.into()
    }

    #[test]
    fn a_failure_has_four_parts() {
        let (out, stdout, stderr) = on_paper(TERMINAL);
        out.report(&taken(), false);
        assert_eq!(stdout.text(), "");
        assert_eq!(
            stderr.text(),
            "✗ Port 5000 is already in use.\n  \
               why   You asked for this port (flag --port), and another program listens on it.\n  \
               next  skein status             see whether it is your own peer\n        \
                     skein join --port 5001   use another port\n  \
               code  SK101 · skein explain SK101\n"
        );
    }

    #[test]
    fn without_unicode_there_is_ascii() {
        let (out, _, stderr) = on_paper(Style { unicode: false, ..TERMINAL });
        for failure in Failure::examples() {
            out.report(&failure.into(), false);
        }
        out.done("a");
        out.note("b");
        assert!(stderr.text().is_ascii(), "{}", stderr.text());
        assert!(stderr.text().ends_with("ok a\n- b\n"));
    }

    #[test]
    fn in_json_a_failure_is_an_object_on_stdout() {
        let (out, stdout, stderr) = on_paper(Style { json: true, quiet: true, ..TERMINAL });
        out.report(&taken(), false);
        let value: Value = serde_json::from_str(&stdout.text()).unwrap();
        assert_eq!((&value["error"]["code"], &value["error"]["exit"]), (&json!("SK101"), &json!(4)));
        assert_eq!(stderr.text(), "");
    }

    #[test]
    fn a_log_has_times_and_fields_and_no_escapes() {
        let (out, _, stderr) = on_paper(Style { terminal: false, colour_stderr: false, ..TERMINAL });
        out.say(Mark::Done, "serving", &[("stage", &2), ("run", &"tiny-verse")]);
        let text = stderr.text();
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(time.parse::<Timestamp>().is_ok() && time.len() == "2026-11-23T18:02:11Z".len(), "{time}");
        assert_eq!(rest, "info serving stage=2 run=tiny-verse\n");
        out.plain("a picture");
        assert_eq!(stderr.text(), text);
    }

    #[test]
    fn trouble_has_its_code_on_a_terminal_and_in_a_log() {
        let empty = Failure::StageEmpty {
            stages: "Stage 4 has".into(),
            run: "tiny".into(),
            flags: "--stage 4".into(),
            ago: crate::cli::show::Span::from(12_000u64),
        };
        let (out, stdout, stderr) = on_paper(TERMINAL);
        out.trouble(&empty);
        assert!(stderr.text().starts_with("! Stage 4 has no replica.\n  why   Nobody has been there for 12 s;"));
        assert!(stderr.text().ends_with("\n  code  SK503 · skein explain SK503\n"), "{}", stderr.text());
        let (out, _, stderr) = on_paper(Style { terminal: false, json: true, ..TERMINAL });
        out.trouble(&empty);
        let text = stderr.text();
        assert_eq!(text.lines().count(), 1, "{text}");
        let (_, rest) = text.split_once(' ').unwrap();
        assert_eq!(rest, "warn Stage 4 has no replica. Nobody has been there for 12 s; training waits. code=SK503\n");
        assert_eq!(stdout.text(), "", "the lines of --json are events");
    }

    #[test]
    fn quiet_keeps_warnings() {
        let (out, _, stderr) = on_paper(Style { quiet: true, ..TERMINAL });
        out.done("a");
        out.note("b");
        out.warn("c");
        assert_eq!(stderr.text(), "! c\n");
    }

    #[test]
    fn documents_and_events_name_themselves() {
        let (out, stdout, _) = on_paper(Style { json: true, ..TERMINAL });
        out.document("status", &json!({ "step": 7 }));
        out.event("Step", &json!({ "loss": 1.5 }));
        let lines: Vec<Value> = stdout.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            (&lines[0]["command"], &lines[0]["schema"], &lines[0]["step"]),
            (&json!("status"), &json!(1), &json!(7))
        );
        assert_eq!((&lines[1]["type"], &lines[1]["seq"], &lines[1]["loss"]), (&json!("Step"), &json!(0), &json!(1.5)));
    }

    #[test]
    fn the_locale_decides_about_marks() {
        let locale = |pairs: &'static [(&str, &str)]| {
            speaks_unicode(|name| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string()))
        };
        if !cfg!(windows) {
            assert!(locale(&[("LANG", "en_US.UTF-8")]));
            assert!(locale(&[("LC_ALL", ""), ("LC_CTYPE", "C.utf8")]));
            assert!(!locale(&[("LC_ALL", "C"), ("LANG", "en_US.UTF-8")]));
            assert!(!locale(&[]));
        }
    }
}
