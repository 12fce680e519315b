//! Ctrl-C and SIGTERM, by which a person or a system asks this process to end.

/// From the first [`Signals::listen`] on they do not end the process by themselves.
pub struct Signals {
    #[cfg(unix)]
    both: Option<[tokio::signal::unix::Signal; 2]>,
}

#[cfg(unix)]
impl Signals {
    pub fn listen() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let [Ok(interrupt), Ok(terminate)] = [signal(SignalKind::interrupt()), signal(SignalKind::terminate())] else {
            tracing::warn!("signals cannot be listened for: they end this process at once");
            return Signals { both: None };
        };
        Signals { both: Some([interrupt, terminate]) }
    }

    pub async fn next(&mut self) {
        match &mut self.both {
            Some([interrupt, terminate]) => tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            },
            None => std::future::pending().await,
        }
    }
}

#[cfg(not(unix))]
impl Signals {
    pub fn listen() -> Self {
        Signals {}
    }

    pub async fn next(&mut self) {
        let _ = tokio::signal::ctrl_c().await;
    }
}
