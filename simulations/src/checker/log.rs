//! Event logs of real processes: one JSON object a line, one file a peer.

use skein_protocol::event::Record;

use super::Line;

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
    fn merging_keeps_the_order_of_each_peer() {
        let lines = merge([vec![record(1, 5, 0), record(1, 3, 1)], vec![record(2, 4, 0)]]);
        let order: Vec<_> = lines.iter().map(|line| (line.record.peer.0[0], line.record.seq)).collect();
        assert_eq!(order, [(2, 0), (1, 0), (1, 1)]);
    }
}
