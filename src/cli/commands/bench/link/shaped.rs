//! Our data plane over a narrow, long or lossy link: how much of it bulk fills, and how long an urgent body takes beside it; and
//! quinn by itself, with its CUBIC, over the same. In: a shape. Out: percent and milliseconds.

use std::time::{Duration, Instant};

use bytes::Bytes;
use libp2p::Multiaddr;
use serde::Serialize;
use skein_protocol::Lane;

use super::{Ends, far::COUNT, plain::Quinn, sample};
use crate::{
    cli::{
        commands::bench::{millis, other, quantile},
        context::Context,
        failure::Report,
        table::{Column, Table},
    },
    net::{SendError, to_multiaddr, to_socket},
    shape::{Shape, Shaper},
};

/// Before the measurement: the handshake and the first search for the rate.
const WARM: Duration = Duration::from_secs(2);
const BULK: usize = 1 << 20;
const URGENT: usize = 64 << 10;
/// From one urgent body to the next.
const PAUSE: Duration = Duration::from_millis(150);

#[derive(Clone, Debug, Serialize)]
struct Measured {
    mbit_per_s: f64,
    round_trip_ms: f64,
    loss_percent: f64,
    /// Of the link's rate, as bytes of bodies that arrived.
    filled_percent: f64,
    /// Datagrams that found the queue full, of all, without those that the shape loses by chance.
    dropped_percent: f64,
    /// A body of 64 KiB with bulk beside it, there, and a word back.
    urgent_ms_median: Option<f64>,
    urgent_ms_p95: Option<f64>,
    quinn_filled_percent: f64,
    quinn_dropped_percent: f64,
}

pub async fn run(context: &Context, shape: Shape, length: Duration) -> Result<u8, Report> {
    let far_end = tokio::task::block_in_place(super::FarEnd::start)?;
    let (to, peer) = to_socket(&far_end.address).ok_or_else(|| other("the far end listens nowhere"))?;
    let narrow = Shaper::start(to, shape).await.map_err(other)?;
    let beside = Shaper::start(far_end.quinn, shape).await.map_err(other)?;
    let mut through: Multiaddr = to_multiaddr(narrow.address());
    if let Some(peer) = peer {
        through.push(libp2p::multiaddr::Protocol::P2p(peer));
    }
    let quinn = Quinn::dial(beside.address()).await?;
    let mut ends = Ends::dial(far_end, through, true).await?;
    let (bytes, mut urgent) = bulk_and_urgent(&mut ends, length).await?;
    let filled = |bytes: f64| 100.0 * bytes * 8.0 / shape.bits_per_s as f64;
    let dropped = narrow.counts().dropped_percent();
    let (count, took) = quinn.stream(&sample(BULK), 2, WARM, length).await?;
    let measured = Measured {
        mbit_per_s: shape.bits_per_s as f64 / 1e6,
        round_trip_ms: shape.round_trip.as_secs_f64() * 1e3,
        loss_percent: 100.0 * shape.loss,
        filled_percent: filled(bytes),
        dropped_percent: dropped,
        urgent_ms_median: quantile(&mut urgent, 0.5),
        urgent_ms_p95: quantile(&mut urgent, 0.95),
        quinn_filled_percent: filled(count as f64 / took.as_secs_f64()),
        quinn_dropped_percent: beside.counts().dropped_percent(),
    };
    ends.net.clone().shutdown().await;
    if context.out.style().json {
        context.out.document("bench-link", &measured);
        return Ok(0);
    }
    let columns = ["LINK", "FILLED", "DROPPED", "URGENT 64 KIB", "P95", "QUINN FILLED", "DROPPED"];
    let mut table = Table::new(columns.into_iter().map(Column::Left).collect());
    table.row(vec![
        shape.to_string(),
        format!("{:.1} %", measured.filled_percent),
        format!("{:.2} %", measured.dropped_percent),
        millis(measured.urgent_ms_median),
        millis(measured.urgent_ms_p95),
        format!("{:.1} %", measured.quinn_filled_percent),
        format!("{:.2} %", measured.quinn_dropped_percent),
    ]);
    context.out.table(&table);
    Ok(0)
}

/// Keeps the bulk lane full, with an urgent body now and then. Bytes a second that arrived once it was warm, and the
/// milliseconds of each urgent body.
async fn bulk_and_urgent(ends: &mut Ends, length: Duration) -> Result<(f64, Vec<f64>), Report> {
    let (bulk, urgent): (Bytes, Bytes) = (sample(BULK), sample(URGENT));
    let began = Instant::now();
    let (mut bytes, mut times, mut sent_at) = (0u64, Vec::new(), None::<Instant>);
    let mut next = began + WARM;
    while began.elapsed() < WARM + length {
        loop {
            match ends.net.send(ends.far, Lane::Bulk, COUNT, Some(bulk.clone())) {
                Ok(()) => {}
                Err(SendError::Congested) => break,
                Err(error) => return Err(other(error)),
            }
        }
        if sent_at.is_none() && Instant::now() >= next {
            ends.net.send(ends.far, Lane::Gradient, COUNT, Some(urgent.clone())).map_err(other)?;
            sent_at = Some(Instant::now());
        }
        let wait = next.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let wait = if sent_at.is_none() { wait } else { super::PATIENCE };
        let Some(answer) = ends.answer_within(wait).await? else { continue };
        if answer.last() == Some(&(Lane::Gradient as u8)) {
            times.extend(sent_at.take().map(|at| at.elapsed().as_secs_f64() * 1e3));
            next = Instant::now() + PAUSE;
        }
        if began.elapsed() >= WARM {
            bytes += if answer.last() == Some(&(Lane::Gradient as u8)) { URGENT } else { BULK } as u64;
        }
    }
    Ok((bytes as f64 / length.as_secs_f64(), times))
}
