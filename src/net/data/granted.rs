//! The window that a peer gets beyond a stranger's once one of its bodies is wanted, out of a sum that is granted to all.
//! In: bodies that begin, bytes that are read. Out: the connection's receive window. Knows no message.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use super::{Shared, lock, window::Window};

#[derive(Default)]
pub struct Granted {
    window: Mutex<Option<Window>>,
    /// Taken from the sum.
    taken: AtomicU64,
}

impl Granted {
    /// The first body of this peer is wanted, or another one.
    pub fn begin(&self, shared: &Shared, connection: &quinn::Connection) {
        let mut window = lock(&self.window);
        if window.is_some() {
            return;
        }
        let limits = &shared.limits;
        connection.set_max_concurrent_uni_streams(limits.streams.into());
        let (new, used) = (u64::from(limits.window_new), u64::from(limits.window_used));
        let new = Window::new(Instant::now(), new, used, limits.window.into());
        self.set(shared, connection, window.insert(new), used);
    }

    /// `bytes` of a body were read.
    pub fn on_read(&self, shared: &Shared, connection: &quinn::Connection, bytes: u64) {
        let mut window = lock(&self.window);
        let Some(window) = window.as_mut() else { return };
        if let Some(size) = window.on_read(Instant::now(), bytes, || connection.rtt()) {
            self.set(shared, connection, window, size);
        }
    }

    /// Sets the window if the sum allows it.
    fn set(&self, shared: &Shared, connection: &quinn::Connection, window: &mut Window, size: u64) {
        let wanted = size.saturating_sub(shared.limits.window_new.into());
        let has = self.taken.load(Ordering::Relaxed);
        let granted = shared.granted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |granted| {
            Some(granted - has + wanted).filter(|sum| *sum <= shared.limits.windows_total)
        });
        if granted.is_ok() {
            self.taken.store(wanted, Ordering::Relaxed);
            connection.set_receive_window(quinn::VarInt::try_from(size).unwrap_or(quinn::VarInt::MAX));
            window.set(size);
        }
    }

    /// The connection ended.
    pub fn give_back(&self, shared: &Shared) {
        *lock(&self.window) = None;
        shared.granted.fetch_sub(self.taken.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }
}
