//! `skein invite`: the one word by which others join, from the peer that runs here; or what such a word says.

use serde_json::json;
use skein_protocol::Invite;

use super::ask;
use crate::cli::{
    args,
    context::Context,
    failure::{Failure, Report},
    show::Peer,
};

pub fn run(args: &args::Invite, context: &Context) -> Result<u8, Report> {
    match &args.show {
        Some(word) => Ok(show(&read(word)?, context)),
        None => make(context),
    }
}

fn make(context: &Context) -> Result<u8, Report> {
    let made = ask::client(context)?.invite()?;
    if context.out.style().json {
        context.out.document("invite", &made);
        return Ok(0);
    }
    context.out.print(&made.invite);
    context.out.note(&format!("others join with:  skein join {}", made.invite));
    Ok(0)
}

/// What an invite says, without asking anybody.
pub(super) fn show(invite: &Invite, context: &Context) -> u8 {
    if context.out.style().json {
        let peers: Vec<_> = invite
            .peers
            .iter()
            .map(|peer| {
                let addresses: Vec<String> = peer.addresses.iter().map(ToString::to_string).collect();
                json!({ "peer": peer.id, "addresses": addresses })
            })
            .collect();
        let value = json!({ "run": invite.run, "label": invite.label, "peers": peers });
        context.out.document("invite", &value);
    } else {
        context.out.print(&text(invite));
    }
    0
}

fn text(invite: &Invite) -> String {
    let label = if invite.label.is_empty() { "(without a name)" } else { &invite.label };
    let mut lines = vec![format!("run    {label} (claimed)   {}", invite.run)];
    for peer in &invite.peers {
        lines.push(format!("peer   {}", Peer(peer.id)));
        lines.extend(peer.addresses.iter().map(|address| format!("       {address}")));
    }
    lines.join("\n")
}

/// What an invite says, or in which of the catalogue's ways it is none.
pub(super) fn read(word: &str) -> Result<Invite, Report> {
    Invite::decode(word).map_err(|error| Failure::from(error).into())
}

#[cfg(test)]
mod tests {
    use skein_protocol::{
        PeerId,
        hash::Digest,
        invite::{self, InvitePeer},
    };

    use super::*;

    #[test]
    fn an_invite_is_shown_without_asking_anybody() {
        let peer =
            InvitePeer { id: PeerId([1; 32]), addresses: vec!["/ip4/192.0.2.7/udp/4747/quic-v1".parse().unwrap()] };
        let invite = Invite {
            version: invite::VERSION,
            run: Digest([7; 32]),
            label: "tiny-verse".into(),
            peers: vec![peer],
            token: None,
        };
        let read = read(&invite.encode().unwrap()).unwrap();
        let text = text(&read);
        assert!(text.starts_with("run    tiny-verse (claimed)   b3:0707"), "{text}");
        assert!(text.ends_with("\n       /ip4/192.0.2.7/udp/4747/quic-v1"), "{text}");
    }

    #[test]
    fn what_is_no_invite_has_its_own_message() {
        assert_eq!(read("tiny-verse").unwrap_err().failure.code(), "SK301");
        assert_eq!(read("skein1qpz4m").unwrap_err().failure.code(), "SK302");
        assert_eq!(read(&"a".repeat(10_000)).unwrap_err().failure.code(), "SK302");
    }
}
