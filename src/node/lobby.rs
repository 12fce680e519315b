//! Where a peer waits that holds only an invite: it meets the peers that the invite names and asks them for the manifest.
//!
//! In: the network's events, the run's hash. Out: the manifest, or what each address answered. Every event is kept and handed to
//! the driver afterwards, so that nobody has to connect twice. It says nothing but `WantManifest`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use libp2p::Multiaddr;
use skein_protocol::{
    Lane, Manifest, PeerId, RunId,
    event::Severity,
    wire::{Frame, hello},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use super::{
    admission::FULL,
    signed::{self, Refused},
};
use crate::net::{Net, NetEvent};

/// Peers that did not answer are dialled again after this.
const REDIAL: Duration = Duration::from_secs(2);
/// Messages that wait for the driver; more are dropped, as if their sender had not been connected.
const BACKLOG_MAX: usize = 4096;

/// What an invite says.
#[derive(Clone, Debug)]
pub struct Invited {
    pub run: RunId,
    /// Claimed by whoever made the invite.
    pub label: String,
    pub peers: Vec<(PeerId, Vec<Multiaddr>)>,
}

/// What came of one address, or of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    pub peer: Option<PeerId>,
    pub address: String,
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LobbyError {
    /// SK201
    #[error("none of the {} bootstrap peers answers", .0.len())]
    NobodyAnswers(Vec<Tried>),
    /// SK202
    #[error("{address} presented {presented}, not {expected}")]
    OtherIdentity { address: String, expected: PeerId, presented: String },
    /// SK309. Each peer that answered has no place for another.
    #[error("the run is full")]
    Full(Vec<PeerId>),
    /// SK209. Peers of the invite answered, and none of them is in the run.
    #[error("{} peers answer, and none is in this run", .0.len())]
    NotTheirRun(Vec<PeerId>),
    /// SK305
    #[error("the manifest does not match the invite: {}", .0.iter().map(|(_, why)| why.to_string()).collect::<Vec<_>>().join("; "))]
    Altered(Vec<(PeerId, Refused)>),
    /// SK306. No other peer can have another manifest of this hash.
    #[error("{0}")]
    OtherVersion(Refused),
    #[error("the network stopped")]
    Closed,
}

impl LobbyError {
    /// Whether waiting longer may help, of an invite with so many peers: nobody was there yet, only peers that do not know the
    /// run yet, no place was free, or another peer may know better.
    pub fn may_pass(&self, invited: usize) -> bool {
        match self {
            LobbyError::NobodyAnswers(_) | LobbyError::NotTheirRun(_) | LobbyError::Full(_) => true,
            LobbyError::Altered(liars) => liars.len() < invited,
            LobbyError::OtherIdentity { .. } => invited > 1,
            LobbyError::OtherVersion(_) | LobbyError::Closed => false,
        }
    }
}

/// The manifest, checked.
#[derive(Clone, Debug)]
pub struct Entered {
    pub signed: Vec<u8>,
    pub manifest: Manifest,
    pub from: PeerId,
}

/// Keeps what the driver has to hear. It may be days until it does: a peer that came and went leaves nothing, and what is said
/// again and again is not kept.
fn keep(backlog: &mut Vec<NetEvent>, event: NetEvent) {
    match &event {
        NetEvent::Lost { peer, .. } => backlog.retain(|kept| about(kept) != Some(*peer)),
        NetEvent::DialFailed { .. }
        | NetEvent::Found { .. }
        | NetEvent::Writable { .. }
        | NetEvent::Delivered { .. }
        | NetEvent::Provided { .. }
        | NetEvent::Moved { .. } => {}
        NetEvent::Up { .. } => backlog.push(event),
        NetEvent::Message { .. }
        | NetEvent::Refused { .. }
        | NetEvent::Listening { .. }
        | NetEvent::Lan { .. }
        | NetEvent::Reachability(_) => {
            if backlog.len() < BACKLOG_MAX {
                backlog.push(event);
            }
        }
    }
}

/// The peer whose connection an event is about.
fn about(event: &NetEvent) -> Option<PeerId> {
    match event {
        NetEvent::Up { peer, .. } | NetEvent::Refused { peer, .. } => Some(*peer),
        NetEvent::Message { from, .. } => Some(*from),
        _ => None,
    }
}

pub struct Lobby<'a> {
    net: &'a Net,
    events: &'a mut mpsc::Receiver<NetEvent>,
    invited: &'a Invited,
    backlog: Vec<NetEvent>,
    asked: BTreeSet<PeerId>,
    /// The last failure of each peer.
    tried: BTreeMap<Option<PeerId>, Tried>,
    /// Peers of the invite that work on another run.
    elsewhere: BTreeSet<PeerId>,
    altered: BTreeMap<PeerId, Refused>,
}

