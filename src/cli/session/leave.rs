//! Who wants this peer to leave, and how soon. In: Ctrl-C, SIGTERM, the end of stdin. Out: wishes, as they come.
//!
//! Listened for from before the start to the very end: a signal that nobody listens for ends the process without a drain, and in
//! a container, where the process is the first one, it does nothing at all.

use tokio::sync::oneshot;

use crate::cli::signals::Signals;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// In good order.
    Leave,
    /// The second Ctrl-C: exit code 130.
    LeaveAtOnce,
}

pub struct Wishes {
    signals: Signals,
    interrupted: bool,
    stdin: Option<oneshot::Receiver<()>>,
}

impl Wishes {
    pub fn listen(until_stdin_closes: bool) -> Self {
        Wishes { signals: Signals::listen(), interrupted: false, stdin: until_stdin_closes.then(closing_stdin) }
    }

    /// The next one. A wait that is given up loses none. Stdin ends once, so its end is never a second wish.
    pub async fn next(&mut self) -> Wish {
        tokio::select! {
            () = self.signals.next() => match std::mem::replace(&mut self.interrupted, true) {
                false => Wish::Leave,
                true => Wish::LeaveAtOnce,
            },
            () = ended(&mut self.stdin) => {
                self.stdin = None;
                Wish::Leave
            }
        }
    }
}

async fn ended(stdin: &mut Option<oneshot::Receiver<()>>) {
    match stdin {
        Some(closed) => drop(closed.await),
        None => std::future::pending().await,
    }
}

/// Whoever started this process is gone, or lets it go. The thread ends with the process: nothing else can end a read of stdin.
fn closing_stdin() -> oneshot::Receiver<()> {
    let (close, closed) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        drop(close);
    });
    closed
}
