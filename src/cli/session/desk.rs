//! Answers what others on this machine ask of a running peer. In: orders of the control server. Out: orders to the node, and
//! replies. Each order is its own task: a slow reader holds nobody up.

use std::{sync::Arc, time::Instant};

use libp2p::Multiaddr;
use skein_protocol::{Manifest, PeerId, RunId, run};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    cli::invites,
    node::{
        self,
        base::Base,
        export::{ExportError, Missed, Note},
        generate::{Ask, Said, Sampling, Why},
        save::{self, Beside},
        view::State as Snapshot,
    },
    text::{Special, Tokenizer},
    watch::{ExportNote, Finish, GenerateRequest, Made, Order, Piece, Refusal},
};

#[derive(Clone)]
pub struct Desk {
    pub run: RunId,
    pub manifest: Arc<Manifest>,
    pub orders: mpsc::Sender<node::Order>,
    pub snapshots: watch::Receiver<Option<Snapshot>>,
    pub base: Option<Base>,
}

impl Desk {
    pub async fn take(self, order: Order) {
        match order {
            // Whether and how this peer leaves is the session's to say.
            Order::Stop { .. } => {}
            Order::Invite { reply } => {
                let _ = reply.send(self.invite());
            }
            Order::Generate { request, reply } => self.generate(request, reply).await,
            Order::Export { request, reply } => {
                let said = match self.export(&request.out, request.overwrite, &reply).await {
                    Ok(note) => reply.send(Ok(note)).await,
                    Err(refusal) => reply.send(Err(refusal)).await,
                };
                let _ = said;
            }
        }
    }

    /// With today's addresses: mine, then those of peers that I am connected to.
    pub fn invite(&self) -> Result<Made, Refusal> {
        let snapshot = self.snapshots.borrow();
        let Some(snapshot) = snapshot.as_ref() else {
            return Err(Refusal::Other { why: "this peer is still starting".into() });
        };
        let peers = bootstraps(snapshot);
        let invite = invites::make(self.run, &self.manifest.run.name, &peers)
            .map_err(|_| Refusal::Other { why: "no address of this peer is known that others could dial".into() })?;
        Ok(Made { invite, peers: peers.len() })
    }

    async fn generate(&self, request: GenerateRequest, reply: mpsc::Sender<Result<Piece, Refusal>>) {
        let began = Instant::now();
        let prompt = if request.prompt.is_empty() { "\n" } else { &request.prompt };
        let special = if request.rendered { Special::Parse } else { Special::AsText };
        let coded = self.tokenizer().and_then(|tokenizer| match tokenizer.encode(prompt, special, !request.rendered) {
            Ok(prompt) => Ok((tokenizer, prompt)),
            Err(error) => Err(Refusal::Other { why: error.to_string() }),
        });
        let (tokenizer, prompt) = match coded {
            Ok(coded) => coded,
            Err(refusal) => return drop(reply.send(Err(refusal)).await),
        };
        let context = self.manifest.model.config.context as usize;
        if prompt.len() >= context {
            let _ = reply.send(Err(Refusal::TooLong { got: prompt.len(), context })).await;
            return;
        }
        let mut finish = Finish { prompt_tokens: prompt.len() as u64, ..Finish::default() };
        let sampling = Sampling { temperature: request.temperature, top_p: request.top_p, seed: request.seed };
        let stop = tokenizer.ends().to_vec();
        let ask = Ask { prompt, tokens_max: request.tokens_max, sampling, stop };
        let (say, mut said) = mpsc::unbounded_channel();
        if self.orders.send(node::Order::Generate { ask, reply: say }).await.is_err() {
            let _ = reply.send(Err(Refusal::Other { why: "this peer is stopping".into() })).await;
            return;
        }
        let mut decoder = tokenizer.decoder(true);
        loop {
            let word = tokio::select! {
                word = said.recv() => word,
                // Whoever asked is gone: the session ends with its way back.
                () = reply.closed() => return,
            };
            let Some(word) = word else { break };
            let piece = match word {
                Said::Route(peers) => {
                    let route = (0..).zip(peers).collect();
                    if reply.send(Ok(Piece::Route(route))).await.is_err() {
                        return;
                    }
                    continue;
                }
                Said::Token(token) => {
                    if finish.tokens == 0 {
                        finish.first_token_ms = began.elapsed().as_millis() as u64;
                    }
                    finish.tokens += 1;
                    decoder.push(token)
                }
                Said::Replayed => {
                    finish.replaced += 1;
                    continue;
                }
                Said::Ended(Why::NoReplica) => {
                    let _ = reply.send(Err(self.no_replica())).await;
                    return;
                }
                Said::Ended(why) => {
                    finish.stopped = why == Why::Stop;
                    break;
                }
            };
            if !piece.is_empty() && reply.send(Ok(Piece::Text(piece))).await.is_err() {
                return;
            }
        }
        let rest = decoder.finish();
        if !rest.is_empty() {
            let _ = reply.send(Ok(Piece::Text(rest))).await;
        }
        finish.duration_ms = began.elapsed().as_millis() as u64;
        let _ = reply.send(Ok(Piece::End(finish))).await;
    }

