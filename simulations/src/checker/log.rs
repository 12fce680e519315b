//! Event logs of real processes: one JSON object a line, one file a peer.

use std::collections::{BTreeMap, BTreeSet};

use skein_protocol::event::{Event, Record};

use super::{Kill, Line};

#[derive(Debug, thiserror::Error)]
#[error("line {line} is no event: {why}")]
pub struct BadLine {
    pub line: usize,
    pub why: String,
}

/// Reads one log. A last line without its end is what a killed process leaves: it is dropped.
pub fn read(text: &str) -> Result<Vec<Record>, BadLine> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(i, line)| serde_json::from_str(line).map_err(|error| BadLine { line: i + 1, why: error.to_string() }))
        .collect()
}

/// Merges the logs of many peers by their clocks (UTC). The order within one peer is kept, whatever its clock did.
pub fn merge(logs: impl IntoIterator<Item = Vec<Record>>) -> Vec<Line> {
    let mut lines = Vec::new();
    for log in logs {
        let mut latest = 0;
        for record in log {
            latest = record.utc.saturating_mul(1_000_000).max(latest);
            lines.push(Line { at: latest, record });
        }
    }
    // Stable: lines of one peer at one time keep their order.
    lines.sort_by_key(|line| line.at);
    lines
}

/// Whose process was ended, and when: no log says that of itself. Others lost the peer after its last word, it did not leave politely,
/// it never spoke again, and nobody met it again later. The clocks of the machines are taken as equal: one that is behind can make a
/// death, or hide one. Whoever knows of the deaths that it caused, as the demo does, knows the same of them.
pub fn deaths(lines: &[Line]) -> Vec<Kill> {
    let mut last = BTreeMap::new();
    let mut left = BTreeSet::new();
    for Line { at, record } in lines {
        last.insert(record.peer, *at);
        match record.event {
            Event::Drained => drop(left.insert(record.peer)),
            Event::Started { .. } => drop(left.remove(&record.peer)),
            _ => {}
        }
    }
    let mut dead = BTreeSet::new();
    for Line { at, record } in lines {
        match &record.event {
            Event::PeerLost { peer, .. } if last.get(peer).is_some_and(|last| last < at) && !left.contains(peer) => {
                dead.insert(*peer);
            }
            Event::PeerUp { peer } => drop(dead.remove(peer)),
            _ => {}
        }
    }
    dead.into_iter().map(|peer| Kill { peer, at: last[&peer] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_protocol::{PeerId, event::Event};

    fn record(peer: u8, utc: u64, seq: u64) -> Record {
        Record { at: 0, utc, peer: PeerId([peer; 32]), seq, event: Event::PeerUp { peer: PeerId([9; 32]) } }
    }

    #[test]
    fn a_log_is_read_back_and_a_torn_last_line_is_dropped() {
        let records = vec![record(1, 5, 0), record(1, 7, 1)];
        let mut text: String =
            records.iter().map(|record| format!("{}\n", serde_json::to_string(record).unwrap())).collect();
        assert_eq!(read(&text).unwrap(), records);
        text.push_str("{\"at\":1,\"ut");
        assert_eq!(read(&text).unwrap(), records);
        assert_eq!(read("nonsense\n").unwrap_err().line, 1);
    }

    #[test]
    fn who_was_lost_after_its_last_word_died_and_who_left_or_spoke_again_did_not() {
        let said = |peer, utc, event| Record { event, ..record(peer, utc, 0) };
        let lost = |peer| Event::PeerLost { peer: PeerId([peer; 32]), incarnation: 1, why: String::new() };
        let lines = merge([
            vec![said(1, 10, lost(2)), said(1, 20, lost(3)), said(1, 30, lost(4)), said(1, 40, lost(5))],
            vec![record(2, 9, 0)],
            vec![record(3, 5, 0), said(3, 9, Event::Drained)],
            vec![record(4, 9, 0), record(4, 31, 1)],
            // A later life of a peer that had left.
            vec![said(5, 5, Event::Drained), said(5, 9, Event::Started { peer: PeerId([5; 32]), incarnation: 2 })],
        ]);
        let kill = |peer, at: u64| Kill { peer: PeerId([peer; 32]), at: at * 1_000_000 };
        assert_eq!(deaths(&lines), [kill(2, 9), kill(5, 9)]);
    }

    #[test]
    fn who_was_met_again_after_it_was_lost_did_not_die_and_who_was_lost_after_that_did() {
        let said = |peer, utc, event| Record { event, ..record(peer, utc, 0) };
        let lost = |peer| Event::PeerLost { peer: PeerId([peer; 32]), incarnation: 1, why: String::new() };
        let up = |peer| Event::PeerUp { peer: PeerId([peer; 32]) };
        let lines = merge([
            vec![said(1, 10, lost(2)), said(1, 11, lost(3)), said(1, 30, lost(3)), said(1, 31, lost(4))],
            vec![record(2, 9, 0)],
            vec![record(3, 9, 0)],
            vec![record(4, 9, 0)],
            // By somebody else than who had lost them; of the last one before it was lost.
            vec![said(5, 12, up(2)), said(5, 20, up(3)), said(5, 21, up(4))],
        ]);
        let kill = |peer, at: u64| Kill { peer: PeerId([peer; 32]), at: at * 1_000_000 };
        assert_eq!(deaths(&lines), [kill(3, 9), kill(4, 9)]);
    }

    #[test]
    fn merging_keeps_the_order_of_each_peer() {
        let lines = merge([vec![record(1, 5, 0), record(1, 3, 1)], vec![record(2, 4, 0)]]);
        let order: Vec<_> = lines.iter().map(|line| (line.record.peer.0[0], line.record.seq)).collect();
        assert_eq!(order, [(2, 0), (1, 0), (1, 1)]);
    }
}
