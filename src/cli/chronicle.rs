//! What happens in a swarm, an event a line and a column a peer: simulated, or read from the logs of real peers. In: events. Out:
//! lines.

use std::{collections::BTreeMap, time::Duration};

use skein_protocol::{
    MicroBatchId, PeerId,
    event::{Event, Safety},
};
use skein_simulations::checker::Line;

/// Peers that get a column; with more, lines name them only.
const COLUMNS: usize = 40;

/// Writes lines.
pub struct Chronicle {
    /// In the order of their columns.
    names: BTreeMap<PeerId, (usize, String)>,
    has_losses: bool,
}

impl Chronicle {
    pub fn new(peers: impl IntoIterator<Item = (PeerId, String)>) -> Chronicle {
        let names = peers.into_iter().enumerate().map(|(i, (peer, name))| (peer, (i, name))).collect();
        Chronicle { names, has_losses: true }
    }

    /// Of peers that learn nothing: what they say of a loss is made up, and is not written.
    pub fn without_losses(self) -> Chronicle {
        Chronicle { has_losses: false, ..self }
    }

    fn name(&self, peer: PeerId) -> String {
        self.names.get(&peer).map_or_else(|| peer.short(), |(_, name)| name.clone())
    }

    /// `at`: since the beginning.
    pub fn line(&self, at: Duration, line: &Line) -> String {
        let me = line.record.peer;
        let columns = match self.names.get(&me) {
            Some((place, _)) if self.names.len() <= COLUMNS => {
                let mark = |i: usize| if i == *place { '●' } else { '·' };
                format!("{}  ", (0..self.names.len()).map(mark).collect::<String>())
            }
            _ => String::new(),
        };
        format!("{}  {columns}{:<4} {}", clock(at), self.name(me), self.words(&line.record.event))
    }

