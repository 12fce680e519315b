//! Collects the weights of every stage for an export: from each living replica, so that the reader gets their mean.

use std::collections::BTreeMap;

use skein_protocol::{Blob, Instant, Outbox, PeerId, Stage, hash::Digest, wire::state::Purpose};

use super::{Peer, Ticket, desk, io::Output};

/// Replicas of a stage that are asked.
const REPLICAS_MAX: usize = 8;

/// Answers that are still to come, a request and stage.
#[derive(Debug, Default)]
pub struct Export {
    waiting: BTreeMap<(u64, Stage), usize>,
}

impl Peer {
    pub(super) fn start_export(&mut self, now: Instant, request: u64, out: &mut Outbox<Output>) {
        for stage in 0..=self.rules.last {
            let replicas: Vec<PeerId> = self.route.replicas(stage).take(REPLICAS_MAX).collect();
            if replicas.is_empty() {
                out.push(Output::Exported { request, stage, parts: None, last: true });
                continue;
            }
            let most = crate::model::cost::state_bytes_max(&self.config.manifest, stage);
            self.export.waiting.insert((request, stage), replicas.len());
            for from in replicas {
                let ticket = self.ticket();
                self.tickets.insert(ticket, Ticket::Export { request, stage });
                let mut desk = desk!(self, now, out);
                self.transfer.fetch(&mut desk, ticket, from, stage, Purpose::Export, None, most);
            }
        }
    }

    pub(super) fn on_exported(
        &mut self,
        request: u64,
        stage: Stage,
        parts: Option<(Vec<Blob>, Digest)>,
        out: &mut Outbox<Output>,
    ) {
        let left = self.export.waiting.get_mut(&(request, stage)).map_or(0, |left| {
            *left = left.saturating_sub(1);
            *left
        });
        if left == 0 {
            self.export.waiting.remove(&(request, stage));
        }
        out.push(Output::Exported { request, stage, parts, last: left == 0 });
    }
}
