//! The other process of `skein bench link`. In: messages over our data plane, bodies over plain quinn and plain TCP. Out: an
//! answer to each. It is this same program, started with a hidden flag, and is gone with the one that started it.

use std::{
    hint::black_box,
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::{Child, ChildStdin, Command, Stdio},
    sync::Arc,
    thread,
};

use bytes::Bytes;
use libp2p::Multiaddr;
use skein_protocol::{Lane, PeerId, key::Key};
use tokio::sync::mpsc;

use super::{hop, plain};
use crate::{
    cli::{commands::bench::other, context::Context, failure::Report},
    net::{self, Admit, Net, NetConfig, NetEvent, Verdict},
};

/// A body that is only counted, one that is sent back, and one that is decoded and sent back encoded again.
pub const COUNT: Bytes = Bytes::from_static(b"count");
pub const ECHO: Bytes = Bytes::from_static(b"echo");
pub const HOP: Bytes = Bytes::from_static(b"hop");
const GOT: Bytes = Bytes::from_static(b"got");

struct TakeAll;

impl Admit for TakeAll {
    fn admit(&self, _: PeerId, _: Lane, _: &[u8], _: u64) -> Verdict {
        Verdict::Take
    }
}

/// Where others reach an end over QUIC.
pub async fn address(events: &mut mpsc::Receiver<NetEvent>) -> Result<Multiaddr, Report> {
    loop {
        match events.recv().await {
            Some(NetEvent::Listening { address }) if address.to_string().contains("/quic-v1") => return Ok(address),
            Some(_) => {}
            None => return Err(other("the network stopped")),
        }
    }
}

/// One end: a network of its own at any port of the loopback interface. `far`: as to peers elsewhere, whatever the address.
pub async fn end(far: bool) -> Result<(Net, mpsc::Receiver<NetEvent>), Report> {
    let mut config = NetConfig::loopback(Key::from_secret(rand::random()));
    if far {
        config.limits.datagram_near = 0;
    }
    net::start(config, Arc::new(TakeAll)).await.map_err(other)
}

/// Says where it listens, and answers until stdin closes.
pub async fn run(context: &Context) -> Result<u8, Report> {
    let (net, mut events) = end(false).await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(other)?;
    let tcp = listener.local_addr().map_err(other)?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || plain::count_tcp(stream));
        }
    });
    let endpoint = plain::endpoint()?;
    let quinn = endpoint.local_addr().map_err(other)?;
    tokio::spawn(plain::serve(endpoint));
    let address = address(&mut events).await?;
    context.out.print(&format!("{address} {tcp} {quinn}"));
    let (closed, mut ended) = mpsc::channel::<()>(1);
    thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        drop(closed);
    });
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            _ = ended.recv() => None,
        };
        let Some(event) = event else { break };
        if let NetEvent::Message { from, frame, body, lane, .. } = event {
            let answer = if frame == ECHO {
                net.send(from, Lane::Activation, ECHO, body)
            } else if frame == HOP {
                let values = black_box(hop::decode(&body.unwrap_or_default())?);
                net.send(from, Lane::Activation, HOP, Some(hop::encode(&values)))
            } else {
                // The lane comes back, so that answers to urgent bodies are told from those to others.
                net.send(from, Lane::Control, [&GOT[..], &[lane as u8]].concat().into(), None)
            };
            answer.map_err(other)?;
        }
    }
    net.shutdown().await;
    Ok(0)
}

/// The process; gone with this.
pub struct FarEnd {
    process: Child,
    _stdin: ChildStdin,
    pub address: Multiaddr,
    pub tcp: SocketAddr,
    pub quinn: SocketAddr,
}

impl Drop for FarEnd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl FarEnd {
    pub fn start() -> Result<FarEnd, Report> {
        let mut command = Command::new(std::env::current_exe().map_err(other)?);
        command.args(["bench", "link", "--far-end"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().map_err(other)?;
        let (stdin, stdout) = (process.stdin.take(), process.stdout.take());
        let mut line = String::new();
        if let Some(stdout) = stdout {
            BufReader::new(stdout).read_line(&mut line).map_err(other)?;
        }
        let mut words = line.split_whitespace();
        let address = words.next().and_then(|word| word.parse().ok());
        let tcp = words.next().and_then(|word| word.parse().ok());
        let quinn = words.next().and_then(|word| word.parse().ok());
        match (stdin, address, tcp, quinn) {
            (Some(stdin), Some(address), Some(tcp), Some(quinn)) => {
                Ok(FarEnd { process, _stdin: stdin, address, tcp, quinn })
            }
            _ => Err(other("the process of the far end did not start")),
        }
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }
}
