//! A peer in front of a person: what `train`, `join` and `host` share. In: how the run is found and what this peer does in it.
//! Out: the story on stderr, a control server, a polite end, an exit code.

mod desk;
mod picture;
mod setup;
mod story;
mod trouble;

use std::{collections::BTreeSet, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use skein_pipeline::{compute::OnDevice, peer::io::Command};
use tokio::{
    runtime::Runtime,
    sync::{broadcast::error::RecvError, mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep},
};

pub use self::desk::{Desk, collect_and_write};
use self::{
    picture::Picture,
    setup::{Chosen, setup},
    story::Story,
};
use super::{
    context::Context,
    failure::{Failure, Report},
    out::Mark,
    refused::Circumstances,
    show::{Bytes, Peer, Span, counted, utc_ms},
};
use crate::{
    config::{self, Origin, Token},
    home::Control,
    node::{
        self, Ended, Left, Node, NodeError, Progress, Role, Way,
        lobby::{LobbyError, Tried},
    },
    watch::{Me, ServeError, Server, ServerConfig, State},
};

/// Who joined a run that has ended stays so long, so that its owner can collect the weights.
const AFTER_THE_END: Duration = Duration::from_secs(20);
/// Pictures for `status` a second.
const SHOW: Duration = Duration::from_millis(500);

/// What is to be done.
pub struct Plan {
    pub command: &'static str,
    pub way: Way,
    pub role: Role,
    /// The invite's text, kept for the next start.
    pub invite: Option<String>,
    /// Label of the run, as far as it is known.
    pub run: String,
    pub patience: Duration,
    pub keep_trying: bool,
    /// Of the peer that owns the run: save the model here when it ends.
    pub save_to: Option<PathBuf>,
    pub owner: bool,
    pub until_stdin_closes: bool,
}

/// Runs a peer until it ends.
pub fn run(context: &Context, plan: Plan) -> Result<u8, Report> {
    runtime()?.block_on(attend(context, plan))
}

pub fn runtime() -> Result<Runtime, Report> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::Other { message: error.to_string() }.into())
}

/// Starts the node of a plan, telling each step.
pub async fn start(context: &Context, plan: &Plan) -> Result<Node, Report> {
    let chosen = Chosen::look(context)?;
    let circumstances = Circumstances {
        command: plan.command,
        run: plan.run.clone(),
        machine: context.machine,
        port_origin: context.settings.get("net.port").map_or(String::new(), |setting| place(&setting.origin)),
    };
    let out = context.out.clone();
    let retry = circumstances.clone();
    let progress = move |progress: Progress| match progress {
        Progress::Identity { me, made_now } => {
            let note = if made_now { "        a new key, made just now" } else { "" };
            out.say(Mark::Done, &format!("you   {}{note}", Peer(me)), &[("peer", &me)]);
        }
        Progress::Listening { port: 0 } => out.note("port  none: others reach this peer through relays only"),
        Progress::Listening { port } => out.say(Mark::Done, &format!("port  {port} (UDP and TCP)"), &[("port", &port)]),
        Progress::Meeting { peers } => {
            let sentence = format!("looking for {} of the invite", counted(peers as u64, "peer"));
            out.say(Mark::Note, &sentence, &[("peers", &peers)]);
        }
        Progress::StillTrying(error) => {
            let report = retry.report(error.into());
            out.warn(&format!("{} Still trying.", report.failure.what()));
            for line in report.failure.why().lines() {
                out.note(line);
            }
        }
        Progress::Manifest { run, name } => {
            out.say(Mark::Done, &format!("run   {name}  {run}  manifest verified"), &[("run", &run)]);
        }
        Progress::Running { remarks, .. } => {
            trouble::of_start(&remarks).iter().for_each(|trouble| out.trouble(trouble));
        }
    };
    let node = node::start(setup(context, plan), move |manifest| OnDevice(chosen.of(manifest)), progress).await;
    node.map_err(|error| circumstances.report(error))
}

fn place(origin: &Origin) -> String {
    config::Place(origin.clone()).to_string()
}

