//! A peer in front of a person: what `train`, `join` and `host` share. In: how the run is found and what this peer does in it.
//! Out: the story on stderr, a control server, a polite end, an exit code.

mod desk;
mod leave;
mod picture;
mod setup;
mod stay;
mod story;
mod trouble;

use std::{
    collections::BTreeSet,
    future::Future,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use skein_pipeline::{compute::OnDevice, peer::io::Command};
use skein_protocol::event::{Event, Record};
use tokio::{
    runtime::Runtime,
    sync::{
        broadcast::error::{RecvError, TryRecvError},
        mpsc, oneshot, watch,
    },
    time::{Instant, MissedTickBehavior, interval, sleep},
};

pub use self::desk::{Desk, collect_and_write};
pub use self::leave::Wishes;
pub use self::setup::{Chosen, named_device};
use self::{leave::Wish, picture::Picture, setup::setup, story::Story};
use super::{
    context::Context,
    failure::{Failure, Report},
    out::{Mark, Out},
    refused::Circumstances,
    show::{Bytes, Peer, Span, counted, utc_ms},
};
use crate::{
    config::{self, Origin, Token},
    home::Control,
    node::{
        self, Ended, Node, NodeError, Progress, Role, Way,
        base::Base,
        export::Missed,
        lobby::{LobbyError, Tried},
        store::Unsaved,
        view::State as Snapshot,
    },
    watch::{ExportForm, Me, Order, Refusal, ServeError, Server, ServerConfig, State},
};

/// A model that is not on the disk so long after its peer has left will not be.
const SAVE: Duration = Duration::from_secs(60);
/// Between two pictures for `status`.
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
    /// The model that the run began with, where it lies on this machine.
    pub base: Option<Base>,
    pub until_stdin_closes: bool,
}

/// Runs a peer until it ends.
pub fn run(context: &Context, plan: Plan) -> Result<u8, Report> {
    finish(attend(context, plan))
}

/// Runs `work`. What still occupies a thread when it is done is not waited for: whoever pressed Ctrl-C twice means now.
fn finish(work: impl Future<Output = Result<u8, Report>>) -> Result<u8, Report> {
    let runtime = runtime()?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
}

pub fn runtime() -> Result<Runtime, Report> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::Other { message: error.to_string() }.into())
}

/// Starts the node of a plan, telling each step; nothing when `leave` comes before the run is found.
async fn start(context: &Context, plan: &Plan, leave: impl Future<Output = ()>) -> Result<Option<Node>, Report> {
    setup::check(context, plan.command)?;
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
    let checkpoint = plan.base.as_ref().map(|base| base.checkpoint.clone());
    let engines = move |manifest: &_| OnDevice::new(chosen.of(manifest)).with_base(checkpoint.clone());
    let node = node::start_unless(setup(context, plan), engines, progress, leave).await;
    node.map_err(|error| circumstances.report(error))
}

fn place(origin: &Origin) -> String {
    config::Place(origin.clone()).to_string()
}

/// How a start ended.
enum Begun {
    /// With the wish to leave again, if it came too late for the start.
    Runs {
        node: Box<Node>,
        leave: bool,
    },
    /// Before the run was found.
    Left,
    LeftAtOnce,
}

/// Starts the node. The wait for the run may last days: who wants to leave meanwhile is heard.
async fn begin(context: &Context, plan: &Plan, wishes: &mut Wishes) -> Result<Begun, Report> {
    let (leave, left) = oneshot::channel::<()>();
    let mut leave = Some(leave);
    let mut starting = pin!(start(context, plan, async { drop(left.await) }));
    loop {
        tokio::select! {
            started = &mut starting => return Ok(match started? {
                Some(node) => Begun::Runs { node: Box::new(node), leave: leave.is_none() },
                None => Begun::Left,
            }),
            wish = wishes.next() => match wish {
                Wish::Leave => drop(leave.take()),
                Wish::LeaveAtOnce => return Ok(Begun::LeftAtOnce),
            }
        }
    }
}

