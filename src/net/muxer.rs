//! libp2p's view of one QUIC connection: its bidirectional streams, and its end.
//! The data plane holds the same connection; it is told of it (`Adopt`) when libp2p first polls it, that is, after every
//! limit and ban was asked. Knows nothing of what either plane says.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite, FutureExt, future::BoxFuture};
use libp2p::{
    PeerId,
    core::muxing::{StreamMuxer, StreamMuxerEvent},
};

use super::gate::Code;

/// Receives each connection that libp2p accepted, once.
pub type Adopt = Arc<dyn Fn(PeerId, quinn::Connection) + Send + Sync>;

type Opening = BoxFuture<'static, Result<(quinn::SendStream, quinn::RecvStream), quinn::ConnectionError>>;

pub struct Muxer {
    peer: PeerId,
    connection: quinn::Connection,
    adopt: Option<Adopt>,
    inbound: Option<Opening>,
    outbound: Option<Opening>,
    closing: Option<BoxFuture<'static, ()>>,
}

impl Muxer {
    pub fn new(peer: PeerId, connection: quinn::Connection, adopt: Adopt) -> Muxer {
        Muxer { peer, connection, adopt: Some(adopt), inbound: None, outbound: None, closing: None }
    }
}

impl StreamMuxer for Muxer {
    type Substream = Substream;
    type Error = io::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Substream>> {
        let connection = self.connection.clone();
        let opening = self.inbound.get_or_insert_with(|| async move { connection.accept_bi().await }.boxed());
        let opened = ready!(opening.poll_unpin(cx));
        self.inbound = None;
        Poll::Ready(Ok(Substream::new(opened?)))
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Substream>> {
        let connection = self.connection.clone();
        let opening = self.outbound.get_or_insert_with(|| async move { connection.open_bi().await }.boxed());
        let opened = ready!(opening.poll_unpin(cx));
        self.outbound = None;
        Poll::Ready(Ok(Substream::new(opened?)))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let connection = self.connection.clone();
        let closing = self.closing.get_or_insert_with(|| {
            // The data plane holds a clone, so dropping ours would close nothing.
            close(&connection);
            async move { drop(connection.closed().await) }.boxed()
        });
        closing.poll_unpin(cx).map(Ok)
    }

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        if let Some(adopt) = self.adopt.take() {
            adopt(self.peer, self.connection.clone());
        }
        Poll::Pending
    }
}

impl Drop for Muxer {
    /// libp2p drops connections that it refuses or finds idle without closing them.
    fn drop(&mut self) {
        close(&self.connection);
    }
}

/// Once more would put our own reason in the place of the peer's, which the data plane may not have read yet.
fn close(connection: &quinn::Connection) {
    if connection.close_reason().is_none() {
        connection.close(Code::Done.into(), b"closed by libp2p");
    }
}

impl From<Code> for quinn::VarInt {
    fn from(code: Code) -> Self {
        quinn::VarInt::from_u32(code as u32)
    }
}

/// One bidirectional stream.
pub struct Substream {
    send: quinn::SendStream,
    receive: quinn::RecvStream,
    closed: bool,
}

impl Substream {
    fn new((send, receive): (quinn::SendStream, quinn::RecvStream)) -> Self {
        Substream { send, receive, closed: false }
    }
}

impl AsyncRead for Substream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        AsyncRead::poll_read(Pin::new(&mut self.receive), cx, buffer)
    }
}

impl AsyncWrite for Substream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closed {
            ready!(AsyncWrite::poll_close(Pin::new(&mut self.send), cx))?;
            self.closed = true;
        }
        Poll::Ready(Ok(()))
    }
}