async fn attend(context: &Context, plan: Plan) -> Result<u8, Report> {
    let node = start(context, &plan).await?;
    let out = &context.out;
    let memory = context.node.give.memory_bytes(&context.machine);
    let threads = context.node.give.thread_count(&context.machine);
    out.note(&format!(
        "gives {} of {}, {threads} of {} cores at low priority",
        Bytes(memory),
        Bytes(context.machine.memory_total),
        context.machine.cores
    ));
    let me = Me {
        peer: node.me,
        name: match context.node.me.name.as_str() {
            "" => super::petname::of(&node.me),
            name => name.into(),
        },
        incarnation: node.incarnation,
        since_utc_ms: utc_ms(),
        addresses: Vec::new(),
        reachability: "unknown".into(),
        device: format!("{:?}", context.node.give.device).to_lowercase(),
        threads,
        memory_bytes: memory,
    };
    let mut story = Story::new(out, &node.manifest);
    let mut picture = Picture::new(node.manifest.clone(), me, utc_ms());
    let (show, shown) = watch::channel(Arc::new(picture.state().clone()));
    let (ask, mut asked) = mpsc::channel(16);
    let _server = match serve(context, shown, ask).await {
        Ok(server) => server,
        Err(report) => {
            node.order(node::Order::Stop).await;
            let _ = node.wait().await;
            return Err(report);
        }
    };
    let desk = Desk { run: node.run, manifest: node.manifest.clone(), orders: node.orders(), snapshots: node.state() };
    let unsaved = node.unsaved.clone();
    let mut told = BTreeSet::new();
    let orders = node.orders();
    let mut records = node.records();
    let mut snapshots = node.state();
    if plan.owner {
        print_invite(context, &desk, &mut snapshots).await;
    }
    out.note("stop  Ctrl-C (leaves politely)        skein status | skein peers");

    let again = out.clone();
    let mut left = pin!(node::until_left(node, move || {
        again.note("draining: finishing or handing on what was accepted. Ctrl-C again stops at once");
    }));
    let mut stdin = pin!(stdin_closed(plan.until_stdin_closes));
    let mut stdin_open = plan.until_stdin_closes;
    let mut tick = interval(SHOW);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ending = false;
    // With a limit for silence: until somebody is met.
    let mut alone_until = (!plan.keep_trying).then(|| Instant::now() + plan.patience);
    let mut nobody = None;
    let mut saved: Option<Result<(), Report>> = None;
    let (save_done, mut save_answer) = mpsc::channel(1);
    let ended = loop {
        tokio::select! {
            ended = &mut left => break ended,
            record = records.recv() => match record {
                Ok(record) => story.hear(&record),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => sleep(SHOW).await,
            },
            _ = tick.tick() => {
                let snapshot = snapshots.borrow_and_update().clone();
                if let Some(snapshot) = snapshot {
                    // Not by its event: whoever lags behind misses some.
                    if snapshot.peer.ended && !ending {
                        ending = true;
                        end(&plan, &desk, save_done.clone());
                    }
                    if !snapshot.net.peers.is_empty() {
                        alone_until = None;
                    }
                    if alone_until.take_if(|until| *until <= Instant::now()).is_some() {
                        nobody = Some(silent(&plan));
                        let _ = orders.send(node::Order::Stop).await;
                    }
                    unsaved.each(|stage, why| {
                        let failure = Failure::from(why);
                        if told.insert((stage, failure.code())) {
                            out.warn(&format!("stage {stage} is not saved: the peer goes on, and tries again"));
                            out.trouble(&failure);
                        }
                    });
                    story.show(picture.update(&snapshot));
                    let _ = show.send(Arc::new(picture.state().clone()));
                }
            }
            Some(order) = asked.recv() => {
                tokio::spawn(desk.clone().take(order));
            }
            Some(outcome) = save_answer.recv() => {
                saved = Some(outcome);
                let _ = orders.send(node::Order::Command(Command::Drain)).await;
            }
            () = &mut stdin, if stdin_open => {
                stdin_open = false;
                let _ = orders.send(node::Order::Command(Command::Drain)).await;
            }
        }
    };
    drop(story);
    let circumstances = Circumstances {
        command: plan.command,
        run: plan.run.clone(),
        machine: context.machine,
        port_origin: String::new(),
    };
    match ended.map_err(|error| circumstances.report(error))? {
        Left::AtOnce => Ok(130),
        Left::Ended(_) if let Some(nobody) = nobody => Err(circumstances.report(NodeError::Lobby(nobody))),
        Left::Ended(ended) => {
            saved.unwrap_or(Ok(()))?;
            // What nobody else holds is lost with this process: that must not look like a good end.
            if let Some(why) = unsaved.take() {
                return Err(why.into());
            }
            if ended == Ended::Drained {
                out.done("left in good order");
            }
            Ok(0)
        }
    }
}

