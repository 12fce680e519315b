//! `skein bench link`: messages between two processes over our data plane, beside plain TCP in the same minute. In: seconds.
//! Out: throughput, latency and CPU time for each size of body. The far end is this same program, started with a hidden flag.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, ChildStdin, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use libp2p::Multiaddr;
use serde::Serialize;
use skein_protocol::{Lane, PeerId, key::Key};
use tokio::{sync::mpsc, time::timeout};

use super::{Used, millis, other, quantile, used};
use crate::{
    cli::{
        args::BenchLink,
        context::Context,
        failure::Report,
        session, show,
        table::{Column, Table},
    },
    net::{self, Admit, Net, NetConfig, NetEvent, SendError, Verdict},
};

/// Bodies that are measured, and how many of them are on their way at one time.
const SIZES: [(usize, usize); 3] = [(64 << 10, 64), (1 << 20, 16), (8 << 20, 4)];
/// Exchanges whose time is taken.
const EXCHANGES: usize = 200;
/// An answer that takes longer does not come.
const PATIENCE: Duration = Duration::from_secs(20);
/// A body that is only counted, and one that is sent back.
const COUNT: Bytes = Bytes::from_static(b"count");
const ECHO: Bytes = Bytes::from_static(b"echo");
const GOT: Bytes = Bytes::from_static(b"got");

/// One size of body.
#[derive(Clone, Debug, Serialize)]
struct Measured {
    bytes: usize,
    at_once: usize,
    bytes_per_s: f64,
    /// Of plain TCP without encryption, between the same two processes.
    tcp_bytes_per_s: f64,
    /// A body there and the same body back.
    exchange_ms_median: Option<f64>,
    exchange_ms_p95: Option<f64>,
    /// Of both processes together.
    cpu_s_per_gib: f64,
    tcp_cpu_s_per_gib: f64,
}

pub fn run(args: &BenchLink, context: &Context) -> Result<u8, Report> {
    if args.far_end {
        return session::runtime()?.block_on(far_end(context));
    }
    let all = session::runtime()?.block_on(measure(Duration::from_secs(u64::from(args.seconds.max(1)))))?;
    if context.out.style().json {
        context.out.document("bench-link", &all);
        return Ok(0);
    }
    let columns = ["BODY", "AT ONCE", "RATE", "TCP", "THERE AND BACK", "P95", "CPU S/GIB", "TCP"];
    let mut table = Table::new(columns.into_iter().map(Column::Left).collect());
    for one in &all {
        table.row(vec![
            show::Bytes(one.bytes as u64).to_string(),
            one.at_once.to_string(),
            show::rate(one.bytes_per_s),
            show::rate(one.tcp_bytes_per_s),
            millis(one.exchange_ms_median),
            millis(one.exchange_ms_p95),
            format!("{:.2}", one.cpu_s_per_gib),
            format!("{:.2}", one.tcp_cpu_s_per_gib),
        ]);
    }
    context.out.table(&table);
    Ok(0)
}

struct TakeAll;

impl Admit for TakeAll {
    fn admit(&self, _: PeerId, _: Lane, _: &[u8], _: u64) -> Verdict {
        Verdict::Take
    }
}

/// One end: a network of its own at any port of the loopback interface.
async fn end() -> Result<(Net, mpsc::Receiver<NetEvent>), Report> {
    let config = NetConfig::loopback(Key::from_secret(rand::random()));
    net::start(config, Arc::new(TakeAll)).await.map_err(other)
}

// ---- the far end ---------------------------------------------------------------------------------------------------------

/// Says where it listens, and answers until stdin closes.
async fn far_end(context: &Context) -> Result<u8, Report> {
    let (net, mut events) = end().await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(other)?;
    let tcp = listener.local_addr().map_err(other)?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || count_tcp(stream));
        }
    });
    let quic = |address: &Multiaddr| address.to_string().contains("/quic-v1");
    let address = loop {
        match events.recv().await {
            Some(NetEvent::Listening { address }) if quic(&address) => break address,
            Some(_) => {}
            None => return Err(other("the network stopped")),
        }
    };
    context.out.print(&format!("{address} {tcp}"));
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
        if let NetEvent::Message { from, frame, body, .. } = event {
            let answer = match frame == ECHO {
                true => net.send(from, Lane::Activation, ECHO, body),
                false => net.send(from, Lane::Control, GOT, None),
            };
            answer.map_err(other)?;
        }
    }
    net.shutdown().await;
    Ok(0)
}

/// Reads bodies that come with their length before them, and answers each with a byte.
fn count_tcp(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut body = vec![0; SIZES.iter().map(|(bytes, _)| *bytes).max().unwrap_or(0)];
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = (u32::from_le_bytes(length) as usize).min(body.len());
        stream.read_exact(&mut body[..length])?;
        stream.write_all(&[1])?;
    }
}

/// The process of the far end; gone with this.
struct FarEnd {
    process: Child,
    _stdin: ChildStdin,
    address: Multiaddr,
    tcp: SocketAddr,
}

impl Drop for FarEnd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl FarEnd {
    fn start() -> Result<FarEnd, Report> {
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
        match (stdin, address, tcp) {
            (Some(stdin), Some(address), Some(tcp)) => Ok(FarEnd { process, _stdin: stdin, address, tcp }),
            _ => Err(other("the process of the far end did not start")),
        }
    }
}

// ---- this end ------------------------------------------------------------------------------------------------------------

struct Ends {
    net: Net,
    events: mpsc::Receiver<NetEvent>,
    far: PeerId,
    far_end: FarEnd,
}

