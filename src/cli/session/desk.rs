//! Answers what others on this machine ask of a running peer. In: orders of the control server. Out: orders to the node, and
//! replies. Each order is its own task: a slow reader holds nobody up.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use libp2p::Multiaddr;
use skein_protocol::{Manifest, PeerId, RunId, hash::Digest, run};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    cli::invites,
    home::Shelf,
    node::{
        self,
        base::{Base, Words},
        export::{ExportError, Missed, Note},
        generate::{Ask, Odds, Said, Why},
        save::{self, Beside},
        view::State as Snapshot,
    },
    talk::{self, Likely, Prompt, Token},
    text::{Special, Tokenizer},
    watch::{ExportForm, ExportNote, Finish, GenerateRequest, Made, Order, Piece, Refusal},
};

#[derive(Clone)]
pub struct Desk {
    pub run: RunId,
    pub manifest: Arc<Manifest>,
    pub orders: mpsc::Sender<node::Order>,
    pub snapshots: watch::Receiver<Option<Snapshot>>,
    /// The model that the run began with, where it lies on this machine.
    pub base: Option<Base>,
    pub shelf: Shelf,
    /// How the model reads and writes, once that is here.
    pub words: Arc<OnceLock<Words>>,
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
                let said = match self.export(&request.out, request.form, request.overwrite, &reply).await {
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
        let GenerateRequest { prompt, tokens_max, sampling, taste, logprobs } = request;
        let coded = self.tokenizer().and_then(|tokenizer| Ok((tokens_of(&tokenizer, prompt)?, tokenizer)));
        let (prompt, tokenizer) = match coded {
            Ok(coded) => coded,
            Err(refusal) => return drop(reply.send(Err(refusal)).await),
        };
        let context = self.manifest.model.config.context as usize;
        if prompt.len() >= context {
            let _ = reply.send(Err(Refusal::TooLong { got: prompt.len(), context })).await;
            return;
        }
        let mut finish = Finish { prompt_tokens: prompt.len() as u64, ..Finish::default() };
        let (stop, vocabulary) = (tokenizer.ends().to_vec(), tokenizer.vocabulary());
        let ask = Ask { prompt, tokens_max, sampling, taste, stop, vocabulary, logprobs };
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
                Said::Token(id, odds) => {
                    if finish.tokens == 0 {
                        finish.first_token_ms = began.elapsed().as_millis() as u64;
                    }
                    finish.tokens += 1;
                    let likely = |(id, logprob)| Likely { id, text: tokenizer.token_text(id), logprob };
                    let token = |Odds { this, top }| Token {
                        this: likely((id, this)),
                        top: top.into_iter().map(likely).collect(),
                    };
                    // The end of a text is no token of it.
                    let tokens = odds.filter(|_| !tokenizer.ends().contains(&id)).map(token).into_iter().collect();
                    talk::Piece { text: decoder.push(id), tokens }
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
            let says = !piece.text.is_empty() || !piece.tokens.is_empty();
            if says && reply.send(Ok(Piece::Text(piece))).await.is_err() {
                return;
            }
        }
        let rest = decoder.finish();
        if !rest.is_empty() {
            let _ = reply.send(Ok(Piece::Text(talk::Piece { text: rest, tokens: Vec::new() }))).await;
        }
        finish.duration_ms = began.elapsed().as_millis() as u64;
        let _ = reply.send(Ok(Piece::End(finish))).await;
    }

    fn words(&self) -> Result<&Words, Refusal> {
        if let Some(words) = self.words.get() {
            return Ok(words);
        }
        let of_base = self.base.as_ref().map(|base| base.words.clone());
        let words = match of_base.map_or_else(|| Words::of_run(&self.shelf, &self.manifest), |words| Ok(Some(words))) {
            Ok(Some(words)) => words,
            Ok(None) => {
                let why = "the tokenizer of this run has not arrived yet: it comes from whoever else is in the run";
                return Err(Refusal::Other { why: why.into() });
            }
            Err(error) => return Err(Refusal::Other { why: error.to_string() }),
        };
        Ok(self.words.get_or_init(|| words))
    }

