//! One match over everything that a peer can ask of its driver. None of it waits for anybody.

use std::{collections::BTreeSet, sync::PoisonError};

use bytes::Bytes;
use libp2p::Multiaddr;
use skein_pipeline::peer::io::{Command, Exported, Input, Output};
use skein_protocol::{
    Blob, JobId, Lane, PeerId, Stage, Version,
    event::Event,
    hash::{self, Digest},
    wire::Frame,
};
use tokio::task::spawn_blocking;

use super::{
    NodeError, admit,
    blobs::{Kind, Misused},
    driver::{Driver, Ended},
    export::{Arrived, Weights},
    generate::logits_of,
};
use crate::net::SendError;

impl Driver {
    pub(super) fn perform(&mut self, output: Output) {
        match output {
            Output::Send { to, lane, frame, body } => self.send(to, lane, frame, body),
            Output::Dial { peer, addresses } => self.dial(peer, &addresses),
            Output::Hangup { peer } => self.parts.net.hangup(peer),
            Output::Provide { key } => self.parts.net.provide(key),
            Output::Lookup { request, key } => self.parts.net.lookup(request, key),
            Output::Compute { job, job_spec } => self.compute(job, job_spec),
            Output::Records { request, index } => self.records(request, index),
            Output::Incarnation => self.incarnate(),
            Output::Slice { blob, offset, new } => self.checked(self.parts.blobs.slice(blob, offset, new)),
            Output::Release { blob } => self.checked(self.parts.blobs.release(blob)),
            Output::Held { version, root, parts } => self.lay_down(version, root, parts),
            Output::Shelve { blob, parts } => self.shelve(blob, parts),
            Output::Active { peers } => self.parts.net.active(peers.into_iter().collect::<BTreeSet<_>>()),
            Output::Blame { peer, severity, why } => self.blame(peer, severity, why),
            Output::Exported { request, stage, copy, last } => self.exported(request, stage, copy, last),
            Output::Generated { session, logits } => self.generated(session, logits),
            Output::Emit(event) => {
                if let Event::Waiting { what } = &event {
                    self.waiting = Some((self.now, what.clone()));
                }
                self.emit(event);
            }
            Output::Drained => self.end = Some(Ok(Ended::Drained)),
        }
    }

    fn send(&mut self, to: PeerId, lane: Lane, frame: Frame, body: Option<Blob>) {
        let bytes = match body.map(|blob| self.parts.blobs.get(blob)) {
            None => None,
            Some(Ok(bytes)) => Some(bytes),
            Some(Err(misused)) => return self.checked(Err(misused)),
        };
        if to == self.parts.peer.me() {
            let kind = admit::kind_of(&frame);
            let body = bytes.map(|bytes| self.parts.blobs.put(bytes, kind));
            return self.again.push_back(Input::Frame { from: to, frame, body });
        }
        // Whatever was said to have happened before this frame is on record before anybody can know of it.
        self.parts.log.flush();
        match self.parts.net.send(to, lane, Bytes::from(frame.encode()), bytes) {
            Ok(()) => {}
            Err(SendError::Congested) => self.again.push_back(Input::Congested { peer: to, lane }),
            // Its `Lost` is on its way.
            Err(SendError::NotConnected) => {}
            Err(SendError::TooLarge) => tracing::error!(?lane, "a message exceeds the limits and was not sent"),
        }
    }

    fn dial(&mut self, peer: PeerId, addresses: &[String]) {
        let addresses: Vec<Multiaddr> = addresses.iter().filter_map(|text| text.parse().ok()).collect();
        self.parts.net.dial(peer, addresses);
    }

    fn compute(&mut self, job: JobId, spec: skein_pipeline::job::Job) {
        if !self.parts.worker.assign(job, spec) {
            self.end = Some(Err(NodeError::Bug("the worker's thread is gone".into())));
        }
    }

    fn records(&mut self, request: u64, index: u64) {
        let fact = match self.parts.feed.as_ref().and_then(|feed| feed.records(index)) {
            Some((tokens, labels, starts)) => {
                let (tokens, labels) =
                    (self.parts.blobs.put(tokens, Kind::Work), self.parts.blobs.put(labels, Kind::Work));
                Input::Records { request, tokens, labels, starts }
            }
            None => Input::RecordsEnded,
        };
        self.again.push_back(fact);
    }