async fn measure(length: Duration) -> Result<Vec<Measured>, Report> {
    let far_end = tokio::task::block_in_place(FarEnd::start)?;
    let (net, mut events) = end().await?;
    net.dial_address(far_end.address.clone());
    let far = loop {
        match timeout(PATIENCE, events.recv()).await {
            Ok(Some(NetEvent::Up { peer, .. })) => break peer,
            Ok(Some(NetEvent::DialFailed { why, .. })) => return Err(other(why)),
            Ok(Some(_)) => {}
            _ => return Err(other("the far end does not answer")),
        }
    };
    let mut ends = Ends { net, events, far, far_end };
    let mut all = Vec::new();
    for (bytes, at_once) in SIZES {
        // Bytes that do not compress into nothing, in case anything on the way tries.
        let body: Bytes = (0..bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        ends.stream(&body, at_once, Duration::from_millis(300)).await?;
        let mut exchanges = ends.exchanges(&body, length).await?;
        let (bytes_per_s, cpu_s_per_gib) = ends.stream(&body, at_once, length).await?;
        let (tcp_bytes_per_s, tcp_cpu_s_per_gib) = ends.tcp(&body, length)?;
        all.push(Measured {
            bytes,
            at_once,
            bytes_per_s,
            tcp_bytes_per_s,
            exchange_ms_median: quantile(&mut exchanges, 0.5),
            exchange_ms_p95: quantile(&mut exchanges, 0.95),
            cpu_s_per_gib,
            tcp_cpu_s_per_gib,
        });
    }
    ends.net.clone().shutdown().await;
    Ok(all)
}

impl Ends {
    /// The next message of the far end.
    async fn answer(&mut self) -> Result<Bytes, Report> {
        loop {
            match timeout(PATIENCE, self.events.recv()).await {
                Ok(Some(NetEvent::Message { frame, .. })) => return Ok(frame),
                Ok(Some(NetEvent::Lost { why, .. })) => return Err(other(format!("the far end is lost: {why}"))),
                Ok(Some(_)) => {}
                Ok(None) => return Err(other("the network stopped")),
                Err(_) => return Err(other("the far end does not answer")),
            }
        }
    }

    /// Milliseconds from sending a body to having it back, one after the other.
    async fn exchanges(&mut self, body: &Bytes, at_most: Duration) -> Result<Vec<f64>, Report> {
        let began = Instant::now();
        let mut times = Vec::new();
        while times.len() < EXCHANGES && began.elapsed() < at_most {
            let sent = Instant::now();
            self.net.send(self.far, Lane::Activation, ECHO, Some(body.clone())).map_err(other)?;
            self.answer().await?;
            times.push(sent.elapsed().as_secs_f64() * 1e3);
        }
        Ok(times)
    }

    /// Bytes a second and CPU seconds a GiB of bodies that the far end counts, `at_once` of them on their way.
    async fn stream(&mut self, body: &Bytes, at_once: usize, length: Duration) -> Result<(f64, f64), Report> {
        let (before, began) = (self.used()?, Instant::now());
        let (mut open, mut counted) = (0, 0u64);
        while open > 0 || began.elapsed() < length {
            while open < at_once && began.elapsed() < length {
                match self.net.send(self.far, Lane::Activation, COUNT, Some(body.clone())) {
                    Ok(()) => open += 1,
                    Err(SendError::Congested) => break,
                    Err(error) => return Err(other(error)),
                }
            }
            self.answer().await?;
            open -= 1;
            counted += 1;
        }
        self.per_second_and_gib(counted * body.len() as u64, began.elapsed(), before)
    }

    /// The same over plain TCP, which takes whatever the system's buffers hold.
    fn tcp(&self, body: &Bytes, length: Duration) -> Result<(f64, f64), Report> {
        let mut stream = TcpStream::connect(self.far_end.tcp).map_err(other)?;
        stream.set_nodelay(true).map_err(other)?;
        let mut answers = stream.try_clone().map_err(other)?;
        let (before, began) = (self.used()?, Instant::now());
        let counting = thread::spawn(move || {
            let (mut all, mut buffer) = (0, [0; 1 << 10]);
            while let Ok(n @ 1..) = answers.read(&mut buffer) {
                all += n as u64;
            }
            all
        });
        let mut sent = 0u64;
        while began.elapsed() < length {
            stream.write_all(&(body.len() as u32).to_le_bytes()).map_err(other)?;
            stream.write_all(body).map_err(other)?;
            sent += 1;
        }
        // The far end reads to the end, answers the last one and closes.
        stream.shutdown(std::net::Shutdown::Write).map_err(other)?;
        let counted =
            tokio::task::block_in_place(|| counting.join()).map_err(|_| other("the counting thread failed"))?;
        if counted != sent {
            return Err(other(format!("TCP: {counted} of {sent} bodies were answered")));
        }
        self.per_second_and_gib(sent * body.len() as u64, began.elapsed(), before)
    }

    /// CPU time of both processes until now.
    fn used(&self) -> Result<Duration, Report> {
        let both = [std::process::id(), self.far_end.process.id()].map(used);
        match both {
            [Some(Used { cpu: here, .. }), Some(Used { cpu: there, .. })] => Ok(here + there),
            _ => Err(other("the system does not say how much CPU time a process has used")),
        }
    }

    fn per_second_and_gib(&self, bytes: u64, took: Duration, before: Duration) -> Result<(f64, f64), Report> {
        let cpu = self.used()?.saturating_sub(before);
        let gib = bytes as f64 / f64::from(1 << 30);
        Ok((bytes as f64 / took.as_secs_f64(), if gib > 0.0 { cpu.as_secs_f64() / gib } else { 0.0 }))
    }
}
