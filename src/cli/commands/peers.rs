//! `skein peers`: whom the peer that runs here knows, one line a peer and stage.

use std::cmp::Ordering;

use serde_json::json;

use super::ask;
use crate::{
    cli::{
        args::{self, PeerOrder},
        context::Context,
        failure::Report,
        petname,
        show::{Count, Peer},
        table::{Column, Table},
    },
    watch::{PeerStage, PeerState},
};

pub fn run(args: &args::Peers, context: &Context) -> Result<u8, Report> {
    let mut peers = ask::client(context)?.peers()?;
    if let Some(stage) = args.stage {
        peers.retain(|peer| peer.stages.iter().any(|serves| serves.stage == stage));
    }
    peers.sort_by(|a, b| order(args.sort, a, b));
    if context.out.style().json {
        context.out.document("peers", &json!({ "peers": peers }));
        return Ok(0);
    }
    if peers.is_empty() {
        context.out.note("no other peer is known");
    }
    context.out.table(&table(&peers, args));
    Ok(0)
}

fn table(peers: &[PeerState], args: &args::Peers) -> Table {
    let (left, right) = (Column::Left, Column::Right);
    let mut columns = vec![left("PEER"), left("STAGE"), left("STATE"), right("TOK/S"), right("STEP"), right("ROUND")];
    columns.extend([right("RTT"), left("PATH")]);
    if args.wide {
        columns.push(left("ADDRESS"));
    }
    let mut table = Table::new(columns);
    for peer in peers {
        let stages: Vec<&PeerStage> =
            peer.stages.iter().filter(|serves| args.stage.is_none_or(|stage| stage == serves.stage)).collect();
        if stages.is_empty() {
            table.row(row(peer, None, args.wide));
        }
        for stage in stages {
            table.row(row(peer, Some(stage), args.wide));
        }
    }
    table
}

fn row(peer: &PeerState, stage: Option<&PeerStage>, wide: bool) -> Vec<String> {
    let nothing = || "-".to_string();
    let state = match stage {
        Some(stage) => stage.state.clone(),
        None if peer.connected => "connected".into(),
        None => "known".into(),
    };
    let mut cells = vec![
        name(peer, wide),
        stage.map_or_else(nothing, |stage| stage.stage.to_string()),
        state,
        stage.map_or_else(nothing, |stage| Count(stage.tokens_per_s.max(0.0).round() as u64).to_string()),
        stage.map_or_else(nothing, |stage| Count(stage.own_step.into()).to_string()),
        stage.map_or_else(nothing, |stage| Count(stage.round.into()).to_string()),
        peer.rtt_ms
            .map_or_else(nothing, |rtt| if rtt < 10.0 { format!("{rtt:.1} ms") } else { format!("{rtt:.0} ms") }),
        if peer.path.is_empty() { nothing() } else { peer.path.clone() },
    ];
    if wide {
        cells.push(if peer.address.is_empty() { nothing() } else { peer.address.clone() });
    }
    cells
}

/// The label that a peer gave itself is only a claim: part of its id stands beside it.
fn name(peer: &PeerState, wide: bool) -> String {
    let label = if peer.name.is_empty() { petname::of(&peer.peer) } else { peer.name.clone() };
    if wide {
        format!("{label} {}", peer.peer)
    } else if peer.name.is_empty() {
        Peer(peer.peer).to_string()
    } else {
        format!("{label} {}", peer.peer.short())
    }
}

/// The most first for speed; unknown last.
fn order(by: PeerOrder, a: &PeerState, b: &PeerState) -> Ordering {
    let stage = |peer: &PeerState| peer.stages.iter().map(|serves| serves.stage).min().unwrap_or(u16::MAX);
    let speed = |peer: &PeerState| peer.stages.iter().map(|serves| serves.tokens_per_s).sum::<f64>();
    let rtt = |peer: &PeerState| peer.rtt_ms.unwrap_or(f64::INFINITY);
    let name = |peer: &PeerState| if peer.name.is_empty() { petname::of(&peer.peer) } else { peer.name.clone() };
    let first = match by {
        PeerOrder::Stage => stage(a).cmp(&stage(b)),
        PeerOrder::Tokens => speed(b).total_cmp(&speed(a)),
        PeerOrder::Rtt => rtt(a).total_cmp(&rtt(b)),
        PeerOrder::Name => name(a).cmp(&name(b)),
    };
    first.then_with(|| a.peer.cmp(&b.peer))
}

#[cfg(test)]
mod tests {
    use skein_protocol::PeerId;

    use super::*;

    fn peer(n: u8, stage: Option<u16>, tokens_per_s: f64, rtt_ms: Option<f64>) -> PeerState {
        let stages =
            stage.map(|stage| PeerStage { stage, state: "serving".into(), round: 1, own_step: 20, tokens_per_s });
        PeerState {
            peer: PeerId([n; 32]),
            name: String::new(),
            connected: true,
            path: "direct".into(),
            address: String::new(),
            rtt_ms,
            stages: stages.into_iter().collect(),
        }
    }

    fn args() -> args::Peers {
        args::Peers { wide: false, stage: None, sort: PeerOrder::Stage }
    }

    #[test]
    fn a_peer_has_a_line_for_each_stage_or_one() {
        let mut both = peer(1, Some(0), 690.4, Some(18.2));
        both.stages.push(PeerStage { stage: 2, ..both.stages[0].clone() });
        let text = table(&[both.clone(), peer(2, None, 0.0, None)], &args()).tab_separated();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[1].ends_with("\t0\tserving\t690\t20\t1\t18 ms\tdirect"), "{}", lines[1]);
        assert!(lines[3].ends_with("\t-\tconnected\t-\t-\t-\t-\tdirect"), "{}", lines[3]);
        let only = table(&[both], &args::Peers { stage: Some(2), ..args() }).tab_separated();
        assert_eq!(only.lines().count(), 2);
    }

    #[test]
    fn orders_put_the_unknown_last() {
        let sorted = |by| {
            let mut peers =
                [peer(1, None, 0.0, None), peer(2, Some(1), 5.0, Some(9.0)), peer(3, Some(0), 3.0, Some(4.0))];
            peers.sort_by(|a, b| order(by, a, b));
            peers.iter().map(|peer| peer.peer.0[0]).collect::<Vec<u8>>()
        };
        assert_eq!(sorted(PeerOrder::Stage), [3, 2, 1]);
        assert_eq!(sorted(PeerOrder::Tokens), [2, 3, 1]);
        assert_eq!(sorted(PeerOrder::Rtt), [3, 2, 1]);
    }
}