async fn attend(context: &Context, plan: Plan) -> Result<u8, Report> {
    let mut wishes = Wishes::listen(plan.until_stdin_closes);
    let out = &context.out;
    let (node, mut leave) = match begin(context, &plan, &mut wishes).await? {
        Begun::Runs { node, leave } => (node, leave),
        Begun::Left => {
            out.done("left before the run was found");
            return Ok(0);
        }
        Begun::LeftAtOnce => return Ok(130),
    };
    say_what_is_given(context, &plan.role);
    let picture = Picture::new(node.manifest.clone(), me(context, &node), utc_ms());
    let (show, shown) = watch::channel(Arc::new(picture.state().clone()));
    let (ask, asked) = mpsc::channel(16);
    let _server = match serve(context, shown, ask).await {
        Ok(server) => server,
        Err(report) => {
            node.order(node::Order::Stop).await;
            let _ = node.wait().await;
            return Err(report);
        }
    };
    if let Some(base) = &plan.base
        && let Some(folder) = context.home.runs().list().into_iter().find(|folder| folder.run == node.run)
        && let Err(error) = base.note(&folder)
    {
        out.warn(&format!("where the first weights lie was not noted, so the next start must be told: {error}"));
    }
    let desk = Desk {
        run: node.run,
        manifest: node.manifest.clone(),
        orders: node.orders(),
        snapshots: node.state(),
        base: plan.base.clone(),
        shelf: context.home.shelf(),
        words: Arc::default(),
    };
    if plan.owner && !leave {
        tokio::select! {
            () = print_invite(context, &desk, node.state()) => {}
            wish = wishes.next() => match wish {
                Wish::Leave => leave = true,
                Wish::LeaveAtOnce => return Ok(130),
            }
        }
    }
    out.note("stop  Ctrl-C (leaves politely)        skein status | skein peers");
    let (save_done, save_answer) = mpsc::channel(1);
    let session = Session {
        context,
        plan: &plan,
        story: Story::new(out, &node.manifest),
        picture,
        show,
        snapshots: node.state(),
        unsaved: node.unsaved.clone(),
        told: BTreeSet::new(),
        // With a limit for silence.
        alone_until: (!plan.keep_trying).then(|| Instant::now() + plan.patience),
        nobody: None,
        over: false,
        ending: false,
        save_done,
        saved: None,
        desk,
    };
    session.attend(*node, wishes, leave, asked, save_answer).await
}

/// What this peer is to others and to `status`.
fn me(context: &Context, node: &Node) -> Me {
    Me {
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
        threads: context.node.give.thread_count(&context.machine),
        memory_bytes: context.node.give.memory_bytes(&context.machine),
    }
}

fn say_what_is_given(context: &Context, role: &Role) {
    if matches!(role.serve, node::Serve::Nothing) && role.feed.is_none() {
        return context.out.note("gives nothing: it watches");
    }
    let (give, machine) = (&context.node.give, &context.machine);
    context.out.note(&format!(
        "gives {} of {}, {} of {} cores at low priority",
        Bytes(give.memory_bytes(machine)),
        Bytes(machine.memory_total),
        give.thread_count(machine),
        machine.cores
    ));
}

/// A node that runs, and the person in front of it.
struct Session<'a> {
    context: &'a Context,
    plan: &'a Plan,
    desk: Desk,
    story: Story,
    picture: Picture,
    show: watch::Sender<Arc<State>>,
    snapshots: watch::Receiver<Option<Snapshot>>,
    unsaved: Unsaved,
    told: BTreeSet<(u16, &'static str)>,
    /// Until somebody is met: who is alone then gives up.
    alone_until: Option<Instant>,
    nobody: Option<LobbyError>,
    /// The run has ended.
    over: bool,
    /// What follows from that has begun.
    ending: bool,
    save_done: mpsc::Sender<Result<(), Report>>,
    saved: Option<Result<(), Report>>,
}