impl<'a> Lobby<'a> {
    pub fn new(net: &'a Net, events: &'a mut mpsc::Receiver<NetEvent>, invited: &'a Invited) -> Self {
        Lobby {
            net,
            events,
            invited,
            backlog: Vec::new(),
            asked: BTreeSet::new(),
            tried: BTreeMap::new(),
            elsewhere: BTreeSet::new(),
            altered: BTreeMap::new(),
        }
    }

    /// Waits for the manifest. After an error it may be called again: it goes on where it was.
    ///
    /// # Errors
    /// With nothing found after `patience`, what is known of the reasons. Another protocol is told at once.
    pub async fn wait(&mut self, patience: Duration) -> Result<Entered, LobbyError> {
        let end = Instant::now() + patience;
        loop {
            self.dial();
            let pause = end.min(Instant::now() + REDIAL);
            while let Ok(event) = timeout_at(pause, self.events.recv()).await {
                let event = event.ok_or(LobbyError::Closed)?;
                if let Some(entered) = self.hear(event)? {
                    return Ok(entered);
                }
            }
            if Instant::now() >= end {
                return Err(self.reason());
            }
        }
    }

    /// What the driver has to hear, in order.
    pub fn leave(self) -> Vec<NetEvent> {
        self.backlog
    }

    fn dial(&self) {
        for (peer, addresses) in &self.invited.peers {
            if !self.asked.contains(peer) {
                self.net.dial(*peer, addresses.clone());
            }
        }
    }

    fn hear(&mut self, event: NetEvent) -> Result<Option<Entered>, LobbyError> {
        let mut entered = None;
        match &event {
            NetEvent::Up { peer, .. } => self.ask(*peer),
            NetEvent::Lost { peer, why } => {
                self.asked.remove(peer);
                self.note(Some(*peer), String::new(), why);
            }
            NetEvent::DialFailed { peer, address, why } => self.note(*peer, address.clone(), why),
            NetEvent::Message { from, lane: Lane::Control, frame, .. } => match Frame::decode(frame) {
                Ok(Frame::Hello(hello::Frame::Manifest(signed))) => entered = self.read(*from, &signed)?,
                Ok(Frame::Hello(hello::Frame::Unknown(run))) if run == self.invited.run && self.is_invited(*from) => {
                    self.elsewhere.insert(*from);
                }
                _ => {}
            },
            _ => {}
        }
        keep(&mut self.backlog, event);
        Ok(entered)
    }

    fn ask(&mut self, peer: PeerId) {
        let want = Frame::Hello(hello::Frame::WantManifest(self.invited.run));
        if self.net.send(peer, Lane::Control, Bytes::from(want.encode()), None).is_ok() {
            self.asked.insert(peer);
        }
    }

