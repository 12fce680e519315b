//! `skein chat`: a conversation in the terminal, or with whoever writes into a pipe: a line is what is said once. The answers go to
//! stdout as they come, everything else to stderr.

use std::{
    fs::File,
    io::{self, BufRead, IsTerminal, Write},
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::sync::mpsc;

use super::ask;
use crate::{
    cli::{
        args,
        context::Context,
        failure::{Failure, Report},
        out::Out,
        show::{Span, counted, tokens_per_s},
    },
    talk::{Ask, End, Model, Said, Sampling, Template, Trouble, Why},
    text::Message,
};

const HELP: &str = "  /reset             begin anew
  /system TEXT       tell the model something before everything else; nothing: no more
  /seed N            of the choices from here on
  /regenerate        another answer to what you said last
  /save FILE         the conversation, as a line that `messages` of a data set can be
  /stats             how fast the last answer was
  /bye               leave, as Ctrl-D does; Ctrl-C stops an answer";

pub fn run(args: &args::Chat, context: &Context) -> Result<u8, Report> {
    let sampling = ask::sampling(&args.choice)?;
    let mut model = ask::model(&args.model, None, 1, context)?;
    let out = context.out.clone();
    if model.template.is_none() {
        out.note("this model has no chat template: it reads `User: …` and `Assistant: …`");
        model.template = Some(Template::Plain);
    }
    if ask::folder(&args.model).is_none() {
        out.note("the peers that serve the first and the last stage can read this: skein explain privacy");
    }
    let typed = io::stdin().is_terminal();
    let system = args.system.clone();
    let talk = Talk {
        model,
        out,
        sampling,
        tokens_max: args.max_tokens,
        stats: args.stats,
        prompts: typed && !context.out.style().piped && !context.out.style().json,
        typed,
        system,
        messages: Vec::new(),
        full: false,
        last: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Other { message: error.to_string() })?;
    let done = runtime.block_on(talk.run());
    runtime.shutdown_background();
    done
}

struct Talk {
    model: Model,
    out: Out,
    /// The seed counts up, so that each answer has its own.
    sampling: Sampling,
    tokens_max: u32,
    stats: bool,
    /// A sign invites to type.
    prompts: bool,
    /// By a person rather than a program.
    typed: bool,
    system: Option<String>,
    messages: Vec<Message>,
    /// The model can read no more: the oldest is left out next time.
    full: bool,
    last: Option<Speed>,
}

struct Speed {
    end: End,
    first: Duration,
    whole: Duration,
}

/// What follows a line.
enum Next {
    Go,
    Leave(u8),
}

impl Talk {
    async fn run(mut self) -> Result<u8, Report> {
        let mut lines = lines();
        if self.typed {
            self.out.note("/help says what there is; Ctrl-D leaves");
        }
        loop {
            if self.prompts {
                self.out.print_piece("> ");
            }
            let line = tokio::select! {
                line = lines.recv() => line,
                _ = tokio::signal::ctrl_c() => {
                    if !self.typed {
                        return Ok(130);
                    }
                    self.out.print("");
                    self.out.note("Ctrl-D or /bye leaves");
                    continue;
                }
            };
            let Some(line) = line else { break };
            let line = line.map_err(|error| {
                Report::from(Failure::DataUnreadable { path: "stdin".into(), error: error.to_string() })
            })?;
            match self.take(line.trim_end_matches(['\r', '\n'])).await? {
                Next::Go => {}
                Next::Leave(exit) => return Ok(exit),
            }
        }
        if self.prompts {
            self.out.print("");
        }
        Ok(0)
    }

    async fn take(&mut self, line: &str) -> Result<Next, Report> {
        if line.trim().is_empty() {
            return Ok(Next::Go);
        }
        let Some(command) = line.strip_prefix('/') else {
            self.messages.push(Message::new("user", line));
            return self.answer().await;
        };
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        match name {
            "help" => self.out.plain_anyway(HELP),
            "reset" => {
                self.messages.clear();
                self.full = false;
                self.out.note("a new conversation");
            }
            "system" => self.system = Some(rest.to_string()).filter(|text| !text.is_empty()),
            "seed" => match rest.parse() {
                Ok(seed) => self.sampling.seed = seed,
                Err(_) => self.out.warn(&format!("/seed takes a whole number; it is {} now", self.sampling.seed)),
            },
            "regenerate" => {
                if self.messages.last().is_some_and(Message::is_assistant) {
                    self.messages.pop();
                }
                match self.messages.is_empty() {
                    true => self.out.warn("nothing was said yet"),
                    false => return self.answer().await,
                }
            }
            "save" => self.save(rest),
            "stats" => match &self.last {
                Some(speed) => self.out.note(&speed.words(self.sampling.seed.wrapping_sub(1))),
                None => self.out.warn("nothing was answered yet"),
            },
            "bye" => return Ok(Next::Leave(0)),
            _ => self.out.warn(&format!("/{name} is nothing that is known here: /help lists what is")),
        }
        Ok(Next::Go)
    }

    /// The model's answer to what there is.
    async fn answer(&mut self) -> Result<Next, Report> {
        let since = Instant::now();
        let mut said = loop {
            if std::mem::take(&mut self.full) && !self.forget() {
                self.out.warn("the model can read no more: /reset begins anew");
            }
            match self.ask() {
                Ok(said) => break said,
                Err(Trouble::TooLong { .. }) if self.messages.len() > 1 => self.full = true,
                Err(trouble) => return self.refused(&trouble),
            }
        };
        let json = self.out.style().json;
        let (mut text, mut first) = (String::new(), None);
        let ended = loop {
            let heard = tokio::select! {
                heard = said.recv() => heard,
                _ = tokio::signal::ctrl_c() => {
                    if !self.typed {
                        return Ok(Next::Leave(130));
                    }
                    break None;
                }
            };
            match heard {
                Some(Said::Piece(piece)) => {
                    first.get_or_insert_with(|| since.elapsed());
                    // The plain way of writing leaves a space behind the colon.
                    let shown = if text.is_empty() { piece.text.trim_start() } else { &piece.text };
                    if !json {
                        self.out.print_piece(shown);
                    }
                    text.push_str(shown);
                }
                Some(Said::End(end)) => break Some(end),
                Some(Said::Failed(trouble)) => {
                    if !json {
                        self.out.print("");
                    }
                    return self.refused(&trouble);
                }
                None => return self.refused(&Trouble::Closed),
            }
        };
        if !json {
            self.out.print("");
        }
        self.sampling.seed = self.sampling.seed.wrapping_add(1);
        self.full = ended.is_some_and(|end| end.why == Why::Context);
        if json {
            let why = ended.map_or("stopped", |end| reason(end.why));
            let tokens = ended.map(|end| end.tokens);
            self.out.event("Answer", &json!({ "text": text, "ended": why, "tokens": tokens }));
        }
        match ended {
            None => self.out.note("stopped"),
            Some(end) if end.why == Why::Length => self.out.note("it was cut off: --max-tokens allows more"),
            Some(_) => {}
        }
        self.messages.push(Message::new("assistant", text));
        let whole = since.elapsed();
        self.last = ended.map(|end| Speed { end, first: first.unwrap_or(whole), whole });
        if let Some(speed) = self.last.as_ref().filter(|_| self.stats) {
            self.out.note(&speed.words(self.sampling.seed.wrapping_sub(1)));
        }
        Ok(Next::Go)
    }

    fn ask(&self) -> Result<mpsc::UnboundedReceiver<Said>, Trouble> {
        let system = self.system.iter().map(|text| Message::new("system", text.as_str()));
        let messages: Vec<Message> = system.chain(self.messages.iter().cloned()).collect();
        let (prompt, stops) = self.model.chat(&messages)?;
        self.model.ask(Ask { tokens_max: Some(self.tokens_max), stops, ..Ask::new(prompt, self.sampling) })
    }

    /// Leaves out the oldest question and its answer.
    fn forget(&mut self) -> bool {
        let asked = |message: &Message| message.role == "user";
        let Some(second) = self.messages.iter().skip(1).position(asked) else { return false };
        self.messages.drain(..=second);
        self.out.note("the model can read no more: the oldest of this conversation was left out");
        true
    }

    /// A person may try something else; a program gets a failure.
    fn refused(&mut self, trouble: &Trouble) -> Result<Next, Report> {
        if !self.typed {
            return Err(Failure::NotPossible { why: trouble.to_string() }.into());
        }
        self.messages.pop();
        self.out.warn(&trouble.to_string());
        Ok(Next::Go)
    }

    fn save(&self, path: &str) {
        let system = self.system.iter().map(|text| Message::new("system", text.as_str()));
        let messages: Vec<Message> = system.chain(self.messages.iter().cloned()).collect();
        let line = json!({ "messages": messages });
        let written = match path {
            "" => return self.out.warn("/save takes a file"),
            path => File::create_new(path).and_then(|mut file| writeln!(file, "{line}")),
        };
        match written {
            Ok(()) => self.out.done(&format!("saved: {path}")),
            Err(error) => self.out.warn(&format!("{path} was not written: {error}")),
        }
    }
}

fn reason(why: Why) -> &'static str {
    match why {
        Why::Stop => "stop",
        Why::Length => "length",
        Why::Context => "context",
    }
}

impl Speed {
    fn words(&self, seed: u64) -> String {
        let millis = |time: Duration| Span::from(time.as_millis() as u64);
        let rate = self.end.tokens as f64 / self.whole.as_secs_f64().max(1e-3);
        format!(
            "{} after {} of the conversation, in {} ({}), the first after {}; seed {seed}",
            counted(self.end.tokens, "token"),
            self.end.prompt_tokens,
            millis(self.whole),
            tokens_per_s(rate),
            millis(self.first)
        )
    }
}

/// What comes through stdin. The thread ends with the process: nothing else can end a read of it.
fn lines() -> mpsc::Receiver<io::Result<String>> {
    let (say, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            let broken = line.is_err();
            if say.blocking_send(line).is_err() || broken {
                return;
            }
        }
    });
    lines
}
