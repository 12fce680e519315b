//! What a node's typed errors mean to a person. In: errors of `node`, `net` and of an invite. Out: entries of the catalogue.

use skein_protocol::{invite::BadInvite, run::PROTOCOL, unit};

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
                message: format!("stage {stage}: the run has stages 0 to {}", count.saturating_sub(1)),
            },
            NodeError::OwnersStage { stage, owner } => Failure::Usage {
                message: format!(
                    "stage {stage}: its owner {} keeps the first and the last stage to itself, so that no token leaves it",
                    Peer(*owner)
                ),
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
            LobbyError::NotTheirRun(peers) => Failure::NotTheirRun {
                run: self.run.clone(),
                peers: peers.iter().map(|peer| Peer(*peer).to_string()).collect::<Vec<_>>().join(", "),
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
        Refused::Invalid(why) => Failure::BadManifest { path: "the manifest of the run".into(), problems: why.clone() },
        Refused::Protocol { run, mine } => Failure::Versions { run: format!("protocol {run}"), build: *mine },
        // The owner's own bytes, as their hash shows, in a form that this build does not know.
        Refused::Unreadable(why) => {
            Failure::Versions { run: format!("a protocol that cannot be read here ({why})"), build: PROTOCOL }
        }
        Refused::NotByOwner => Failure::BadSignature { path: "the manifest".into(), by: peer.into() },
        Refused::NotSigned(_) => Failure::ManifestMismatch {
            expected: "a signed manifest".into(),
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

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use skein_protocol::{
        Lane, Manifest, PeerId, RunId,
        hash::keyed,
        key::Key,
        wire::{Frame, hello},
    };
    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        home::HomeError,
        net::{self, Admit, Net, NetConfig, NetEvent, Path, Verdict},
        node::{
            admission::FULL,
            lobby::{Entered, Invited, Lobby},
            signed,
        },
    };

    const INVITED: PeerId = PeerId([2; 32]);
    const ALSO_INVITED: PeerId = PeerId([3; 32]);
    const STRANGER: PeerId = PeerId([7; 32]);

    struct Everything;

    impl Admit for Everything {
        fn admit(&self, _: PeerId, _: Lane, _: &[u8], _: u64) -> Verdict {
            Verdict::Take
        }
    }

    async fn alone() -> (Net, mpsc::Receiver<NetEvent>) {
        let config = NetConfig::loopback(Key::from_secret([4; 32]));
        net::start(config, Arc::new(Everything)).await.expect("loopback can be listened at")
    }

    fn owner() -> Key {
        Key::from_secret([1; 32])
    }

    fn manifest() -> Manifest {
        let mut manifest = skein_protocol::run::preset("demo").unwrap();
        manifest.run.owner = owner().peer();
        manifest
    }

    fn said(from: PeerId, frame: hello::Frame) -> NetEvent {
        let frame = Frame::Hello(frame).encode().into();
        NetEvent::Message { from, lane: Lane::Control, frame, body: None, room: None }
    }

    fn hands_out(from: PeerId, signed: Vec<u8>) -> NetEvent {
        said(from, hello::Frame::Manifest(signed.into()))
    }

    /// What a join of `run` comes to that hears `events` and then nothing more.
    async fn joins(run: RunId, events: Vec<NetEvent>) -> Result<Entered, Report> {
        let (net, _events) = alone().await;
        let peers = [INVITED, ALSO_INVITED].map(|peer| (peer, vec!["/ip4/127.0.0.1/udp/9/quic-v1".parse().unwrap()]));
        let invited = Invited { run, label: "tiny".into(), peers: peers.to_vec() };
        let (say, mut heard) = mpsc::channel(64);
        for event in events {
            say.send(event).await.unwrap();
        }
        let outcome = Lobby::new(&net, &mut heard, &invited).wait(Duration::from_millis(50)).await;
        net.shutdown().await;
        drop(say);
        outcome.map_err(|error| circumstances().report(error.into()))
    }

    fn circumstances() -> Circumstances {
        let machine = Machine::look();
        Circumstances { command: "join", run: "tiny".into(), machine, port_origin: "flag --port".into() }
    }

    async fn refusal(run: RunId, events: Vec<NetEvent>) -> (&'static str, u8, String) {
        let report = joins(run, events).await.expect_err("no manifest came");
        (report.failure.code(), report.exit(), report.failure.why())
    }

    /// Bytes that are what their hash says, with another body than any manifest of this protocol.
    fn of_another_version(body: Vec<u8>) -> (RunId, Vec<u8>) {
        const DOMAIN: &str = "skein manifest 1";
        let run = keyed(DOMAIN, &[&body]);
        (run, minicbor::to_vec(owner().sign(DOMAIN, body)).unwrap())
    }

    #[tokio::test]
    async fn what_peers_of_an_invite_answer_has_its_code() {
        let (run, signed) = signed::sign(&manifest(), &owner());
        let entered = joins(run, vec![hands_out(INVITED, signed.clone())]).await.unwrap();
        assert_eq!((entered.from, entered.manifest), (INVITED, manifest()));

        let mut other = manifest();
        other.run.name = "other".into();
        let (_, altered) = signed::sign(&other, &owner());
        let (code, exit, why) = refusal(run, vec![hands_out(INVITED, altered)]).await;
        assert!((code, exit) == ("SK305", 9) && why.contains(&run.to_string()), "{code} {why}");

        let (_, forged) = signed::sign(&manifest(), &Key::from_secret([5; 32]));
        let (code, exit, _) = refusal(run, vec![hands_out(INVITED, forged)]).await;
        assert_eq!((code, exit), ("SK311", 9));

        let (code, exit, why) = refusal(run, vec![hands_out(INVITED, b"noise".to_vec())]).await;
        assert!((code, exit) == ("SK305", 9) && why.contains("no signed manifest"), "{code} {why}");

        let (code, exit, why) = refusal(run, vec![said(INVITED, hello::Frame::Unknown(run))]).await;
        assert!((code, exit) == ("SK209", 5) && why.contains("do not know tiny"), "{code} {why}");

        let full = NetEvent::Lost { peer: INVITED, why: format!("closed by the peer: {FULL}") };
        assert_eq!(refusal(run, vec![full]).await.0, "SK309");

        let why = "12D3KooWOther answered at /ip4/192.0.2.7/udp/4747/quic-v1".to_string();
        let other = NetEvent::DialFailed { peer: Some(INVITED), address: String::new(), why };
        let (code, exit, why) = refusal(run, vec![other]).await;
        assert!((code, exit) == ("SK202", 5) && why.contains("192.0.2.7") && why.contains("12D3KooWOther"), "{why}");
    }

    #[tokio::test]
    async fn a_manifest_of_another_version_is_no_forgery() {
        let mut later = manifest();
        later.run.protocol = 9;
        let (run, signed) = signed::sign(&later, &owner());
        let (code, exit, why) = refusal(run, vec![hands_out(INVITED, signed)]).await;
        assert_eq!((code, exit, why.as_str()), ("SK306", 6, "The run speaks protocol 9, this build protocol 1."));
        let (run, signed) = of_another_version(vec![0x83, 1, 2, 3]);
        let (code, exit, why) = refusal(run, vec![hands_out(INVITED, signed)]).await;
        assert!((code, exit) == ("SK306", 6) && why.contains("cannot be read here"), "{code} {why}");
    }

    #[tokio::test]
    async fn a_stranger_is_no_reason_and_no_end() {
        let (run, signed) = signed::sign(&manifest(), &owner());
        let mut other = manifest();
        other.run.name = "other".into();
        let (_, altered) = signed::sign(&other, &owner());
        let noise = || {
            vec![
                NetEvent::Up { peer: STRANGER, path: Path::Direct, address: String::new() },
                said(STRANGER, hello::Frame::Unknown(run)),
                hands_out(STRANGER, altered.clone()),
                hands_out(STRANGER, b"noise".to_vec()),
                NetEvent::Lost { peer: STRANGER, why: format!("closed by the peer: {FULL}") },
            ]
        };
        assert_eq!(refusal(run, noise()).await.0, "SK201", "nobody of the invite has answered");
        let then = noise().into_iter().chain([hands_out(ALSO_INVITED, signed.clone())]).collect();
        assert_eq!(joins(run, then).await.unwrap().from, ALSO_INVITED);
        // Nor does one liar of the invite keep the others from being asked.
        let liar = vec![hands_out(INVITED, altered), hands_out(ALSO_INVITED, signed)];
        assert_eq!(joins(run, liar).await.unwrap().from, ALSO_INVITED);
    }

    #[test]
    fn what_the_machine_refuses_has_its_code() {
        let code = |error: NetError| {
            let report = circumstances().report(error.into());
            (report.failure.code(), report.exit())
        };
        assert_eq!(code(NetError::PortDenied { port: 80 }), ("SK102", 4));
        assert_eq!(code(NetError::PortTaken { port: 5000 }), ("SK101", 4));
        // How a peer ends whose last states are on no disk.
        let full = HomeError::DiskFull { path: "home".into(), free: 3, needed: 9 };
        let report = Report::from(full);
        assert_eq!((report.failure.code(), report.exit()), ("SK126", 4));
    }
}
