//! `skein bench link`: messages between two processes over our data plane, beside quinn by itself and plain TCP in the same
//! minute. In: seconds, or the shape of a link. Out: throughput, latency and CPU time for each size of body, and the cost of one
//! hop of an activation.

mod far;
mod hop;
mod plain;
mod shaped;

use std::time::{Duration, Instant};

use bytes::Bytes;
use libp2p::Multiaddr;
use serde::Serialize;
use skein_protocol::{Lane, PeerId};
use tokio::{sync::mpsc, time::timeout};

pub(super) use self::far::{address, end};
use self::{
    far::{COUNT, ECHO, FarEnd, HOP},
    plain::Quinn,
};
use super::{Used, millis, other, quantile, used};
use crate::{
    cli::{
        args::BenchLink,
        context::Context,
        failure::Report,
        session, show,
        table::{Column, Table},
    },
    net::{Net, NetEvent, SendError},
};

/// Bodies that are measured, and how many of them are on their way at one time.
const SIZES: [(usize, usize); 3] = [(64 << 10, 64), (1 << 20, 16), (8 << 20, 4)];
/// Turns of ours and of what stands beside it.
const TURNS: u32 = 3;
/// Exchanges whose time is taken.
const EXCHANGES: usize = 200;
/// An answer that takes longer does not come.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Debug, Serialize)]
struct Document {
    bodies: Vec<Measured>,
    /// One hop of an activation of 1 x 256 x 512 values: encoded, sent, received and decoded. Half of there and back.
    hop_ms: Option<f64>,
    hop_ms_p95: Option<f64>,
    /// The parts of it that compute.
    hop_encode_ms: Option<f64>,
    hop_decode_ms: Option<f64>,
}

/// One size of body. Rates are medians of turns.
#[derive(Clone, Debug, Serialize)]
struct Measured {
    bytes: usize,
    at_once: usize,
    mb_per_s: f64,
    /// Of quinn by itself, with the same cipher, between the same two processes.
    quinn_mb_per_s: f64,
    /// Median over the turns of ours through quinn's.
    ratio_percent: f64,
    /// Of plain TCP without encryption.
    tcp_mb_per_s: f64,
    /// A body there and the same body back.
    exchange_ms_median: Option<f64>,
    exchange_ms_p95: Option<f64>,
    quinn_exchange_ms_median: Option<f64>,
    /// Of both processes together.
    cpu_s_per_gib: f64,
    quinn_cpu_s_per_gib: f64,
    tcp_cpu_s_per_gib: f64,
}

pub fn run(args: &BenchLink, context: &Context) -> Result<u8, Report> {
    let length = Duration::from_secs(u64::from(args.seconds.max(1)));
    if args.far_end {
        return session::runtime()?.block_on(far::run(context));
    }
    if let Some(shape) = args.shape {
        return session::runtime()?.block_on(shaped::run(context, shape, length));
    }
    let all = session::runtime()?.block_on(measure(length))?;
    if context.out.style().json {
        context.out.document("bench-link", &all);
        return Ok(0);
    }
    let columns =
        ["BODY", "AT ONCE", "RATE", "QUINN", "OF IT", "TCP", "THERE AND BACK", "P95", "QUINN", "CPU S/GIB", "QUINN"];
    let mut table = Table::new(columns.into_iter().map(Column::Left).collect());
    for one in &all.bodies {
        table.row(vec![
            show::Bytes(one.bytes as u64).to_string(),
            one.at_once.to_string(),
            show::rate(one.mb_per_s * 1e6),
            show::rate(one.quinn_mb_per_s * 1e6),
            format!("{:.0} %", one.ratio_percent),
            show::rate(one.tcp_mb_per_s * 1e6),
            millis(one.exchange_ms_median),
            millis(one.exchange_ms_p95),
            millis(one.quinn_exchange_ms_median),
            format!("{:.2}", one.cpu_s_per_gib),
            format!("{:.2}", one.quinn_cpu_s_per_gib),
        ]);
    }
    context.out.table(&table);
    context.out.note(&format!(
        "one hop of an activation of 1 x 256 x 512: {} (p95 {}), {} of it encoding and {} decoding",
        millis(all.hop_ms),
        millis(all.hop_ms_p95),
        millis(all.hop_encode_ms),
        millis(all.hop_decode_ms),
    ));
    Ok(0)
}