/// What is said when none of the peers that the plan names has answered.
fn silent(plan: &Plan) -> LobbyError {
    let named = match &plan.way {
        Way::Known { meet, .. } => meet,
        Way::Invited(invited) => &invited.peers,
    };
    let tried = named.iter().map(|(peer, addresses)| {
        let address = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        Tried { peer: Some(*peer), address, why: format!("silent for {}", Span(plan.patience)) }
    });
    LobbyError::NobodyAnswers(tried.collect())
}

/// What happens when the run has ended: its owner saves the model, the others give it time for that; then everybody leaves.
fn end(plan: &Plan, desk: &Desk, done: mpsc::Sender<Result<(), Report>>) {
    let (desk, save_to, owner) = (desk.clone(), plan.save_to.clone(), plan.owner);
    tokio::spawn(async move {
        let outcome = match save_to {
            Some(path) => {
                let written = collect_and_write(&desk.orders, desk.manifest.clone(), &path, false).await;
                written.map(drop).map_err(|refusal| Failure::from(refusal).into())
            }
            None => {
                if !owner {
                    sleep(AFTER_THE_END).await;
                }
                Ok(())
            }
        };
        let _ = done.send(outcome).await;
    });
}

/// The control server, and the file that says where it is.
async fn serve(
    context: &Context,
    shown: watch::Receiver<Arc<State>>,
    ask: mpsc::Sender<crate::watch::Order>,
) -> Result<Option<(Server, crate::home::Published)>, Report> {
    let Some(listen) = context.node.watch.listen else { return Ok(None) };
    let fixed = context.settings.get("watch.listen").is_some_and(|setting| setting.origin != Origin::Default);
    let token = match &context.node.watch.token {
        Token::Fixed(token) => token.clone(),
        Token::Auto => {
            let bytes: [u8; 32] = rand::random();
            data_encoding::HEXLOWER.encode(&bytes)
        }
    };
    let values: serde_json::Map<String, serde_json::Value> = context
        .settings
        .iter()
        .filter(|setting| setting.key != "watch.token")
        .map(|setting| (setting.key.to_string(), serde_json::to_value(&setting.value).unwrap_or_default()))
        .collect();
    let config = ServerConfig { listen, fixed, token: token.clone(), config: values.into() };
    let server = Server::start(config, shown, ask).await.map_err(|error| match error {
        ServeError::Taken(address) => {
            let origin = context.settings.get("watch.listen").map_or(String::new(), |setting| place(&setting.origin));
            Failure::ControlPortTaken { address: address.to_string(), origin }.into()
        }
        other => Report::from(other),
    })?;
    let control = Control { address: server.address, token, pid: std::process::id() };
    let published = control.publish(&context.home.control_file())?;
    Ok(Some((server, published)))
}

/// As soon as an address is known, the one line that others need.
async fn print_invite(context: &Context, desk: &Desk, snapshots: &mut watch::Receiver<Option<node::view::State>>) {
    let patience = Duration::from_secs(3);
    let ready = async {
        loop {
            if let Ok(made) = desk.invite() {
                return Some(made.invite);
            }
            if snapshots.changed().await.is_err() {
                return None;
            }
        }
    };
    match tokio::time::timeout(patience, ready).await {
        Ok(Some(invite)) => {
            context.out.done("others join with this one command:");
            if context.out.style().json {
                context.out.event("Invite", &serde_json::json!({ "invite": invite }));
            } else {
                context.out.tell(&format!("\n  skein join {invite}\n"));
            }
        }
        _ => context.out.warn("no address is known yet that others could dial; later: skein invite"),
    }
}

/// Whoever started this process is gone, or lets it go. The thread ends with the process: nothing else can end a read of stdin.
async fn stdin_closed(wanted: bool) {
    let (close, closed) = oneshot::channel::<()>();
    if wanted {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            drop(close);
        });
        let _ = closed.await;
    } else {
        let _keep = close;
        std::future::pending::<()>().await;
    }
}