    /// That of the run: its bytes, or what lies beside the weights that it began with.
    fn tokenizer(&self) -> Result<Tokenizer, Refusal> {
        match (&self.manifest.model.tokenizer, &self.base) {
            (run::Tokenizer::Byte, _) => Ok(Tokenizer::bytes()),
            (run::Tokenizer::File { .. }, Some(base)) => Ok(base.tokenizer.clone()),
            (run::Tokenizer::File { .. }, None) => Err(elsewhere()),
        }
    }

    /// The tokenizer files of a model of this run.
    pub fn words(&self) -> Result<Beside, Refusal> {
        match (&self.manifest.model.tokenizer, &self.base) {
            (_, Some(base)) => Ok(Beside::Like(base.folder.clone())),
            (run::Tokenizer::Byte, None) => Ok(Beside::Bytes),
            (run::Tokenizer::File { .. }, None) => Err(elsewhere()),
        }
    }

    fn no_replica(&self) -> Refusal {
        let stages = match self.snapshots.borrow().as_ref() {
            Some(snapshot) => {
                let stages = snapshot.peer.stages.iter();
                stages.filter(|stage| stage.replicas.is_empty()).map(|stage| stage.stage).collect()
            }
            None => Vec::new(),
        };
        Refusal::NoReplica { stages }
    }

    async fn export(
        &self,
        out: &std::path::Path,
        overwrite: bool,
        reply: &mpsc::Sender<Result<ExportNote, Refusal>>,
    ) -> Result<ExportNote, Refusal> {
        let of = self.manifest.stages.count;
        let (notes, mut noted) = mpsc::unbounded_channel();
        let told = async {
            // Ends when every stage is complete, or nothing more comes.
            while let Some(note) = noted.recv().await {
                let note = match note {
                    Note::Complete(stages) => ExportNote::Collected { stages, of },
                    Note::Missed(missed) => ExportNote::Missed { what: missed.to_string() },
                };
                let _ = reply.send(Ok(note)).await;
            }
        };
        let work = collect_and_note(&self.orders, self.words()?, out, overwrite, notes);
        // Whoever asked may leave: then nobody waits for the rest.
        let left = reply.closed();
        let (written, ()) = tokio::select! {
            done = async { tokio::join!(work, told) } => done,
            () = left => return Err(Refusal::Other { why: "whoever asked for the export left".into() }),
        };
        let written = written?;
        let step = self.snapshots.borrow().as_ref().map_or(0, |snapshot| snapshot.peer.step);
        Ok(ExportNote::Done { files: written.files, bytes: written.bytes, parameters: written.parameters, step })
    }
}

fn elsewhere() -> Refusal {
    Refusal::Other { why: "the tokenizer of this run is on the machine of its owner: ask there".into() }
}

/// Collects the weights of every stage and writes the folder `out`. `missed` hears of each replica that is not in it.
pub async fn collect_and_write(
    orders: &mpsc::Sender<node::Order>,
    words: Beside,
    out: &std::path::Path,
    overwrite: bool,
    missed: impl Fn(&Missed),
) -> Result<save::Written, Refusal> {
    let (notes, mut noted) = mpsc::unbounded_channel();
    let told = async {
        while let Some(note) = noted.recv().await {
            if let Note::Missed(what) = note {
                missed(&what);
            }
        }
    };
    tokio::join!(collect_and_note(orders, words, out, overwrite, notes), told).0
}

/// As [`collect_and_write`]; `notes` hears how it goes on.
async fn collect_and_note(
    orders: &mpsc::Sender<node::Order>,
    words: Beside,
    out: &std::path::Path,
    overwrite: bool,
    notes: mpsc::UnboundedSender<Note>,
) -> Result<save::Written, Refusal> {
    let (reply, answer) = oneshot::channel();
    let _ = orders.send(node::Order::Export { notes, reply }).await;
    let collected = answer.await.unwrap_or(Err(ExportError::Stopped)).map_err(|error| match error {
        ExportError::NoReplica(stages) => Refusal::NoReplica { stages },
        other => Refusal::Other { why: other.to_string() },
    })?;
    let path = out.to_path_buf();
    let written = tokio::task::spawn_blocking(move || {
        // The whole of it: its turn among exports ends with the writing, though nobody may wait for that any more.
        let collected = collected;
        save::write(&path, &words, collected.family, &collected.stages, overwrite)
    })
    .await;
    match written {
        Ok(Ok(written)) => Ok(written),
        Ok(Err(error)) => Err(unwritten(out, error)),
        Err(bug) => Err(Refusal::Other { why: bug.to_string() }),
    }
}

fn unwritten(out: &std::path::Path, error: save::SaveError) -> Refusal {
    let path = out.to_path_buf();
    match error {
        save::SaveError::NotEmpty(path) => Refusal::NotEmpty { path },
        save::SaveError::Full { free, needed } => Refusal::DiskFull { path, free, needed },
        save::SaveError::Io { source, .. } => Refusal::Unwritable { path, error: source.to_string() },
        other => Refusal::Other { why: format!("the model was not written: {other}") },
    }
}

/// Me and my neighbours, each with the addresses that are known to work.
fn bootstraps(snapshot: &Snapshot) -> Vec<(PeerId, Vec<Multiaddr>)> {
    let mine = snapshot.addresses.iter().filter_map(|text| text.parse().ok()).collect();
    let others = snapshot.net.peers.iter().filter_map(|peer| Some((peer.peer, vec![peer.address.parse().ok()?])));
    std::iter::once((snapshot.me, mine)).chain(others).collect()
}