/// Bytes a second of our data plane between two processes of this machine, in bodies of 8 MiB.
pub fn loopback_rate(length: Duration) -> Result<f64, Report> {
    let all = session::runtime()?.block_on(measure(length))?;
    Ok(all.bodies.last().map_or(0.0, |body| body.mb_per_s * 1e6))
}

/// Bytes that do not compress into nothing, in case anything on the way tries.
fn sample(bytes: usize) -> Bytes {
    (0..bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

struct Ends {
    net: Net,
    events: mpsc::Receiver<NetEvent>,
    far: PeerId,
    far_end: FarEnd,
}

async fn measure(length: Duration) -> Result<Document, Report> {
    let far_end = tokio::task::block_in_place(FarEnd::start)?;
    let address = far_end.address.clone();
    let quinn = Quinn::dial(far_end.quinn).await?;
    let mut ends = Ends::dial(far_end, address, false).await?;
    let mut bodies = Vec::new();
    for (bytes, at_once) in SIZES {
        bodies.push(ends.one_size(&quinn, bytes, at_once, length).await?);
    }
    let (mut hops, mut encoding, mut decoding) = ends.hops(length).await?;
    let document = Document {
        bodies,
        hop_ms: quantile(&mut hops, 0.5),
        hop_ms_p95: quantile(&mut hops, 0.95),
        hop_encode_ms: quantile(&mut encoding, 0.5),
        hop_decode_ms: quantile(&mut decoding, 0.5),
    };
    ends.net.clone().shutdown().await;
    Ok(document)
}

impl Ends {
    /// Connects to the far end at `address`; `far` as in [`end`].
    async fn dial(far_end: FarEnd, address: Multiaddr, far: bool) -> Result<Ends, Report> {
        let (net, mut events) = end(far).await?;
        net.dial_address(address);
        loop {
            match timeout(PATIENCE, events.recv()).await {
                Ok(Some(NetEvent::Up { peer, .. })) => return Ok(Ends { net, events, far: peer, far_end }),
                Ok(Some(NetEvent::DialFailed { why, .. })) => return Err(other(why)),
                Ok(Some(_)) => {}
                _ => return Err(other("the far end does not answer")),
            }
        }
    }

    async fn one_size(
        &mut self,
        quinn: &Quinn,
        bytes: usize,
        at_once: usize,
        length: Duration,
    ) -> Result<Measured, Report> {
        let body = sample(bytes);
        let (warm, turn) = (Duration::from_millis(200), length / TURNS);
        self.stream(&body, at_once, warm).await?;
        let (mut ours, mut plain, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let (mut exchanges, mut plain_exchanges) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            exchanges.extend(self.exchanges(&body, turn).await?);
            plain_exchanges.extend(quinn.exchanges(&body, turn).await?);
            let before = self.used()?;
            let (count, took) = self.stream(&body, at_once, turn).await?;
            ours.push(self.cost(count, took, before)?);
            let before = self.used()?;
            let (count, took) = quinn.stream(&body, at_once, Duration::ZERO, turn).await?;
            plain.push(self.cost(count, took, before)?);
            ratios.extend(ours.last().zip(plain.last()).map(|(ours, plain)| 100.0 * ours.rate / plain.rate));
        }
        let before = self.used()?;
        let (count, took) = tokio::task::block_in_place(|| plain::tcp(self.far_end.tcp, &body, turn))?;
        let tcp = self.cost(count, took, before)?;
        let median = |all: &[Cost], of: fn(&Cost) -> f64| quantile(&mut all.iter().map(of).collect::<Vec<_>>(), 0.5);
        let (rate, cpu) = (|cost: &Cost| cost.rate / 1e6, |cost: &Cost| cost.cpu_s_per_gib);
        Ok(Measured {
            bytes,
            at_once,
            mb_per_s: median(&ours, rate).unwrap_or(0.0),
            quinn_mb_per_s: median(&plain, rate).unwrap_or(0.0),
            ratio_percent: quantile(&mut ratios, 0.5).unwrap_or(0.0),
            tcp_mb_per_s: rate(&tcp),
            exchange_ms_median: quantile(&mut exchanges, 0.5),
            exchange_ms_p95: quantile(&mut exchanges, 0.95),
            quinn_exchange_ms_median: quantile(&mut plain_exchanges, 0.5),
            cpu_s_per_gib: median(&ours, cpu).unwrap_or(0.0),
            quinn_cpu_s_per_gib: median(&plain, cpu).unwrap_or(0.0),
            tcp_cpu_s_per_gib: tcp.cpu_s_per_gib,
        })
    }

    /// The next message of the far end: its frame and its body.
    async fn message(&mut self) -> Result<(Bytes, Bytes), Report> {
        loop {
            match timeout(PATIENCE, self.events.recv()).await {
                Ok(Some(NetEvent::Message { frame, body, .. })) => return Ok((frame, body.unwrap_or_default())),
                Ok(Some(NetEvent::Lost { why, .. })) => return Err(other(format!("the far end is lost: {why}"))),
                Ok(Some(_)) => {}
                Ok(None) => return Err(other("the network stopped")),
                Err(_) => return Err(other("the far end does not answer")),
            }
        }
    }

    /// The next answer of the far end; nothing if there is none soon enough.
    async fn answer_within(&mut self, at_most: Duration) -> Result<Option<Bytes>, Report> {
        match timeout(at_most, self.message()).await {
            Ok(answer) => answer.map(|(frame, _)| Some(frame)),
            Err(_) => Ok(None),
        }
    }

    /// Milliseconds from sending a body to having it back, one after the other.
    async fn exchanges(&mut self, body: &Bytes, at_most: Duration) -> Result<Vec<f64>, Report> {
        let began = Instant::now();
        let mut times = Vec::new();
        while times.len() < EXCHANGES && began.elapsed() < at_most {
            let sent = Instant::now();
            self.net.send(self.far, Lane::Activation, ECHO, Some(body.clone())).map_err(other)?;
            self.message().await?;
            times.push(sent.elapsed().as_secs_f64() * 1e3);
        }
        Ok(times)
    }

    /// Milliseconds of a hop, of its encoding and of its decoding.
    async fn hops(&mut self, at_most: Duration) -> Result<(Vec<f64>, Vec<f64>, Vec<f64>), Report> {
        let (values, began) = (hop::sample(), Instant::now());
        let (mut hops, mut encoding, mut decoding) = (Vec::new(), Vec::new(), Vec::new());
        let millis = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
        while hops.len() < EXCHANGES && began.elapsed() < at_most {
            let sent = Instant::now();
            let body = hop::encode(&values);
            encoding.push(millis(sent));
            self.net.send(self.far, Lane::Activation, HOP, Some(body)).map_err(other)?;
            let (_, body) = self.message().await?;
            let arrived = Instant::now();
            hop::decode(&body)?;
            decoding.push(millis(arrived));
            hops.push(millis(sent) / 2.0);
        }
        Ok((hops, encoding, decoding))
    }

    /// Bytes of bodies that the far end counted, `at_once` of them on their way.
    async fn stream(&mut self, body: &Bytes, at_once: usize, length: Duration) -> Result<(u64, Duration), Report> {
        let began = Instant::now();
        let (mut open, mut counted) = (0, 0u64);
        while open > 0 || began.elapsed() < length {
            while open < at_once && began.elapsed() < length {
                match self.net.send(self.far, Lane::Activation, COUNT, Some(body.clone())) {
                    Ok(()) => open += 1,
                    Err(SendError::Congested) => break,
                    Err(error) => return Err(other(error)),
                }
            }
            self.message().await?;
            open -= 1;
            counted += 1;
        }
        Ok((counted * body.len() as u64, began.elapsed()))
    }

    /// CPU time of both processes until now.
    fn used(&self) -> Result<Duration, Report> {
        let both = [std::process::id(), self.far_end.id()].map(used);
        match both {
            [Some(Used { cpu: here, .. }), Some(Used { cpu: there, .. })] => Ok(here + there),
            _ => Err(other("the system does not say how much CPU time a process has used")),
        }
    }

    fn cost(&self, bytes: u64, took: Duration, before: Duration) -> Result<Cost, Report> {
        let cpu = self.used()?.saturating_sub(before);
        let gib = bytes as f64 / f64::from(1 << 30);
        let cpu_s_per_gib = if gib > 0.0 { cpu.as_secs_f64() / gib } else { 0.0 };
        Ok(Cost { rate: bytes as f64 / took.as_secs_f64(), cpu_s_per_gib })
    }
}

/// Of a stretch of traffic.
struct Cost {
    /// Bytes a second.
    rate: f64,
    cpu_s_per_gib: f64,
}