    /// A slow disk may take longer than the pause after which a peer fences itself: another thread waits for it, or each fence
    /// would be the reason of the next. Whoever asks again meanwhile means the same number.
    fn incarnate(&mut self) {
        if self.incarnating.is_none() {
            let home = self.parts.home.clone();
            self.incarnating = Some(spawn_blocking(move || home.next_incarnation()));
        }
    }

    fn exported(&mut self, request: u64, stage: Stage, copy: Exported, last: bool) {
        let arrived = match copy {
            Exported::Weights { from, parts, root } => {
                Arrived::Weights { from, weights: Weights { parts: self.take(parts), root } }
            }
            Exported::Missed { from, why } => Arrived::Missed { from, why },
            Exported::Nobody => Arrived::Nobody,
        };
        if self.exports.on_arrived(request, stage, arrived, last) {
            self.again.push_back(Input::Command(Command::ExportNext { request }));
        }
    }

    /// Lays a snapshot on the disk and lets its memory go. Where that does not work it stays in memory.
    fn lay_down(&mut self, version: Version, root: Digest, blobs: Vec<Blob>) {
        let parts: Vec<Bytes> = blobs.iter().filter_map(|blob| self.parts.blobs.get(*blob).ok()).collect();
        if parts.len() < blobs.len() {
            return;
        }
        let (store, held) = (self.parts.held.clone(), self.parts.blobs.clone());
        self.laying.retain(|laying| !laying.is_finished());
        self.laying.push(spawn_blocking(move || {
            let laid = store.lock().unwrap_or_else(PoisonError::into_inner).lay_down(version, root, &parts);
            match laid {
                Ok(mut rest) => {
                    for blob in blobs {
                        held.moved_to_file(blob, rest.split_to(blob.len as usize));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, stage = version.stage, "a snapshot held for others stays in memory")
                }
            }
        }));
    }

    /// Compares what arrived with its hash, and lays it on the disk. Where that does not work it stays in memory.
    fn shelve(&mut self, blob: Digest, handles: Vec<Blob>) {
        let parts: Vec<Bytes> = handles.iter().filter_map(|handle| self.parts.blobs.get(*handle).ok()).collect();
        let (shelf, held, compared) = (self.parts.home.shelf(), self.parts.blobs.clone(), self.compared.0.clone());
        self.laying.retain(|laying| !laying.is_finished());
        self.laying.push(spawn_blocking(move || {
            let pieces: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
            let is_right = hash::blob(&pieces) == blob;
            if is_right {
                match shelf.put(blob, &pieces).and_then(|()| shelf.get(blob)) {
                    Ok(Some(mut rest)) => {
                        for handle in handles {
                            held.moved_to_file(handle, rest.split_to(handle.len as usize));
                        }
                    }
                    Ok(None) => tracing::warn!("the disk did not give back what was written: it stays in memory"),
                    Err(error) => tracing::warn!(%error, "what the run names by its hash stays in memory"),
                }
            }
            // The driver may have ended.
            let _ = compared.send((blob, is_right));
        }));
    }

    fn generated(&mut self, session: u64, logits: Option<Blob>) {
        let logits = logits.and_then(|blob| self.take(vec![blob]).pop()).and_then(|bytes| logits_of(&bytes));
        // Of no finite value nothing can be drawn.
        let logits = logits.filter(|logits| logits.iter().any(|logit| logit.is_finite()));
        for next in self.sessions.on_logits(self.now, session, logits.as_deref()) {
            let command = self.command_of(next);
            self.again.push_back(Input::Command(command));
        }
    }

    /// Bytes of handles that are now the driver's.
    fn take(&mut self, blobs: Vec<Blob>) -> Vec<Bytes> {
        let taken = blobs.into_iter().map(|blob| self.parts.blobs.take(blob));
        let (good, bad): (Vec<_>, Vec<_>) = taken.partition(Result::is_ok);
        for misused in bad {
            self.checked(misused.map(drop));
        }
        good.into_iter().flatten().collect()
    }

    /// A wrong use of a handle is a bug of ours that must be seen, and no reason to stop.
    fn checked(&self, outcome: Result<(), Misused>) {
        if let Err(misused) = outcome {
            tracing::error!(%misused, "the peer used a handle that it does not have");
        }
    }
}
