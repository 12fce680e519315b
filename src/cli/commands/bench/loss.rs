//! What codecs cost a run in loss: the same training with each, by the worker that peers use, in one process. In: a manifest,
//! codecs, a text. Out: the loss of each step. Stages hand their blobs to each other as they lie; replicas hold their rounds in
//! turn. Nothing but the codecs differs between two runs of a seed.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use skein_pipeline::{
    job::{Coding, Done, Job, RoundPartner},
    worker::{Blobs, Encoder, Engines, SaveError, Saves, Worker},
};
use skein_protocol::{Blob, Manifest, Stage, Version, hash::Digest, run::Codec, wire::Starts};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    pub forward: Codec,
    pub backward: Codec,
    /// The codec of the differences of two replicas that hold rounds, and whether what it loses is added to the next; nothing:
    /// one replica.
    pub averaging: Option<(Codec, bool)>,
}

/// The mean loss of each step, nats a token, over all replicas.
///
/// # Errors
/// What a worker could not do.
pub fn learn<M: Engines>(
    manifest: &Manifest,
    recipe: Recipe,
    text: &[u8],
    steps: u32,
    engines: impl Fn() -> M,
) -> Result<Vec<f64>, String> {
    let mut manifest = manifest.clone();
    (manifest.codecs.forward, manifest.codecs.backward) = (vec![recipe.forward], vec![recipe.backward]);
    if let Some((codec, fed_back)) = recipe.averaging {
        (manifest.averaging.codec, manifest.codecs.error_feedback) = (codec, fed_back);
    }
    let manifest = Arc::new(manifest);
    let count = if recipe.averaging.is_some() { 2 } else { 1 };
    let replicas = (0..count).map(|_| Replica::new(manifest.clone(), recipe, engines()));
    let mut replicas = replicas.collect::<Result<Vec<_>, _>>()?;
    let mut records = Records { text, at: 0, manifest: &manifest };
    let mut losses = Vec::new();
    for step in 1..=steps {
        let mut sum = (0.0, 0);
        for replica in &mut replicas {
            for _ in 0..manifest.train.micro_batches_per_step {
                let (loss, tokens) = replica.train(records.next()?)?;
                sum = (sum.0 + f64::from(loss), sum.1 + tokens);
            }
            replica.step(u64::from(step) * manifest.samples_per_step())?;
        }
        losses.push(sum.0 / f64::from(sum.1.max(1)));
        if let [a, b] = &mut replicas[..]
            && step.is_multiple_of(manifest.averaging.every)
        {
            for stage in 0..manifest.stages.count {
                average(a, b, stage, step)?;
            }
        }
    }
    Ok(losses)
}

/// Token ids and labels, micro-batch by micro-batch.
struct Records<'a> {
    text: &'a [u8],
    at: usize,
    manifest: &'a Manifest,
}

impl Records<'_> {
    fn next(&mut self) -> Result<[Bytes; 2], String> {
        let (length, count) = (self.manifest.train.sequence as usize, self.manifest.train.micro_batch as usize);
        let words = |bytes: &[u8]| bytes.iter().flat_map(|byte| u32::from(*byte).to_le_bytes()).collect::<Vec<u8>>();
        let (mut tokens, mut labels) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let piece = self.text.get(self.at..self.at + length + 1).ok_or("the text is too short")?;
            tokens.extend(words(&piece[..length]));
            labels.extend(words(&piece[1..]));
            self.at += length;
        }
        Ok([tokens.into(), labels.into()])
    }
}

/// All stages of one replica.
struct Replica<M: Engines> {
    manifest: Arc<Manifest>,
    worker: Worker<M>,
    encoder: Encoder,
    blobs: Shelf,
    forward: Coding,
    backward: Coding,
}

impl<M: Engines> Replica<M> {
    fn new(manifest: Arc<Manifest>, recipe: Recipe, engines: M) -> Result<Self, String> {
        let coding = |codec| Coding { codec, zstd: false };
        let (forward, backward) = (coding(recipe.forward), coding(recipe.backward));
        let (worker, encoder) = (Worker::new(manifest.clone(), engines), Encoder::default());
        let mut replica = Replica { manifest, worker, encoder, blobs: Shelf::default(), forward, backward };
        for stage in 0..replica.manifest.stages.count {
            replica.run(Job::Create { stage })?;
        }
        Ok(replica)
    }