impl Session<'_> {
    /// Until the node has ended. Nothing in this loop waits for the node: a second Ctrl-C must be heard whatever hangs.
    async fn attend(
        mut self,
        node: Node,
        mut wishes: Wishes,
        leave: bool,
        mut asked: mpsc::Receiver<Order>,
        mut save_answer: mpsc::Receiver<Result<(), Report>>,
    ) -> Result<u8, Report> {
        let mut records = node.records();
        let mut recorded = true;
        let mut left = pin!(node.wait());
        let mut tick = interval(SHOW);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if leave {
            self.leave();
        }
        let ended = loop {
            tokio::select! {
                ended = &mut left => break ended,
                wish = wishes.next() => match wish {
                    Wish::Leave => self.leave(),
                    Wish::LeaveAtOnce => return Ok(130),
                },
                record = records.recv(), if recorded => match record {
                    Ok(record) => self.hear(&record),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => recorded = false,
                },
                _ = tick.tick() => self.look(),
                Some(order) = asked.recv() => self.take(order),
                Some(outcome) = save_answer.recv() => {
                    self.saved = Some(outcome);
                    self.order(node::Order::Command(Command::Drain));
                }
            }
        };
        // What the node said last came before its end.
        loop {
            match records.try_recv() {
                Ok(record) => self.hear(&record),
                Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        let ended = ended.map_err(|error| self.circumstances().report(error))?;
        self.over |= self.snapshots.borrow().as_ref().is_some_and(|snapshot| snapshot.peer.ended);
        if ended == Ended::Drained && self.is_saving() {
            // What was collected before the node left may be on its way to the disk.
            tokio::select! {
                outcome = save_answer.recv() => self.saved = outcome,
                wish = wishes.next() => if wish == Wish::LeaveAtOnce { return Ok(130) },
                () = sleep(SAVE) => {}
            }
        }
        self.conclude(ended)
    }

    /// The run has ended, and its model is not on the disk yet.
    fn is_saving(&self) -> bool {
        self.ending && self.plan.save_to.is_some() && self.saved.is_none()
    }

    fn order(&self, order: node::Order) {
        let orders = self.desk.orders.clone();
        tokio::spawn(async move { drop(orders.send(order).await) });
    }

    fn leave(&mut self) {
        // Whoever asked for the model gets what there is of it.
        if self.plan.save_to.is_some() && !self.over {
            self.over = true;
            self.order(node::Order::Command(Command::StopFeeding));
        }
        self.begin_to_end();
        if self.is_saving() {
            // The peer drains when that is done.
            return self.context.out.note("saving the model first, then leaving. Ctrl-C again stops at once");
        }
        self.context.out.note("draining: finishing or handing on what was accepted. Ctrl-C again stops at once");
        self.order(node::Order::Command(Command::Drain));
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Stop { now: false } => self.leave(),
            Order::Stop { now: true } => self.order(node::Order::Stop),
            order => drop(tokio::spawn(self.desk.clone().take(order))),
        }
    }

    fn hear(&mut self, record: &Record) {
        self.story.hear(record);
        self.over |= matches!(record.event, Event::RunEnded { .. });
    }

    fn look(&mut self) {
        let snapshot = self.snapshots.borrow_and_update().clone();
        let Some(snapshot) = snapshot else { return };
        // Not by its event: whoever lags behind misses some, and the last steps are made after it.
        // Whoever feeds so many passes over its data and no more leaves then; the run may go on with others.
        let fed = snapshot.peer.feeding.as_ref().is_some_and(|feeding| feeding.done);
        if fed && !self.over {
            self.context.out.done("the data was fed to its end");
        }
        if snapshot.peer.ended || fed {
            self.over = true;
            self.begin_to_end();
        }
        if !snapshot.net.peers.is_empty() {
            self.alone_until = None;
        }
        if self.alone_until.take_if(|until| *until <= Instant::now()).is_some() {
            self.nobody = Some(silent(self.plan));
            self.order(node::Order::Stop);
        }
        self.tell_unsaved();
        self.story.show(self.picture.update(&snapshot));
        let _ = self.show.send(Arc::new(self.picture.state().clone()));
    }

    fn tell_unsaved(&mut self) {
        let (out, told) = (&self.context.out, &mut self.told);
        self.unsaved.each(|stage, why| {
            let failure = Failure::from(why);
            if told.insert((stage, failure.code())) {
                out.warn(&format!("stage {stage} is not saved: the peer tries again as long as it runs"));
                out.trouble(&failure);
            }
        });
    }

    /// Once the run is over, its end takes its course.
    fn begin_to_end(&mut self) {
        if self.over && !std::mem::replace(&mut self.ending, true) {
            end(self.plan, &self.desk, self.context.out.clone(), self.save_done.clone());
        }
    }

    fn circumstances(&self) -> Circumstances {
        Circumstances {
            command: self.plan.command,
            run: self.plan.run.clone(),
            machine: self.context.machine,
            port_origin: String::new(),
        }
    }

    /// The exit code.
    fn conclude(mut self, ended: Ended) -> Result<u8, Report> {
        self.tell_unsaved();
        let circumstances = self.circumstances();
        let Session { context, plan, story, unsaved, nobody, over, saved, .. } = self;
        story.end();
        if let Some(nobody) = nobody {
            return Err(circumstances.report(NodeError::Lobby(nobody)));
        }
        match (saved, &plan.save_to) {
            (Some(saved), _) => saved?,
            (None, Some(path)) if over => {
                return Err(model_not_saved(plan.run.clone(), path, "the peer left before that".into()));
            }
            (None, _) => {}
        }
        // What nobody else holds is lost with this process: that must not look like a good end.
        if let Some(why) = unsaved.take() {
            return Err(why.into());
        }
        if ended == Ended::Drained {
            context.out.done("left in good order");
        }
        Ok(0)
    }
}

