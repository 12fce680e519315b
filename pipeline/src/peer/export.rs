//! Collects the weights of every stage for an export: from each living replica, so that the reader gets their mean.
//!
//! One replica at a time, and the next when the reader has worked up the last: a model of many replicas does not fit the memory
//! of one peer. In: requests of the person, what became of a fetch. Out: one answer a replica.

use std::collections::VecDeque;

use skein_protocol::{Blob, Instant, Outbox, PeerId, Stage, hash::Digest, wire::state::Purpose};

use super::{
    Peer, Ticket, desk,
    io::{Exported, Output},
};

/// Replicas of a stage that are asked.
const REPLICAS_MAX: usize = 8;

/// Exports that are under way; the first of them is collected.
#[derive(Debug, Default)]
pub struct Export {
    open: VecDeque<Open>,
}

#[derive(Debug)]
struct Open {
    request: u64,
    stage: Stage,
    /// Replicas of `stage` that are still to be asked; nothing before they are looked up.
    replicas: Option<VecDeque<PeerId>>,
    /// The ticket of the fetch that is under way.
    fetching: Option<u64>,
}

impl Peer {
    pub(super) fn start_export(&mut self, now: Instant, request: u64, out: &mut Outbox<Output>) {
        self.export.open.push_back(Open { request, stage: 0, replicas: None, fetching: None });
        self.export_next(now, request, out);
    }

    /// Asks the next replica, if it is the turn of this export and nothing of it is on its way.
    pub(super) fn export_next(&mut self, now: Instant, request: u64, out: &mut Outbox<Output>) {
        let Some(open) = self.export.open.front_mut().filter(|open| open.request == request) else { return };
        if open.fetching.is_some() {
            return;
        }
        let stage = open.stage;
        // Those that serve it at this moment: an export takes long, and replicas come and go.
        let route = &self.route;
        let replicas = open.replicas.get_or_insert_with(|| route.replicas(stage).take(REPLICAS_MAX).collect());
        match replicas.pop_front() {
            None => self.answer_export(now, Exported::Nobody, out),
            Some(from) if from != self.me && !self.neighbours.is_up(from) => {
                self.answer_export(now, Exported::Missed { from, why: "it left".into() }, out);
            }
            Some(from) => self.fetch_for_export(now, stage, from, out),
        }
    }

    fn fetch_for_export(&mut self, now: Instant, stage: Stage, from: PeerId, out: &mut Outbox<Output>) {
        let ticket = self.ticket();
        self.tickets.insert(ticket, Ticket::Export { from });
        if let Some(open) = self.export.open.front_mut() {
            open.fetching = Some(ticket);
        }
        let most = crate::model::cost::state_bytes_max(&self.config.manifest, stage);
        let mut desk = desk!(self, now, out);
        self.transfer.fetch(&mut desk, ticket, from, stage, Purpose::Export, None, most);
    }

    pub(super) fn on_exported(
        &mut self,
        now: Instant,
        from: PeerId,
        parts: Result<(Vec<Blob>, Digest), String>,
        out: &mut Outbox<Output>,
    ) {
        let copy = match parts {
            Ok((parts, root)) => Exported::Weights { from, parts, root },
            Err(why) => Exported::Missed { from, why },
        };
        self.answer_export(now, copy, out);
    }

    /// Tells the reader of the first export what became of the replica that was asked, and turns to what comes after it.
    fn answer_export(&mut self, now: Instant, copy: Exported, out: &mut Outbox<Output>) {
        let Some(open) = self.export.open.front_mut() else { return };
        open.fetching = None;
        let (request, stage) = (open.request, open.stage);
        let last = open.replicas.as_ref().is_none_or(VecDeque::is_empty);
        if last {
            (open.stage, open.replicas) = (stage + 1, None);
        }
        out.push(Output::Exported { request, stage, copy, last });
        if last && stage == self.rules.last {
            self.end_export(now, request, out);
        }
    }

    /// Forgets an export. One that waited behind it begins.
    pub(super) fn end_export(&mut self, now: Instant, request: u64, out: &mut Outbox<Output>) {
        let Some(at) = self.export.open.iter().position(|open| open.request == request) else { return };
        if let Some(ticket) = self.export.open.remove(at).and_then(|open| open.fetching) {
            self.tickets.remove(&ticket);
            let mut desk = desk!(self, now, out);
            self.transfer.cancel(&mut desk, ticket);
        }
        if let Some(next) = self.export.open.front().map(|open| open.request) {
            self.export_next(now, next, out);
        }
    }
}
