//! What stands beside our data plane in `skein bench link`: quinn by itself, with the same cipher and otherwise as it comes, and
//! TCP without encryption. In: bodies. Out: what of them arrived, and when.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use skein_protocol::key::Key;
use tokio::{task::JoinSet, time::timeout};

use super::{EXCHANGES, PATIENCE, SIZES};
use crate::{
    cli::{commands::bench::other, failure::Report},
    net,
};

/// An endpoint at any port of the loopback interface, that both dials and is dialled.
pub fn endpoint() -> Result<quinn::Endpoint, Report> {
    let (client, server) = net::plain_quinn(&Key::from_secret(rand::random())).map_err(other)?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(other)?;
    let runtime = Arc::new(quinn::TokioRuntime);
    let config = quinn::EndpointConfig::default();
    let mut endpoint = quinn::Endpoint::new(config, Some(server), socket, runtime).map_err(other)?;
    endpoint.set_default_client_config(client);
    Ok(endpoint)
}

// ---- the far end ---------------------------------------------------------------------------------------------------------

/// Reads what comes on unidirectional streams, and sends back what comes on others.
pub async fn serve(endpoint: quinn::Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            let echoing = connection.clone();
            tokio::spawn(async move {
                while let Ok((send, receive)) = echoing.accept_bi().await {
                    tokio::spawn(echo(send, receive));
                }
            });
            while let Ok(stream) = connection.accept_uni().await {
                tokio::spawn(drain(stream));
            }
        });
    }
}

/// As fast as quinn gives it: nothing is copied or kept.
async fn drain(mut stream: quinn::RecvStream) {
    let mut chunks = [const { Bytes::new() }; 32];
    while let Ok(Some(_)) = stream.read_chunks(&mut chunks).await {}
}

async fn echo(mut send: quinn::SendStream, mut receive: quinn::RecvStream) {
    let longest = SIZES.iter().map(|(bytes, _)| *bytes).max().unwrap_or(0);
    let Ok(body) = receive.read_to_end(longest).await else { return };
    let _ = send.write_chunk(body.into()).await;
    let _ = send.finish();
}

/// Reads bodies that come with their length before them, and answers each with a byte.
pub fn count_tcp(mut stream: TcpStream) -> std::io::Result<()> {
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

// ---- this end ------------------------------------------------------------------------------------------------------------

/// A connection of quinn's own.
pub struct Quinn {
    connection: quinn::Connection,
    /// Its last handle closes the connection.
    _endpoint: quinn::Endpoint,
}

impl Quinn {
    pub async fn dial(to: SocketAddr) -> Result<Quinn, Report> {
        let endpoint = endpoint()?;
        let dialling = endpoint.connect(to, "skein").map_err(other)?;
        let connection = timeout(PATIENCE, dialling).await.map_err(other)?.map_err(other)?;
        Ok(Quinn { connection, _endpoint: endpoint })
    }

    /// Bytes of bodies whose arrival was acknowledged, `at_once` of them on their way. The first `warm` counts nothing.
    pub async fn stream(
        &self,
        body: &Bytes,
        at_once: usize,
        warm: Duration,
        length: Duration,
    ) -> Result<(u64, Duration), Report> {
        let counted = Arc::new(AtomicU64::new(0));
        let until = Instant::now() + warm + length;
        let mut senders = JoinSet::new();
        for _ in 0..at_once {
            let (connection, body, counted) = (self.connection.clone(), body.clone(), counted.clone());
            senders.spawn(async move {
                while Instant::now() < until {
                    let mut stream = connection.open_uni().await.map_err(|error| error.to_string())?;
                    stream.write_chunk(body.clone()).await.map_err(|error| error.to_string())?;
                    let _ = stream.finish();
                    stream.stopped().await.map_err(|error| error.to_string())?;
                    counted.fetch_add(body.len() as u64, Ordering::Relaxed);
                }
                Ok::<(), String>(())
            });
        }
        tokio::time::sleep(warm).await;
        let (before, began) = (counted.load(Ordering::Relaxed), Instant::now());
        while let Some(ended) = senders.join_next().await {
            ended.map_err(other)?.map_err(other)?;
        }
        Ok((counted.load(Ordering::Relaxed) - before, began.elapsed()))
    }

    /// Milliseconds from sending a body to having it back, one after the other.
    pub async fn exchanges(&self, body: &Bytes, at_most: Duration) -> Result<Vec<f64>, Report> {
        let began = Instant::now();
        let mut times = Vec::new();
        while times.len() < EXCHANGES && began.elapsed() < at_most {
            let sent = Instant::now();
            let (mut send, mut receive) = self.connection.open_bi().await.map_err(other)?;
            send.write_chunk(body.clone()).await.map_err(other)?;
            let _ = send.finish();
            let back = timeout(PATIENCE, receive.read_to_end(body.len())).await.map_err(other)?.map_err(other)?;
            if back.len() != body.len() {
                return Err(other("quinn lost something"));
            }
            times.push(sent.elapsed().as_secs_f64() * 1e3);
        }
        Ok(times)
    }
}

/// Bodies over TCP, which takes whatever the system's buffers hold: bytes that were answered, and how long it took.
pub fn tcp(to: SocketAddr, body: &Bytes, length: Duration) -> Result<(u64, Duration), Report> {
    let mut stream = TcpStream::connect(to).map_err(other)?;
    stream.set_nodelay(true).map_err(other)?;
    let mut answers = stream.try_clone().map_err(other)?;
    let began = Instant::now();
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
    stream.shutdown(Shutdown::Write).map_err(other)?;
    let counted = counting.join().map_err(|_| other("the counting thread failed"))?;
    if counted != sent {
        return Err(other(format!("TCP: {counted} of {sent} bodies were answered")));
    }
    Ok((sent * body.len() as u64, began.elapsed()))
}
