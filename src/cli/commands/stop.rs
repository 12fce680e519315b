//! `skein stop`: asks the peer that runs here to leave, and waits until it has.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use super::ask;
use crate::{
    cli::{
        args,
        context::Context,
        failure::{Failure, Report},
        progress::{Progress, Unit},
        show::Span,
    },
    watch::ClientError,
};

/// A drain hands on what was accepted and saves; this is far beyond what that takes.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub fn run(args: &args::Stop, context: &Context) -> Result<u8, Report> {
    let client = ask::client(context)?;
    client.state()?;
    match client.stop(args.now) {
        // It was here a moment ago, and may leave before it has answered.
        Err(ClientError::NobodyHere { .. }) => {}
        asked => asked?,
    }
    let since = Instant::now();
    let progress = Progress::start(&context.out, if args.now { "stopping" } else { "draining" }, 0, Unit::Things);
    loop {
        match client.state() {
            // Also where another peer has its port by now: that one does not know the token.
            Err(ClientError::NobodyHere { .. }) => break,
            _ if since.elapsed() > PATIENCE => {
                return Err(Failure::NotYet {
                    what: "gone".into(),
                    span: Span(PATIENCE),
                    doing: "still draining; skein stop --now ends it at once".into(),
                }
                .into());
            }
            _ => thread::sleep(LOOK_EVERY),
        }
    }
    let took = since.elapsed();
    progress.done(&format!("the peer (process {}) has left after {}", client.pid(), Span(took)));
    if context.out.style().json {
        let value = json!({ "pid": client.pid(), "now": args.now, "duration_ms": took.as_millis() as u64 });
        context.out.document("stop", &value);
    }
    Ok(0)
}
