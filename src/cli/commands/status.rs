//! `skein status`: what the peer that runs here does, once, again and again, or until something is reached.

use std::{
    thread,
    time::{Duration, Instant},
};

use skein_protocol::unit;

use super::ask;
use crate::{
    cli::{
        args,
        context::Context,
        failure::{Failure, Report},
        out::Out,
        petname,
        show::{About, Bytes, Count, Peer, Span, Traffic, counted, losses, tokens_per_s, utc_ms},
    },
    node::memory::Account,
    watch::{ClientError, MyStage, MyStageState, Phase, State},
};

const LOOK_EVERY: Duration = Duration::from_millis(500);

pub fn run(args: &args::Status, context: &Context) -> Result<u8, Report> {
    match &args.wait {
        Some(goal) => wait(Goal::parse(goal)?, patience(args.timeout.as_deref())?, context),
        None if args.watch => watch(context),
        None => {
            show(&ask::client(context)?.state()?, &context.out);
            Ok(0)
        }
    }
}

fn show(state: &State, out: &Out) {
    if out.style().json {
        out.document("status", state);
    } else {
        out.print(text(state).trim_end());
    }
}

/// Until the peer goes away, which is no failure.
fn watch(context: &Context) -> Result<u8, Report> {
    let mut before = String::new();
    loop {
        let state = match ask::client(context).map(|client| client.state()) {
            Ok(Ok(state)) => state,
            Ok(Err(error @ ClientError::NobodyHere { .. })) if before.is_empty() => return Err(error.into()),
            Err(report) if before.is_empty() => return Err(report),
            Ok(Err(ClientError::Silent { .. })) if !before.is_empty() => continue,
            Ok(Err(ClientError::NobodyHere { .. })) | Err(_) => {
                context.out.note("the peer has ended");
                return Ok(0);
            }
            Ok(Err(error)) => return Err(error.into()),
        };
        let now = text(&state);
        if now != before {
            if context.out.style().json {
                context.out.event("State", &state)
            } else {
                context.out.print(&now)
            }
            before = now;
        }
        thread::sleep(LOOK_EVERY);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// Its loop turns and it answers, whatever it waits for.
    Alive,
    Ready,
    Step(u64),
    Finished,
}

impl Goal {
    fn parse(text: &str) -> Result<Goal, Report> {
        let step = || text.strip_prefix("step=").and_then(|step| step.parse().ok()).map(Goal::Step);
        let goal = match text {
            "alive" => Some(Goal::Alive),
            "ready" => Some(Goal::Ready),
            "finished" => Some(Goal::Finished),
            _ => step(),
        };
        let message = || format!("--wait {text}: what can be waited for is alive, ready, step=N or finished");
        goal.ok_or_else(|| Failure::Usage { message: message() }.into())
    }

    fn is_reached(self, state: &State) -> bool {
        let at_end = state.steps_end.is_some_and(|end| state.step >= end);
        match self {
            Goal::Alive => state.is_fresh(utc_ms()),
            Goal::Ready => state.is_ready(),
            Goal::Step(step) => state.step >= step,
            Goal::Finished => state.phase == Phase::Ended || at_end,
        }
    }

    fn words(self) -> String {
        match self {
            Goal::Alive => "alive".into(),
            Goal::Ready => "ready".into(),
            Goal::Step(step) => format!("at step {step}"),
            Goal::Finished => "finished".into(),
        }
    }
}

fn patience(text: Option<&str>) -> Result<Option<Duration>, Report> {
    let parse = |text: &str| {
        unit::parse_duration(text).map_err(|_| {
            let message = format!("--timeout {text}: a time is written 30s, 10m or 2h");
            Failure::Usage { message }.into()
        })
    };
    text.map(parse).transpose()
}

/// With a time limit, a peer that is not there yet is waited for, too.
fn wait(goal: Goal, patience: Option<Duration>, context: &Context) -> Result<u8, Report> {
    let since = Instant::now();
    let mut said = String::new();
    loop {
        let state = ask::client(context).and_then(|client| client.state().map_err(Report::from));
        let doing = match state {
            Ok(state) if goal.is_reached(&state) => {
                show(&state, &context.out);
                return Ok(0);
            }
            Ok(state) => doing(&state),
            Err(report) if patience.is_none() => return Err(report),
            Err(report) => match *report.failure {
                Failure::NobodyHere { .. } => "not running".into(),
                Failure::Silent { .. } => "not answering".into(),
                _ => return Err(report),
            },
        };
        if let Some(patience) = patience.filter(|patience| since.elapsed() >= *patience) {
            return Err(Failure::NotYet { what: goal.words(), span: Span(patience), doing }.into());
        }
        if since.elapsed() >= Duration::from_secs(3) && doing != said {
            context.out.note(&format!("waiting for the peer to be {}: it is {doing}", goal.words()));
            said = doing;
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// The phase, with what is missing.
fn doing(state: &State) -> String {
    let phase = match state.phase {
        Phase::Starting => "starting",
        Phase::Joining => "joining",
        Phase::Training => "training",
        Phase::Waiting => "waiting",
        Phase::Draining => "draining",
        Phase::Ended => "ended",
    };
    match &state.waiting {
        Some(waiting) => format!("{phase} (for {})", waiting.what),
        None => phase.into(),
    }
}

/// The page of `skein status`.
fn text(state: &State) -> String {
    let run = state.run.as_ref().map_or("no run yet", |run| run.name.as_str());
    let mut head = vec![run.to_string(), doing(state)];
    if state.run.is_some() {
        let end = state.steps_end.map_or(String::new(), |end| format!(" of {}", Count(end)));
        head.push(format!("step {}{end}", Count(state.step)));
    }
    head.extend(losses(state.loss, state.held_out_loss));
    head.extend(state.tokens_per_s.map(tokens_per_s));
    head.push(match state.peers.len() {
        0 => "alone".into(),
        count => counted(count as u64, "other peer"),
    });
    head.extend(state.remaining().map(|left| format!("ETA {}", Span(left))));
    let mut lines = vec![head.join("   ")];
    lines.extend(me(state));
    for stage in &state.stages {
        let replicas: Vec<String> = stage.replicas.iter().map(petname::of).collect();
        let replicas = if replicas.is_empty() { "nobody".into() } else { replicas.join(", ") };
        lines.push(format!("  stage {}  {}  {replicas}", stage.stage, layers(stage.first_layer, stage.layers)));
    }
    if let Some(feeding) = &state.feeding {
        let (open, window, voided) = (Count(feeding.open), Count(feeding.window), Count(feeding.voided));
        let completed = counted(feeding.completed, "micro-batch");
        lines.push(format!("  feeds  {completed} completed, {open} of at most {window} open, {voided} voided"));
    }
    lines.extend(memory(&state.memory));
    let given = &state.given;
    lines.push(format!(
        "  given  {}   {} tokens   up {}   down {}",
        Span::from(given.duration_ms),
        About(given.tokens as f64),
        Traffic(given.bytes_up),
        Traffic(given.bytes_down)
    ));
    lines.extend(state.warnings.iter().map(|warning| format!("  ! {warning}")));
    lines.join("\n") + "\n"
}

fn me(state: &State) -> Vec<String> {
    let me = &state.me;
    let name = if me.name.is_empty() { Peer(me.peer).to_string() } else { format!("{} {}", me.name, me.peer.short()) };
    if state.mine.is_empty() {
        return vec![format!("  me     {name}   serves no stage")];
    }
    let line = |(i, mine): (usize, &MyStage)| {
        let stage = state.stages.iter().find(|stage| stage.stage == mine.stage);
        let replicas = stage.map_or(1, |stage| stage.replicas.len());
        let what = match (mine.state, mine.fetched_percent) {
            (MyStageState::Looking, _) => "looking for its weights".to_string(),
            (MyStageState::Fetching, Some(percent)) => format!("fetching its weights, {percent} % are here"),
            (MyStageState::Fetching, None) => "fetching its weights".into(),
            (MyStageState::Loading, _) => "loading".into(),
            (MyStageState::Serving, _) => "serving".into(),
        };
        let who = if i == 0 { format!("me     {name}") } else { " ".repeat(7 + name.chars().count()) };
        format!(
            "  {who}   stage {} {what}, 1 of {replicas}   {}   {}   {}",
            mine.stage,
            counted(mine.micro_batches, "micro-batch"),
            tokens_per_s(mine.tokens_per_s),
            counted(mine.rounds, "round")
        )
    };
    state.mine.iter().enumerate().map(line).collect()
}

/// What is held in memory, by what it is for, beside what was given; nothing while nothing is served.
fn memory(account: &Account) -> Option<String> {
    let Account { frozen, parameters, gradients, optimizer, averaging, kept, .. } = *account;
    let Account { scratch, caches, passing, blobs, network, .. } = *account;
    if parameters == 0 {
        return None;
    }
    let parts = [
        ("frozen", frozen),
        ("parameters", parameters),
        ("gradients", gradients),
        ("optimizer", optimizer),
        ("averaging", averaging),
        ("kept", kept),
        ("caches", caches),
        ("at work", scratch.saturating_add(passing)),
        ("blobs", blobs),
        ("network", network),
    ];
    // Only beside adapters anything is frozen, and only while somebody asks there are caches.
    let parts = parts.iter().filter(|(name, bytes)| !["frozen", "caches"].contains(name) || *bytes > 0);
    let parts: Vec<String> = parts.map(|(name, bytes)| format!("{name} {}", Bytes(*bytes))).collect();
    let (total, budget) = (Bytes(account.total()), Bytes(account.budget));
    let seen = [("held", account.held), ("resident", account.resident)];
    let seen = seen.iter().filter(|(_, bytes)| *bytes > 0).map(|(name, bytes)| format!("   {name} {}", Bytes(*bytes)));
    Some(format!("  memory {total} of {budget}: {}{}", parts.join(", "), seen.collect::<String>()))
}

/// `layers 4-5`
fn layers(first: u32, count: u32) -> String {
    match count {
        0 => "no layers".into(),
        1 => format!("layer {first}"),
        _ => format!("layers {first}-{}", first + count - 1),
    }
}

#[cfg(test)]
mod tests {
    use skein_protocol::{PeerId, hash::Digest};

    use super::*;
    use crate::watch::{Given, Me, RunState, StageState};

    fn state() -> State {
        let me = Me { peer: PeerId([1; 32]), ..Me::default() };
        let stage = |stage, first_layer, replicas: &[u8]| StageState {
            stage,
            first_layer,
            layers: 2,
            replicas: replicas.iter().map(|n| PeerId([*n; 32])).collect(),
        };
        State {
            phase: Phase::Training,
            run: Some(RunState {
                name: "tiny-verse".into(),
                id: Digest([7; 32]),
                about: String::new(),
                owner: PeerId([2; 32]),
            }),
            step: 1_000,
            steps_end: Some(5_000),
            tokens: 2_000_000,
            loss: Some(3.4123),
            tokens_per_s: Some(2_000.0),
            stages: vec![stage(0, 0, &[1, 2]), stage(1, 2, &[])],
            mine: vec![MyStage {
                stage: 0,
                state: MyStageState::Serving,
                round: 3,
                own_step: 70,
                micro_batches: 1_234,
                tokens_per_s: 640.0,
                rounds: 3,
                rounds_rolled_back: 0,
                fetched_percent: None,
            }],
            given: Given { duration_ms: 11_520_000, tokens: 6_800_000, bytes_up: 10_500_000_000, ..Given::default() },
            warnings: vec!["stage 0 has one replica: if it leaves, training waits.".into()],
            ..State::starting(me, 0)
        }
    }

    #[test]
    fn the_page_says_what_a_person_asks() {
        let text = text(&state());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "tiny-verse   training   step 1 000 of 5 000   loss 3.412   2 000 tok/s   alone   ETA 1h 6m"
        );
        assert!(
            lines[1].ends_with("stage 0 serving, 1 of 2   1 234 micro-batches   640 tok/s   3 rounds"),
            "{}",
            lines[1]
        );
        assert!(lines[2].starts_with("  stage 0  layers 0-1  ") && lines[3].ends_with("layers 2-3  nobody"), "{text}");
        assert_eq!(lines[4], "  given  3h 12m   6.80 M tokens   up 10.5 GB   down 0 B");
        assert_eq!(lines[5], "  ! stage 0 has one replica: if it leaves, training waits.");
    }

    #[test]
    fn goals_are_reached_when_they_are() {
        let reached = |goal: &str, state: &State| Goal::parse(goal).unwrap().is_reached(state);
        let mut state = state();
        assert!(reached("ready", &state) && reached("step=1000", &state) && !reached("step=1001", &state));
        let idle = State { mine: Vec::new(), feeding: None, ..state.clone() };
        assert!(!reached("ready", &idle), "it has no stage yet");
        assert!(!reached("finished", &state));
        assert!(!reached("alive", &state), "the picture is from 1970: its loop hangs");
        state.utc_ms = utc_ms();
        state.phase = Phase::Waiting;
        assert!(reached("alive", &state), "who waits for others is well");
        state.step = 5_000;
        assert!(reached("finished", &state));
        for bad in ["", "steps=3", "step=", "step=x", "done"] {
            assert_eq!(Goal::parse(bad).unwrap_err().exit(), 2, "{bad}");
        }
        assert!(patience(Some("soon")).is_err() && patience(Some("30s")).unwrap() == Some(Duration::from_secs(30)));
    }
}