    /// A manifest is proved by its hash, whoever brings it. Why it is none counts only from whom the invite names: a stranger,
    /// as anybody in the local network is, must not end a join, nor become its reason.
    fn read(&mut self, from: PeerId, bytes: &[u8]) -> Result<Option<Entered>, LobbyError> {
        match signed::open(bytes, self.invited.run) {
            Ok(manifest) => Ok(Some(Entered { signed: bytes.to_vec(), manifest, from })),
            // The hash is the invite's, so these are the run's own bytes.
            Err(refused @ (Refused::Protocol { .. } | Refused::Unreadable(_) | Refused::Invalid(_))) => {
                Err(LobbyError::OtherVersion(refused))
            }
            Err(refused) => {
                self.net.penalise(from, Severity::Hostile);
                if self.is_invited(from) {
                    self.altered.insert(from, refused);
                }
                Ok(None)
            }
        }
    }

    fn is_invited(&self, peer: PeerId) -> bool {
        self.invited.peers.iter().any(|(invited, _)| *invited == peer)
    }

    fn note(&mut self, peer: Option<PeerId>, address: String, why: &str) {
        if peer.is_some_and(|peer| self.is_invited(peer)) {
            self.tried.insert(peer, Tried { peer, address, why: why.into() });
        }
    }

    fn reason(&self) -> LobbyError {
        if !self.altered.is_empty() {
            return LobbyError::Altered(self.altered.iter().map(|(peer, why)| (*peer, why.clone())).collect());
        }
        let full = self.tried.values().filter(|tried| tried.why.ends_with(FULL)).filter_map(|tried| tried.peer);
        let full: Vec<PeerId> = full.collect();
        if !full.is_empty() {
            return LobbyError::Full(full);
        }
        if !self.elsewhere.is_empty() {
            return LobbyError::NotTheirRun(self.elsewhere.iter().copied().collect());
        }
        let silent = |peer: &PeerId| Tried { peer: Some(*peer), address: String::new(), why: "silent".into() };
        let tried: Vec<Tried> = self
            .invited
            .peers
            .iter()
            .map(|(peer, addresses)| {
                let mut tried = self.tried.get(&Some(*peer)).cloned().unwrap_or_else(|| silent(peer));
                if tried.address.is_empty() {
                    tried.address = addresses.iter().map(Multiaddr::to_string).collect::<Vec<_>>().join(" ");
                }
                tried
            })
            .collect();
        let other = tried.iter().find_map(|tried| {
            let (presented, address) = tried.why.split_once(" answered at ")?;
            Some((tried.peer?, presented.to_string(), address.to_string()))
        });
        match other {
            Some((expected, presented, address)) => LobbyError::OtherIdentity { address, expected, presented },
            None => LobbyError::NobodyAnswers(tried),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Path;

    #[test]
    fn one_liar_of_several_does_not_end_the_wait() {
        let liar = LobbyError::Altered(vec![(PeerId([1; 32]), Refused::NotByOwner)]);
        assert!(liar.may_pass(2) && !liar.may_pass(1));
        assert!(!LobbyError::OtherVersion(Refused::Protocol { run: 2, mine: 1 }).may_pass(9));
    }

    #[test]
    fn a_long_wait_keeps_only_what_still_holds() {
        let (here, gone) = (PeerId([1; 32]), PeerId([2; 32]));
        let up = |peer| NetEvent::Up { peer, path: Path::Direct, address: String::new() };
        let said = |from| NetEvent::Message {
            from,
            lane: Lane::Control,
            frame: Bytes::from_static(b"x"),
            body: None,
            room: None,
        };
        let mut backlog = Vec::new();
        keep(&mut backlog, up(here));
        keep(&mut backlog, said(here));
        for _ in 0..100_000 {
            keep(&mut backlog, NetEvent::DialFailed { peer: None, address: String::new(), why: "silent".into() });
            keep(&mut backlog, up(gone));
            keep(&mut backlog, said(gone));
            keep(&mut backlog, NetEvent::Lost { peer: gone, why: "it left".into() });
        }
        assert!(
            matches!(backlog[..], [NetEvent::Up { peer, .. }, NetEvent::Message { from, .. }] if peer == here && from == here)
        );
        for _ in 0..2 * BACKLOG_MAX {
            keep(&mut backlog, said(here));
        }
        assert_eq!(backlog.len(), BACKLOG_MAX);
    }
}