fn model_not_saved(run: String, path: &Path, why: String) -> Report {
    Failure::ModelNotSaved { path: path.display().to_string(), run, why }.into()
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
fn end(plan: &Plan, desk: &Desk, out: Out, done: mpsc::Sender<Result<(), Report>>) {
    let desk = desk.clone();
    let (run, save_to, owner) = (plan.run.clone(), plan.save_to.clone(), plan.owner);
    tokio::spawn(async move {
        let outcome = match save_to {
            Some(path) => {
                let warn = |missed: &Missed| out.warn(&missed.to_string());
                let written = match desk.form(ExportForm::Best) {
                    Ok(form) => collect_and_write(&desk.orders, form, &path, false, warn).await,
                    Err(refusal) => Err(refusal),
                };
                let said = |_| out.done(&format!("saved to {}", path.display()));
                written.map(said).map_err(|refusal| match refusal {
                    Refusal::Other { why } => model_not_saved(run, &path, why),
                    refusal => Failure::from(refusal).into(),
                })
            }
            None => {
                if !owner {
                    stay::until_saved(desk.snapshots, desk.manifest.run.owner).await;
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
    ask: mpsc::Sender<Order>,
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
async fn print_invite(context: &Context, desk: &Desk, mut snapshots: watch::Receiver<Option<Snapshot>>) {
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn what_still_occupies_a_thread_is_not_waited_for() {
        let (release, held) = mpsc::channel::<()>();
        let (done, heard) = mpsc::channel();
        std::thread::spawn(move || {
            let work = async {
                tokio::task::spawn_blocking(move || held.recv());
                Ok(130)
            };
            done.send(finish(work).ok())
        });
        assert_eq!(heard.recv_timeout(Duration::from_secs(60)), Ok(Some(130)));
        drop(release);
    }
}
