//! Bytes behind a handle: real ones, or only their length and what they stand for.

use bytes::Bytes;
use skein_protocol::Version;

/// What a modelled body stands for, so that a modelled worker can read what another one wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Tokens, labels, activations, gradients.
    Plain,
    /// The state of a stage.
    State(Version),
    /// The frozen tensors of a round.
    Tensors { round: u32 },
}

#[derive(Clone, Debug)]
pub enum Payload {
    Real(Bytes),
    Modelled { content: Content, offset: u64, len: u64 },
}

impl Payload {
    pub fn plain(len: u64) -> Self {
        Payload::Modelled { content: Content::Plain, offset: 0, len }
    }

    pub fn of(content: Content, len: u64) -> Self {
        Payload::Modelled { content, offset: 0, len }
    }

    pub fn len(&self) -> u64 {
        match self {
            Payload::Real(bytes) => bytes.len() as u64,
            Payload::Modelled { len, .. } => *len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A view of `len` bytes from `offset`; nothing when it does not fit.
    pub fn slice(&self, from: u64, count: u64) -> Option<Payload> {
        if from.checked_add(count)? > self.len() {
            return None;
        }
        Some(match self {
            Payload::Real(bytes) => Payload::Real(bytes.slice(from as usize..(from + count) as usize)),
            Payload::Modelled { content, offset, .. } => {
                Payload::Modelled { content: *content, offset: offset + from, len: count }
            }
        })
    }

    /// The parts in one piece, where all are real or they are one whole.
    pub fn whole(parts: &[Payload]) -> Option<Payload> {
        if let Some((content, len)) = Self::joined(parts) {
            return Some(Payload::of(content, len));
        }
        let real = |part: &Payload| match part {
            Payload::Real(bytes) => Some(bytes.clone()),
            Payload::Modelled { .. } => None,
        };
        let bytes: Vec<Bytes> = parts.iter().map(real).collect::<Option<_>>()?;
        Some(Payload::Real(bytes.concat().into()))
    }

    /// What the parts are together, when they are one whole in the right order.
    pub fn joined(parts: &[Payload]) -> Option<(Content, u64)> {
        let mut end = 0;
        let mut whole = None;
        for part in parts {
            let Payload::Modelled { content, offset, len } = part else { return None };
            if *offset != end || whole.is_some_and(|whole| whole != *content) {
                return None;
            }
            whole = Some(*content);
            end += len;
        }
        whole.map(|content| (content, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_of_a_modelled_body_join_to_the_whole_in_order_only() {
        let whole = Payload::of(Content::State(Version::default()), 10);
        let (a, b) = (whole.slice(0, 4).unwrap(), whole.slice(4, 6).unwrap());
        assert_eq!(Payload::joined(&[a.clone(), b.clone()]), Some((Content::State(Version::default()), 10)));
        assert_eq!(Payload::joined(&[b, a]), None);
        assert!(whole.slice(5, 6).is_none());
    }
}
