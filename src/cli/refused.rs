//! What a node's typed errors mean to a person. In: errors of `node`, `net` and of an invite. Out: entries of the catalogue.

use skein_protocol::{invite::BadInvite, unit};

use super::{
    failure::{Failure, Report},
    show::{Bytes, Peer},
};
use crate::{
    config::Machine,
    net::NetError,
    node::{
        NodeError,
        lobby::{LobbyError, Tried},
        signed::Refused,
    },
    watch::ServeError,
};

/// What a text needs that the error does not carry.
#[derive(Clone, Debug)]
pub struct Circumstances {
    pub command: &'static str,
    pub run: String,
    pub machine: Machine,
    /// Where the port was set.
    pub port_origin: String,
}

impl Circumstances {
    pub fn report(&self, error: NodeError) -> Report {
        let failure = match &error {
            NodeError::Home(_) => {
                let NodeError::Home(home) = error else { unreachable!("matched above") };
                return home.into();
            }
            NodeError::Net(error) => self.net(error),
            NodeError::Lobby(error) => self.lobby(error),
            NodeError::Manifest(refused) => manifest(refused, "the file"),
            NodeError::TooLittleMemory { need, give } => Failure::NotEnoughMemory {
                need: Bytes(*need),
                give: Bytes(*give),
                free: Bytes(self.machine.memory_free),
                run: self.run.clone(),
                command: self.command.into(),
                enough: enough(*need),
            },
            NodeError::BelowTheRunsLeast { least, give } => Failure::BelowTheRunsLeast {
                run: self.run.clone(),
                least: Bytes(*least),
                give: Bytes(*give),
                command: self.command.into(),
                enough: enough(*least),
            },
            NodeError::NoSuchStage { stage, count } => Failure::Usage {
                message: format!("--stage {stage}: the run has stages 0 to {}", count.saturating_sub(1)),
            },
            NodeError::MayNotFeed { owner, .. } => {
                Failure::NotYours { run: self.run.clone(), owner: Peer(*owner).to_string() }
            }
            NodeError::Log { .. } | NodeError::Thread(_) | NodeError::NetworkGone | NodeError::Bug(_) => {
                Failure::Other { message: error.to_string() }
            }
        };
        Report { failure: Box::new(failure), cause: Some(Box::new(error)) }
    }

    fn net(&self, error: &NetError) -> Failure {
        let command = self.command.to_string();
        match error {
            NetError::PortTaken { port } => Failure::PortTaken {
                port: *port,
                origin: self.port_origin.clone(),
                command,
                free: port.checked_add(1).unwrap_or(4747),
            },
            NetError::PortDenied { port } => Failure::PortDenied { port: *port, command },
            NetError::Listen { .. } | NetError::Other(_) => Failure::Other { message: error.to_string() },
        }
    }

    fn lobby(&self, error: &LobbyError) -> Failure {
        match error {
            LobbyError::NobodyAnswers(tried) => Failure::NobodyAnswers { count: tried.len(), list: list(tried) },
            LobbyError::OtherIdentity { address, expected, presented } => Failure::WrongIdentity {
                address: address.clone(),
                found: presented.clone(),
                expected: expected.to_string(),
            },
            LobbyError::Full(peers) => Failure::RunFull {
                run: self.run.clone(),
                peers: peers.iter().map(|peer| Peer(*peer).to_string()).collect::<Vec<_>>().join(", "),
            },
            LobbyError::NotTheirRun(peers) => Failure::NobodyAnswers {
                count: peers.len(),
                list: peers
                    .iter()
                    .map(|peer| format!("{} is there, but not in this run", Peer(*peer)))
                    .collect::<Vec<_>>()
                    .join("\n"),
            },
            LobbyError::Altered(refused) => match refused.first() {
                Some((peer, why)) => manifest(why, &Peer(*peer).to_string()),
                None => Failure::Other { message: error.to_string() },
            },
            LobbyError::OtherVersion(refused) => manifest(refused, "the run"),
            LobbyError::Closed => Failure::Other { message: error.to_string() },
        }
    }
}

/// An amount of memory that a flag takes and that is not below `bytes`.
fn enough(bytes: u64) -> String {
    unit::bytes(bytes.next_multiple_of(1 << 20))
}

/// One line a peer: what came of its addresses.
fn list(tried: &[Tried]) -> String {
    let line = |tried: &Tried| {
        let who = tried.peer.map_or(String::new(), |peer| format!("{}  ", Peer(peer)));
        format!("{who}{}  {}", tried.address, tried.why)
    };
    tried.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn manifest(refused: &Refused, peer: &str) -> Failure {
    match refused {
        Refused::OtherRun { expected, got } => {
            Failure::ManifestMismatch { expected: expected.to_string(), found: got.to_string(), peer: peer.into() }
        }
        Refused::Protocol { run, mine } => Failure::Versions { run: *run, build: *mine },
        Refused::NotByOwner => Failure::BadSignature { path: "the manifest".into(), by: peer.into() },
        Refused::NotSigned(_) | Refused::Unreadable(_) => Failure::ManifestMismatch {
            expected: "a signed manifest of this protocol".into(),
            found: refused.to_string(),
            peer: peer.into(),
        },
    }
}

impl From<BadInvite> for Failure {
    fn from(error: BadInvite) -> Self {
        match error {
            BadInvite::NotAnInvite { starts } => Failure::NotAnInvite { prefix: format!("{starts}…") },
            BadInvite::TooLong(bytes) => Failure::DamagedInvite { reason: format!("it is {bytes} bytes long") },
            BadInvite::Damaged => Failure::DamagedInvite { reason: "its checksum does not match".into() },
            BadInvite::Newer(format) => {
                Failure::DamagedInvite { reason: format!("it has format {format}, newer than this") }
            }
            BadInvite::Malformed(reason) => Failure::DamagedInvite { reason },
        }
    }
}

impl From<ServeError> for Report {
    fn from(error: ServeError) -> Self {
        let failure = Failure::Other { message: error.to_string() };
        Report { failure: Box::new(failure), cause: Some(Box::new(error)) }
    }
}