    fn words(&self, event: &Event) -> String {
        let name = |peer: &PeerId| self.name(*peer);
        match event {
            Event::Started { incarnation, .. } => format!("starts, incarnation {incarnation}"),
            Event::PeerUp { peer } => format!("is connected to {}", name(peer)),
            Event::PeerLost { peer, why, .. } => format!("loses {}: {why}", name(peer)),
            Event::Minted { id, .. } => format!("begins {}", short(id)),
            Event::Completed { id, loss, tokens, path } => {
                let path: Vec<String> = path.iter().map(|hop| name(&hop.peer)).collect();
                let loss = if self.has_losses { format!(", loss {loss:.3}") } else { String::new() };
                format!("completes {} by {}: {tokens} tokens{loss}", short(id), path.join(" "))
            }
            Event::Measured { id, loss, .. } => format!("measures {} of held-out data: loss {loss:.3}", short(id)),
            Event::Voided { id, stage, why } => format!("gives {} up at stage {stage}: {why}", short(id)),
            Event::Resent { id, stage, from, to, why } => {
                format!("sends {} of stage {stage} again, to {} rather than {}: {why}", short(id), name(to), name(from))
            }
            Event::SentForward { id, stage, to, bytes, .. } => {
                format!("sends {} on from stage {stage} to {}, {bytes} bytes", short(id), name(to))
            }
            Event::SentBackward { id, stage, to, bytes, .. } => {
                format!("sends the gradient of {} back from stage {stage} to {}, {bytes} bytes", short(id), name(to))
            }
            Event::Recoded { stage, to, codec, .. } => {
                format!("sends what stage {stage} has for {} as {codec:?} from now on", name(to))
            }
            Event::Accepted { id, stage, from } => {
                format!("accepts {} at stage {stage} from {}", short(id), name(from))
            }
            Event::Added { id, stage, staleness, .. } => {
                format!("adds {} at stage {stage}, {staleness} steps late", short(id))
            }
            Event::Refused { id, stage, staleness, why } => {
                format!("refuses {} at stage {stage}, {staleness} steps late: {why}", short(id))
            }
            Event::Answered { id, stage, to } => {
                format!("answers {} of stage {stage} to {} from what it kept", short(id), name(to))
            }
            Event::Stepped { stage, own_step, run_step, micro_batches, .. } => {
                format!("steps stage {stage} to {own_step} with {micro_batches} (run step {run_step})")
            }
            Event::Safe { stage, own_step, how } => {
                let how = match how {
                    Safety::Saved => "saved",
                    Safety::Averaged => "averaged",
                    Safety::Copied => "copied",
                };
                format!("has stage {stage} safe up to step {own_step}: {how}")
            }
            Event::Perished { stage, ids, why } => {
                format!("loses {} open gradients of stage {stage}: {why}", ids.len())
            }
            Event::Fenced { old, new, why } => format!("is incarnation {new} now, no more {old}: {why}"),
            Event::Round { stage, round, partner, outcome, .. } => {
                let with = partner.as_ref().map_or("nobody".into(), name);
                format!("ends round {round} of stage {stage} with {with}: {outcome:?}")
            }
            Event::Joining { stage, why } => format!("wants stage {stage}: {why}"),
            Event::Shelved { blob, from, bytes } => {
                format!("has {} of the run from {}, {bytes} bytes", blob.short(8), name(from))
            }
            Event::Fetched { version, from, bytes, .. } => {
                let from = from.as_ref().map_or("its own disk".into(), name);
                format!("has fetched stage {} from {from}, {bytes} bytes", version.stage)
            }
            Event::Serving { stage, version } => {
                format!("serves stage {stage}, round {} step {}", version.round, version.own_step)
            }
            Event::Suspected { peer, why } => format!("suspects {}: {why}", name(peer)),
            Event::StageLeft { stage } => format!("serves stage {stage} no more"),
            Event::StageEmpty { stage } => format!("sees nobody at stage {stage}"),
            Event::StageBack { stage, peer } => format!("sees stage {stage} back, by {}", name(peer)),
            Event::Restored { stage, from_seed, .. } => {
                format!("has restored stage {stage} from {}", if *from_seed { "the seed" } else { "a snapshot" })
            }
            Event::Draining => "begins to leave".into(),
            Event::Drained => "is gone, politely".into(),
            Event::Saved { version, bytes, .. } => format!("has saved stage {}, {bytes} bytes", version.stage),
            Event::Held { version, by, .. } => {
                format!("has a snapshot of stage {} kept by {}", version.stage, name(by))
            }
            Event::Waiting { what } => format!("waits: {what}"),
            Event::ClocksApart { peer, apart_ms } => format!("has a clock {apart_ms} ms from that of {}", name(peer)),
            Event::Penalised { peer, severity, why } => format!("blames {} ({severity:?}): {why}", name(peer)),
            Event::Traffic { lane, sent, received } => format!("{lane:?}: {sent} bytes sent, {received} received"),
            Event::RunEnded { why } => format!("sees the run end: {why}"),
        }
    }
}

fn short(id: &MicroBatchId) -> String {
    format!("{}.{}", id.step, id.index)
}

/// Hours, minutes, seconds and milliseconds.
/// `00:01:01.250`
pub fn clock(at: Duration) -> String {
    let (seconds, ms) = (at.as_secs(), at.subsec_millis());
    format!("{:02}:{:02}:{:02}.{ms:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use skein_protocol::event::Record;

    use super::*;

    #[test]
    fn a_line_has_a_column_for_each_peer() {
        let peers = [1, 2, 3].map(|n| (PeerId([n; 32]), format!("p{n}")));
        let chronicle = Chronicle::new(peers);
        let event = Event::Suspected { peer: PeerId([3; 32]), why: "silent".into() };
        let line = Line { at: 0, record: Record { at: 0, utc: 0, peer: PeerId([2; 32]), seq: 1, event } };
        assert_eq!(chronicle.line(Duration::from_millis(61_250), &line), "00:01:01.250  ·●·  p2   suspects p3: silent");
    }
}
