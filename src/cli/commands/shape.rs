//! `skein shape`: peers of this machine behind narrow links. It forwards until it is stopped, and then says what passed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::json;

use crate::{
    cli::{
        args::ShapeArgs,
        context::Context,
        failure::{Failure, Report},
        session,
        show::Bytes,
        table::{Column, Table},
    },
    shape::{Hub, Link},
};

pub fn run(args: &ShapeArgs, context: &Context) -> Result<u8, Report> {
    let peers = args.peers.iter().map(|peer| parse(peer)).collect::<Result<Vec<_>, Report>>()?;
    for (i, (address, _)) in peers.iter().enumerate() {
        if peers[..i].iter().any(|(before, _)| before == address) {
            return Err(Failure::Usage { message: format!("{address} is named twice") }.into());
        }
    }
    session::runtime()?.block_on(forward(&peers, args, context))
}

fn parse(peer: &str) -> Result<(SocketAddr, Link), Report> {
    let wrong = |why: String| Report::from(Failure::Usage { message: format!("{peer}: {why}") });
    let (address, link) = peer
        .split_once('=')
        .ok_or_else(|| wrong("an address and a link are wanted, as 127.0.0.1:4747=20mbit/100mbit,15ms".into()))?;
    let address: SocketAddr = address.parse().map_err(|_| wrong(format!("{address} is no address with a port")))?;
    if address.ip() != IpAddr::from(Ipv4Addr::LOCALHOST) {
        return Err(wrong(
            "the peer has to listen at 127.0.0.1: what it sends from elsewhere is not known as its own".into(),
        ));
    }
    Ok((address, link.parse().map_err(|error: crate::shape::NoLink| wrong(error.to_string()))?))
}

async fn forward(peers: &[(SocketAddr, Link)], args: &ShapeArgs, context: &Context) -> Result<u8, Report> {
    let out = &context.out;
    let other = |error: std::io::Error| Report::from(Failure::Other { message: error.to_string() });
    let hub = Hub::start(peers, args.port, args.seed).await.map_err(other)?;
    let mut table = Table::new(["PEER", "LINK", "OTHERS REACH IT AT"].map(Column::Left).into());
    let mut rows = Vec::new();
    for (i, (inside, link)) in peers.iter().enumerate() {
        let public = hub.address(i).map_err(other)?;
        table.row(vec![inside.to_string(), link.to_string(), public.to_string()]);
        rows.push(json!({ "peer": inside, "link": link.to_string(), "public": public }));
    }
    if out.style().json {
        out.event("Shaping", &json!({ "peers": rows }));
    } else {
        out.table(&table);
        out.note("each of them: SKEIN_NET__LISTEN=127.0.0.1 SKEIN_NET__LAN=false SKEIN_NET__ANNOUNCE=(where others reach it) skein join INVITE --port (its own); Ctrl-C ends this");
    }
    let _ = tokio::signal::ctrl_c().await;
    let mut table = Table::new(["PEER", "SENT", "RECEIVED", "DROPPED", "LOST"].map(Column::Left).into());
    for (i, (inside, _)) in peers.iter().enumerate() {
        let passed = hub.passed(i);
        if out.style().json {
            out.event("Shaped", &json!({ "peer": inside, "passed": passed }));
        }
        table.row(vec![
            inside.to_string(),
            Bytes(passed.sent).to_string(),
            Bytes(passed.received).to_string(),
            passed.dropped.to_string(),
            passed.lost.to_string(),
        ]);
    }
    if !out.style().json {
        out.table(&table);
    }
    Ok(0)
}
