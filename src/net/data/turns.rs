//! Whose bytes a connection takes next. In: bodies of all lanes, to be given to quinn. Out: they are given, the most urgent first.
//!
//! quinn counts bytes against the peer's window when it takes them, not when they leave: by its priorities alone, a long body that was
//! taken as far as the window reaches would keep an urgent one waiting, and take the next room in it, too. So bodies stop being
//! given while anything more urgent is. Knows no peer.

use bytes::Bytes;
use skein_protocol::Lane;
use tokio::sync::watch;

type Waiting = [usize; Lane::ALL.len()];

/// Messages of each lane that quinn has not taken whole.
#[derive(Debug, Default)]
pub struct Turns(watch::Sender<Waiting>);

/// A message that quinn has not taken whole.
#[derive(Debug)]
pub struct Turn<'a> {
    turns: &'a Turns,
    lane: Lane,
    waiting: watch::Receiver<Waiting>,
}

/// What takes as many of the chunks as it has room for, and says how many it took whole.
pub trait Takes {
    type Error;

    /// It can be dropped and asked again: nothing was taken then.
    fn take(&mut self, chunks: &mut [Bytes]) -> impl Future<Output = Result<usize, Self::Error>> + Send;
}

impl Takes for quinn::SendStream {
    type Error = quinn::WriteError;

    async fn take(&mut self, chunks: &mut [Bytes]) -> Result<usize, quinn::WriteError> {
        self.write_chunks(chunks).await.map(|written| written.chunks)
    }
}

impl Turns {
    /// A message waits until what this returns is dropped.
    pub fn enter(&self, lane: Lane) -> Turn<'_> {
        self.0.send_modify(|waiting| waiting[lane as usize] += 1);
        Turn { turns: self, lane, waiting: self.0.subscribe() }
    }
}

impl Turn<'_> {
    /// Gives all of the chunks to `stream`, while nothing more urgent waits.
    pub async fn give<S: Takes>(&mut self, stream: &mut S, chunks: &mut [Bytes]) -> Result<(), S::Error> {
        let lane = self.lane as usize;
        let is_mine = |waiting: &Waiting| waiting[..lane].iter().all(|count| *count == 0);
        let mut given = 0;
        while given < chunks.len() {
            // The sender, which is in the turns, outlives this.
            let _ = self.waiting.wait_for(is_mine).await;
            tokio::select! {
                biased;
                _ = self.waiting.wait_for(|waiting| !is_mine(waiting)) => {}
                taken = stream.take(&mut chunks[given..]) => given += taken?,
            }
        }
        Ok(())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.0.send_modify(|waiting| waiting[self.lane as usize] -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Arc};

    use tokio::sync::Semaphore;

    use super::*;

    /// A window of so many bytes, and what came through it.
    #[derive(Clone)]
    struct Narrow(Arc<Semaphore>, Arc<std::sync::Mutex<Vec<u8>>>);

    impl Takes for Narrow {
        type Error = Infallible;

        async fn take(&mut self, chunks: &mut [Bytes]) -> Result<usize, Infallible> {
            self.0.acquire().await.expect("it is open").forget();
            self.1.lock().unwrap().extend(chunks[0].split_to(1));
            Ok(usize::from(chunks[0].is_empty()))
        }
    }

    #[tokio::test]
    async fn an_urgent_body_gets_the_next_room_in_the_window_although_a_long_one_waited_before_it() {
        let (turns, seen) = (Turns::default(), Arc::default());
        let narrow = Narrow(Arc::new(Semaphore::new(3)), seen);
        let body = |byte| [Bytes::from(vec![byte; 5])];
        let (mut one, mut other) = (narrow.clone(), narrow.clone());
        let (mut round, mut gradient) = (body(b'r'), body(b'g'));
        let mut long = Box::pin(async { turns.enter(Lane::Average).give(&mut one, &mut round).await });
        assert!(futures::poll!(&mut long).is_pending(), "the window is full");
        let mut urgent = Box::pin(async { turns.enter(Lane::Gradient).give(&mut other, &mut gradient).await });
        assert!(futures::poll!(&mut urgent).is_pending());
        for _ in 0..4 {
            narrow.0.add_permits(1);
            // The long one is asked first, as it would be that began to wait first.
            assert!(futures::poll!(&mut long).is_pending());
            assert!(futures::poll!(&mut urgent).is_pending());
        }
        narrow.0.add_permits(3);
        assert!(futures::poll!(&mut long).is_pending());
        assert!(futures::poll!(&mut urgent).is_ready());
        assert!(futures::poll!(&mut long).is_ready());
        assert_eq!(narrow.1.lock().unwrap()[..], *b"rrrgggggrr");
    }
}
