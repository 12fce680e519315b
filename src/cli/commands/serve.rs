//! `skein serve`: a model as an OpenAI-compatible API of this machine, until Ctrl-C.

use std::{fs, net::TcpListener, time::Duration};

use serde_json::json;

use super::ask;
use crate::{
    cli::{
        args::{self, TemplateStyle},
        context::Context,
        failure::{Failure, Report},
        out::{Mark, Out},
        signals::Signals,
    },
    serve::Server,
    talk::{Model, Template},
};

/// Answers that are not finished so long after Ctrl-C are broken off.
const FINISH: Duration = Duration::from_secs(30);

pub fn run(args: &args::ServeArgs, context: &Context) -> Result<u8, Report> {
    let key = args.api_key.as_deref().map(key).transpose()?;
    if key.is_none() && !args.listen.ip().is_loopback() {
        return Err(Failure::OpenToAll { address: args.listen.to_string(), model: args.model.clone() }.into());
    }
    let unheard = |error: std::io::Error| -> Report {
        let (address, model) = (args.listen.to_string(), args.model.clone());
        Failure::ApiAddress { address, error: error.to_string(), model }.into()
    };
    // Before the model is read, which may take a while.
    let listener = TcpListener::bind(args.listen).map_err(unheard)?;
    let mut model = ask::model(&args.model, args.name.clone(), args.max_concurrent.into(), context)?;
    if model.template.is_none() && args.template == Some(TemplateStyle::Plain) {
        model.template = Some(Template::Plain);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(unheard)?;
    let done = runtime.block_on(async {
        let mut signals = Signals::listen();
        let (begun, has_key) = (Begun::of(&model), key.is_some());
        let server = Server::new(listener, key, model).map_err(unheard)?;
        begun.say(&format!("http://{}/v1", server.address), has_key, &context.out);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let mut serving = std::pin::pin!(server.serve(async { drop(stopped.await) }));
        tokio::select! {
            ended = &mut serving => return ended.map(|()| 0).map_err(unheard),
            () = signals.next() => drop(stop),
        }
        context.out.note("no more is taken; answers under way are finished. Ctrl-C again stops at once");
        tokio::select! {
            ended = &mut serving => ended.map(|()| 0).map_err(unheard),
            () = signals.next() => Ok(130),
            () = tokio::time::sleep(FINISH) => Ok(0),
        }
    });
    runtime.shutdown_background();
    done
}

/// The key itself, or the first line of a file.
fn key(given: &str) -> Result<String, Report> {
    let usage = |message: String| Failure::Usage { message };
    let key = match given.strip_prefix("file:") {
        None => given.to_string(),
        Some(path) => {
            let text = fs::read_to_string(path).map_err(|error| usage(format!("--api-key {given}: {error}")))?;
            text.lines().next().unwrap_or_default().trim().to_string()
        }
    };
    match key.is_empty() {
        true => Err(usage(format!("--api-key {given}: the key is empty")).into()),
        false => Ok(key),
    }
}

/// What is said of a model when it is served.
struct Begun {
    name: String,
    context: Option<usize>,
    chats: bool,
}

impl Begun {
    fn of(model: &Model) -> Begun {
        Begun { name: model.name.clone(), context: model.context, chats: model.template.is_some() }
    }

    fn say(&self, url: &str, has_key: bool, out: &Out) {
        let Begun { name, context, chats } = self;
        if out.style().json {
            let about = json!({ "url": url, "model": name, "context": context, "key": has_key, "chat": chats });
            return out.event("Serving", &about);
        }
        let key = if has_key { "key: needed" } else { "key: none needed on loopback" };
        if !out.style().terminal {
            let fields: [(&str, &dyn std::fmt::Display); 2] = [("url", &url), ("model", &name)];
            return out.say(Mark::Done, &format!("OpenAI-compatible API, {key}"), &fields);
        }
        out.done(&format!("OpenAI-compatible API  {url}     model \"{name}\"     {key}"));
        let (path, what) = match chats {
            true => ("chat/completions", r#""messages":[{"role":"user","content":"hello"}]"#),
            false => ("completions", r#""prompt":"Once""#),
        };
        let header = if has_key { "-H 'Authorization: Bearer KEY' " } else { "" };
        out.plain(&format!("  try   curl -s {url}/{path} {header}-d '{{\"model\":\"{name}\",{what}}}'"));
        if !chats {
            out.note(
                "it has no chat template: /v1/completions answers, and with --template plain /v1/chat/completions, too",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_word_or_the_first_line_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        fs::write(&file, "secret\nmore\n").unwrap();
        assert_eq!(key("word").unwrap(), "word");
        assert_eq!(key(&format!("file:{}", file.display())).unwrap(), "secret");
        fs::write(&file, "\n").unwrap();
        for wrong in ["", "file:/no/such/file", &format!("file:{}", file.display())] {
            assert_eq!(key(wrong).unwrap_err().failure.code(), "SK100", "{wrong}");
        }
    }
}