    fn tokenizer(&self) -> Result<Tokenizer, Refusal> {
        self.words().map(|words| words.tokenizer.clone())
    }

    /// How the model of this run is written, in the form that was asked for.
    pub fn form(&self, form: ExportForm) -> Result<save::Form, Refusal> {
        let beside = match &self.base {
            Some(base) => Beside::Like(base.folder.clone()),
            None => self.words()?.files.clone().map_or(Beside::Bytes, Beside::Files),
        };
        let Manifest { model, .. } = &*self.manifest;
        let sources = match &model.weights {
            run::Weights::Blob { sources, .. } => &sources[..],
            run::Weights::Seed { .. } => &[],
        };
        let what = match (form, self.manifest.lora()) {
            (ExportForm::Best | ExportForm::Adapter, Some(_)) => {
                save::What::Adapter { base: sources.first().cloned().unwrap_or_default() }
            }
            (ExportForm::Merged | ExportForm::Gguf, Some(_)) => save::What::Merged { frozen: self.frozen()? },
            (ExportForm::Best | ExportForm::Gguf, None) => save::What::Model,
            (ExportForm::Adapter | ExportForm::Merged, None) => {
                let why = "this run trains all weights of its model: there is no adapter, and nothing to merge";
                return Err(Refusal::Other { why: why.into() });
            }
        };
        let gguf = (form == ExportForm::Gguf).then(|| self.manifest.run.name.clone());
        Ok(save::Form { family: model.family, what, beside, gguf })
    }

    /// Where the frozen weights of each stage lie.
    fn frozen(&self) -> Result<save::OnShelf, Refusal> {
        let stages = 0..self.manifest.stages.count;
        let blobs: Vec<Digest> = stages.filter_map(|stage| self.manifest.frozen(stage)).collect();
        match blobs.iter().position(|blob| !self.shelf.has(*blob)) {
            None => Ok(save::OnShelf { shelf: self.shelf.clone(), blobs }),
            Some(stage) => Err(Refusal::Other {
                why: format!(
                    "the frozen weights of stage {stage} are not on this machine, but on that of the owner: export there, or \
                     here without --merge, then skein model merge"
                ),
            }),
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
        form: ExportForm,
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
        let work = collect_and_note(&self.orders, self.form(form)?, out, overwrite, notes);
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

/// Collects the weights of every stage and writes the folder `out`. `missed` hears of each replica that is not in it.
pub async fn collect_and_write(
    orders: &mpsc::Sender<node::Order>,
    form: save::Form,
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
    tokio::join!(collect_and_note(orders, form, out, overwrite, notes), told).0
}

/// As [`collect_and_write`]; `notes` hears how it goes on.
async fn collect_and_note(
    orders: &mpsc::Sender<node::Order>,
    form: save::Form,
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
        save::write(&path, &form, &collected.stages, overwrite)
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

/// What is continued, as the model reads it; of nothing a new line.
fn tokens_of(tokenizer: &Tokenizer, prompt: Prompt) -> Result<Vec<u32>, Refusal> {
    let coded = match prompt {
        Prompt::Tokens(tokens) => {
            let vocabulary = tokenizer.vocabulary();
            return match tokens.iter().find(|token| **token as usize >= vocabulary) {
                Some(token) => Err(Refusal::NoSuchToken { token: *token, vocabulary }),
                None => Ok(tokens),
            };
        }
        Prompt::Text(text) if text.is_empty() => tokenizer.encode("\n", Special::AsText, true),
        Prompt::Text(text) => tokenizer.encode(&text, Special::AsText, true),
        Prompt::Rendered(text) => tokenizer.encode(&text, Special::Parse, false),
    };
    coded.map_err(|error| Refusal::Other { why: error.to_string() })
}