    fn run(&mut self, job: Job) -> Result<Done, String> {
        match self.worker.run_whole(&mut self.encoder, job, &mut self.blobs, &mut Nowhere) {
            Done::BadInput { why } | Done::NotFinite { why } | Done::Failed { why, .. } => Err(why),
            done => Ok(done),
        }
    }

    /// One micro-batch there and back: the sum of its losses, and its tokens.
    fn train(&mut self, [tokens, labels]: [Bytes; 2]) -> Result<(f32, u32), String> {
        const KEY: u64 = 1;
        let last = self.manifest.last_stage();
        let (mut input, labels) = (self.blobs.put(tokens), self.blobs.put(labels));
        for stage in 0..last {
            let (starts, coding) = (Starts::default(), self.forward);
            let done = self.run(Job::Forward { stage, key: KEY, input, starts, coding })?;
            let Done::Forwarded { output, .. } = done else { return Err(format!("{done:?}")) };
            input = output;
        }
        let (starts, coding) = (Starts::default(), self.backward);
        let mut done = self.run(Job::Loss { stage: last, key: KEY, input, starts, labels, weight: 1.0, coding })?;
        let Done::Backed { loss, tokens, .. } = done else { return Err(format!("{done:?}")) };
        for stage in (0..last).rev() {
            let Done::Backed { gradient: Some(gradient), .. } = done else { return Err(format!("{done:?}")) };
            done = self.run(Job::Backward { stage, key: KEY, gradient, weight: 1.0, coding })?;
        }
        for stage in 0..=last {
            self.run(Job::Drop { stage, keys: vec![KEY] })?;
        }
        self.blobs.0.clear();
        Ok((loss, tokens))
    }

    fn step(&mut self, samples: u64) -> Result<(), String> {
        (0..self.manifest.stages.count).try_for_each(|stage| self.run(Job::Step { stage, samples }).map(drop))
    }

    /// The tensors of a round, as its partner gets them.
    fn freeze(&mut self, stage: Stage, round: u32) -> Result<Bytes, String> {
        let codec = self.manifest.averaging.codec;
        let done = self.run(Job::RoundSnapshot { stage, round, codec })?;
        let Done::Encoded { blob, .. } = done else { return Err(format!("{done:?}")) };
        self.blobs.get(blob).ok_or("the tensors of the round are gone".into())
    }

    fn adopt(&mut self, stage: Stage, round: u32, theirs: Bytes, first: bool) -> Result<(), String> {
        let tensors = self.blobs.put(theirs);
        let partner = RoundPartner { tensors, my_samples: 1, their_samples: 1, first, copy: false };
        self.run(Job::RoundPrepare { stage, round, partner })?;
        self.run(Job::RoundAdopt { stage, round })?;
        self.blobs.0.clear();
        Ok(())
    }
}

/// One round of two replicas of a stage.
fn average<M: Engines>(a: &mut Replica<M>, b: &mut Replica<M>, stage: Stage, round: u32) -> Result<(), String> {
    let (of_a, of_b) = (a.freeze(stage, round)?, b.freeze(stage, round)?);
    a.adopt(stage, round, of_b, true)?;
    b.adopt(stage, round, of_a, false)
}

#[derive(Default)]
struct Shelf(BTreeMap<u64, Bytes>);

impl Blobs for Shelf {
    fn get(&self, blob: Blob) -> Option<Bytes> {
        self.0.get(&blob.id).cloned()
    }

    fn put(&mut self, bytes: Bytes) -> Blob {
        let id = self.0.last_key_value().map_or(0, |(id, _)| id + 1);
        let blob = Blob { id, len: bytes.len() as u64 };
        self.0.insert(id, bytes);
        blob
    }
}

struct Nowhere;

impl Saves for Nowhere {
    fn save(&mut self, _: Version, _: Digest, _: &[u8]) -> Result<(), SaveError> {
        Err(SaveError { why: "nothing is saved here".into(), disk_full: false })
    }
}
