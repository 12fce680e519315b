//! Lock-step: forwards, backwards and sums follow the index of the ids, so that one sum is built in one order everywhere.

use std::time::Duration;

use skein_protocol::{Incarnation, Instant, MicroBatchId};

use super::StageFlow;
use crate::flow::{Desk, kept::Work};

/// Lock-step: whose turn it is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turn {
    /// Incarnation and step of the feeder.
    of: (Incarnation, u32),
    /// Index of the next forward, and of the next backward.
    forward: u16,
    backward: u16,
    /// Index of the last id of the step, once that is here.
    close: Option<u16>,
    /// When the turn last moved on.
    moved: Instant,
}

impl Turn {
    /// An id came: with the first one of a later step that step's turn begins.
    pub(super) fn on_new(&mut self, now: Instant, id: &MicroBatchId, close: bool) {
        if (id.incarnation, id.step) > self.of {
            *self = Turn { of: (id.incarnation, id.step), moved: now, ..Turn::default() };
        }
        if close {
            self.close = Some(id.index);
        }
    }

    /// Every backward of the step was asked for.
    pub(super) fn is_over(&self) -> bool {
        self.close.is_some_and(|close| self.backward > close)
    }

    pub(super) fn stands_since(&self, now: Instant) -> Duration {
        now.since(self.moved)
    }

    pub(super) fn is_of(&self, id: &MicroBatchId) -> bool {
        (id.incarnation, id.step) == self.of
    }
}

impl StageFlow {
    /// Lock-step: forwards and backwards in the order of the index, so that every sum is built in the same order. `overdue`
    /// lets the next one go whose predecessors never came here; a predecessor that comes after all is late, and goes at once.
    pub(super) fn advance_in_turn(&mut self, desk: &mut Desk<'_>, overdue: bool) {
        let of_step: Vec<MicroBatchId> = self.kept.keys().copied().filter(|id| self.turn.is_of(id)).collect();
        let mut skip = overdue;
        for &id in &of_step {
            if id.index < self.turn.forward {
                self.run_forward(desk, id);
            } else if id.index == self.turn.forward || skip {
                if !self.run_forward(desk, id) {
                    break;
                }
                (self.turn.forward, self.turn.moved) = (id.index + 1, desk.now);
                skip = false;
            }
        }
        let mut skip = overdue;
        for &id in &of_step {
            if !self.has_returned(id) {
                continue;
            }
            if id.index < self.turn.backward {
                self.run_backward(desk, id);
            } else if id.index == self.turn.backward || skip {
                self.run_backward(desk, id);
                (self.turn.backward, self.turn.moved) = (id.index + 1, desk.now);
                skip = false;
            }
        }
    }

    /// Whether the backward of an id can run, or was asked for with its forward (last stage).
    fn has_returned(&self, id: MicroBatchId) -> bool {
        self.kept.get(&id).is_some_and(|kept| match kept.work {
            Work::Returning { .. } => true,
            Work::Running { .. } | Work::Done { .. } => self.is_last(),
            _ => false,
        })
    }
}
