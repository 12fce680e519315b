//! The contract between machines, which decide, and drivers, which do.

use std::collections::VecDeque;

use crate::time::Instant;

/// Why a machine wants to be woken: shown in traces, never matched on.
pub type Why = &'static str;

/// A pure state machine: equal inputs in equal order give equal outputs, on every platform.
///
/// Inputs are facts in the past tense, outputs are requests. A driver calls `handle` with every fact, performs what is in
/// the outbox, and calls `handle` again (with whatever the machine's tick input is) no later than `deadline` says.
pub trait Machine {
    type Input;
    type Output;

    fn handle(&mut self, now: Instant, input: Self::Input, out: &mut Outbox<Self::Output>);

    /// The next wake-up and the reason for it; `None` when only an input can change anything.
    fn deadline(&self) -> Option<(Instant, Why)>;
}

/// Requests of a machine, in the order in which they are to be performed.
#[derive(Clone, Debug)]
pub struct Outbox<O> {
    items: VecDeque<O>,
}

impl<O> Default for Outbox<O> {
    fn default() -> Self {
        Outbox { items: VecDeque::new() }
    }
}

impl<O> Outbox<O> {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn push(&mut self, output: O) {
        self.items.push_back(output);
    }

    pub fn pop(&mut self) -> Option<O> {
        let item = self.items.pop_front();
        if self.items.is_empty() {
            // This leads the ring back to its beginning, which the processor has at hand; std does not promise it, and nothing but
            // speed hangs on it.
            self.items.clear();
        }
        item
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &O> {
        self.items.iter()
    }

    pub fn drain(&mut self) -> impl Iterator<Item = O> + '_ {
        self.items.drain(..)
    }
}
