//! The invite: one word that brings a peer into a run. In: a run, a few peers and their addresses. Out: `skein1…`, and back. It
//! is a capability to ask, not a proof: the manifest is fetched and checked by its hash. It contacts nobody.
//!
//! `skein1` + base32 (lower case, no padding, RFC 4648) of `cbor(Invite) || first 4 bytes of BLAKE3(those bytes)`.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use data_encoding::BASE32_NOPAD;
use minicbor::{Decode, Decoder, Encode, Encoder, bytes::ByteSlice, data::Type};

use crate::{
    hash::Digest,
    id::PeerId,
    wire::{exact, limits},
};

/// The version of this build's invites.
pub const VERSION: u8 = 1;
/// Peers of one invite; at least one.
pub const PEERS_MAX: usize = 6;
/// Addresses of one peer; at least one.
pub const ADDRESSES_MAX: usize = 4;
/// Bytes of a label.
pub const LABEL_MAX: usize = 24;
/// Characters of an encoded invite, the longest of which has about 1,500.
pub const TEXT_MAX: usize = 2048;
/// Bytes that are looked at: an invite and the white space and quotes that it was copied with.
const PASTED_MAX: usize = 2 * TEXT_MAX;

const PREFIX: &str = "skein1";
const CHECKSUM: usize = 4;

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Invite {
    #[n(0)]
    pub version: u8,
    /// Hash of the canonical manifest, which any peer can hand out.
    #[n(1)]
    pub run: Digest,
    /// Claimed: shown before the manifest has been seen.
    #[n(2)]
    pub label: String,
    /// 1 to [`PEERS_MAX`].
    #[n(3)]
    #[cbor(decode_with = "peer_list", encode_with = "limits::encode_list")]
    pub peers: Vec<InvitePeer>,
    /// Reserved: none is written, and none is looked at.
    #[n(4)]
    pub token: Option<Token>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct InvitePeer {
    #[n(0)]
    pub id: PeerId,
    /// 1 to [`ADDRESSES_MAX`], the best first.
    #[n(1)]
    #[cbor(decode_with = "address_list", encode_with = "limits::encode_list")]
    pub addresses: Vec<Address>,
}

/// Admission for its bearer, until a time. Reserved: this version neither makes nor verifies one.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Token {
    /// One bit a role.
    #[n(0)]
    pub roles: u8,
    /// Minutes since 2026-01-01T00:00:00Z.
    #[n(1)]
    pub not_after: u32,
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub nonce: [u8; 8],
    /// By the owner, or a delegate that the manifest names.
    #[n(3)]
    #[cbor(with = "minicbor::bytes")]
    pub signature: [u8; 64],
}

/// Where a peer listens. Written `/ip4/203.0.113.7/udp/4747/quic-v1` or `/ip6/2001:db8::7/tcp/4747`; in an invite 7 or 19 bytes:
/// kind, IP, port (big-endian).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    pub transport: Transport,
    pub ip: IpAddr,
    /// Above 0.
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    Quic,
    Tcp,
}

/// Why a text is no invite that this build can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadInvite {
    #[error("this is not an invite: it starts with {starts:?}, expected {PREFIX}…")]
    NotAnInvite { starts: String },
    #[error("the invite is damaged: it was not copied whole, or not as it was")]
    Damaged,
    #[error("the invite has format {0}, made by a newer version; this build knows {VERSION}")]
    Newer(u64),
    #[error("a text of {0} bytes is no invite, none is longer than {TEXT_MAX}")]
    TooLong(usize),
    #[error("the invite is malformed: {0}")]
    Malformed(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an address is written /ip4/IP/udp/PORT/quic-v1, /ip4/IP/tcp/PORT, or the same with ip6")]
pub struct BadAddress;

impl Invite {
    /// The one word that [`Invite::decode`] reads.
    ///
    /// # Errors
    /// [`BadInvite::Malformed`] where a field is outside its limits.
    pub fn encode(&self) -> Result<String, BadInvite> {
        self.check()?;
        let mut bytes = minicbor::to_vec(self).expect("writing to a Vec cannot fail");
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        let mut text = BASE32_NOPAD.encode(&bytes);
        text.make_ascii_lowercase();
        Ok(format!("{PREFIX}{text}"))
    }

    /// Reads an invite as it comes out of a chat: with `skein:` before it, white space, quotes and line breaks anywhere, and in
    /// upper case. Nothing is contacted, and nothing is allocated before the length is known to be an invite's.
    ///
    /// # Errors
    /// See [`BadInvite`]. A checksum finds what was lost or changed in copying.
    pub fn decode(text: &str) -> Result<Self, BadInvite> {
        if text.len() > PASTED_MAX {
            return Err(BadInvite::TooLong(text.len()));
        }
        let cleaned: String = text.chars().filter(|c| !is_wrapping(*c)).map(|c| c.to_ascii_lowercase()).collect();
        if cleaned.len() > TEXT_MAX {
            return Err(BadInvite::TooLong(cleaned.len()));
        }
        let word = cleaned.strip_prefix("skein:").unwrap_or(&cleaned);
        let word = word.strip_prefix("//").unwrap_or(word);
        let bytes = BASE32_NOPAD.decode(body_of(word)?.to_ascii_uppercase().as_bytes());
        let bytes = bytes.map_err(|_| BadInvite::Damaged)?;
        let (body, sum) = bytes.split_last_chunk::<CHECKSUM>().ok_or(BadInvite::Damaged)?;
        if checksum(body) != *sum {
            return Err(BadInvite::Damaged);
        }
        Self::read(body)
    }

    /// From bytes that arrived as they were made.
    fn read(body: &[u8]) -> Result<Self, BadInvite> {
        let malformed = |error: minicbor::decode::Error| BadInvite::Malformed(error.to_string());
        let mut decoder = Decoder::new(body);
        // The version is all that is known of a newer format.
        decoder.array().map_err(malformed)?;
        match decoder.u64().map_err(malformed)? {
            version if version > u64::from(VERSION) => return Err(BadInvite::Newer(version)),
            _ => {}
        }
        let invite: Invite = exact(body, TEXT_MAX).map_err(|error| BadInvite::Malformed(error.to_string()))?;
        invite.check()?;
        if minicbor::to_vec(&invite).expect("writing to a Vec cannot fail") != body {
            return Err(BadInvite::Malformed("it is not written in its one form".into()));
        }
        Ok(invite)
    }

    fn check(&self) -> Result<(), BadInvite> {
        let bad = |what: &str| Err(BadInvite::Malformed(what.into()));
        if self.version != VERSION {
            return bad("its version does not exist");
        }
        if self.label.len() > LABEL_MAX || self.label.chars().any(|c| c.is_control() || is_direction(c)) {
            return bad("its label is longer than 24 bytes, or has characters that cannot be shown");
        }
        if !(1..=PEERS_MAX).contains(&self.peers.len()) {
            return bad("it has no peers, or more than 6");
        }
        for (i, peer) in self.peers.iter().enumerate() {
            if !(1..=ADDRESSES_MAX).contains(&peer.addresses.len()) {
                return bad("a peer has no addresses, or more than 4");
            }
            if peer.addresses.iter().any(|address| address.port == 0) {
                return bad("an address has port 0");
            }
            if self.peers[..i].iter().any(|before| before.id == peer.id) {
                return bad("it names a peer twice");
            }
        }
        Ok(())
    }
}

impl FromStr for Invite {
    type Err = BadInvite;
    fn from_str(text: &str) -> Result<Self, BadInvite> {
        Invite::decode(text)
    }
}

/// What follows the prefix.
fn body_of(word: &str) -> Result<&str, BadInvite> {
    if let Some(body) = word.strip_prefix(PREFIX) {
        return Ok(body);
    }
    let format = word.strip_prefix("skein").and_then(|rest| rest.chars().next()).and_then(|c| c.to_digit(10));
    match format {
        Some(format) if format > 1 => Err(BadInvite::Newer(u64::from(format))),
        _ => Err(BadInvite::NotAnInvite { starts: word.chars().take(PREFIX.len()).collect() }),
    }
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM] {
    *blake3::hash(body).as_bytes().first_chunk().expect("a hash has 32 bytes")
}

/// What mails, chats and shells put around and into a long word.
fn is_wrapping(c: char) -> bool {
    c.is_whitespace()
        || matches!(c, '"' | '\'' | '`' | '\u{2018}'..='\u{201f}' | '«' | '»' | '\u{200b}'..='\u{200d}' | '\u{feff}')
}

/// Marks that make a terminal show text in another order than it has.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn peer_list<'b, Ctx>(d: &mut Decoder<'b>, ctx: &mut Ctx) -> Result<Vec<InvitePeer>, minicbor::decode::Error> {
    limits::list::<Ctx, InvitePeer, PEERS_MAX>(d, ctx)
}

fn address_list<'b, Ctx>(d: &mut Decoder<'b>, ctx: &mut Ctx) -> Result<Vec<Address>, minicbor::decode::Error> {
    limits::list::<Ctx, Address, ADDRESSES_MAX>(d, ctx)
}

impl<C> Encode<C> for Address {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        let tcp = u8::from(self.transport == Transport::Tcp);
        let mut packed = Vec::with_capacity(19);
        match self.ip {
            IpAddr::V4(ip) => {
                packed.push(2 * tcp);
                packed.extend_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                packed.push(2 * tcp + 1);
                packed.extend_from_slice(&ip.octets());
            }
        }
        packed.extend_from_slice(&self.port.to_be_bytes());
        <&ByteSlice>::from(&packed[..]).encode(e, ctx)
    }
}

impl<'b, C> Decode<'b, C> for Address {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let position = d.position();
        let wrong = || minicbor::decode::Error::message("no packed address").at(position);
        if d.datatype()? != Type::Bytes {
            return Err(wrong());
        }
        let packed = d.bytes()?;
        let (kind, rest) = packed.split_first().ok_or_else(wrong)?;
        let (ip, port) = rest.split_last_chunk::<2>().ok_or_else(wrong)?;
        let (transport, v6) = match kind {
            0 => (Transport::Quic, false),
            1 => (Transport::Quic, true),
            2 => (Transport::Tcp, false),
            3 => (Transport::Tcp, true),
            _ => return Err(wrong()),
        };
        let ip = match v6 {
            false => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(ip).map_err(|_| wrong())?)),
            true => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(ip).map_err(|_| wrong())?)),
        };
        Ok(Address { transport, ip, port: u16::from_be_bytes(*port) })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.ip.is_ipv4() { 4 } else { 6 };
        let Address { transport, ip, port } = self;
        match transport {
            Transport::Quic => write!(f, "/ip{family}/{ip}/udp/{port}/quic-v1"),
            Transport::Tcp => write!(f, "/ip{family}/{ip}/tcp/{port}"),
        }
    }
}

impl FromStr for Address {
    type Err = BadAddress;
    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let mut parts = text.split('/');
        let mut next = || parts.next().ok_or(BadAddress);
        if !next()?.is_empty() {
            return Err(BadAddress);
        }
        let ip = match next()? {
            "ip4" => IpAddr::V4(next()?.parse().map_err(|_| BadAddress)?),
            "ip6" => IpAddr::V6(next()?.parse().map_err(|_| BadAddress)?),
            _ => return Err(BadAddress),
        };
        let protocol = next()?;
        let port = next()?;
        if port.starts_with('+') {
            return Err(BadAddress);
        }
        let port: u16 = port.parse().map_err(|_| BadAddress)?;
        let transport = match (protocol, parts.next(), parts.next()) {
            ("udp", Some("quic-v1"), None) => Transport::Quic,
            ("tcp", None, None) => Transport::Tcp,
            _ => return Err(BadAddress),
        };
        if port == 0 { Err(BadAddress) } else { Ok(Address { transport, ip, port }) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    fn small() -> Invite {
        let first = InvitePeer { id: PeerId([1; 32]), addresses: vec![address("/ip4/203.0.113.7/udp/4747/quic-v1")] };
        Invite { version: 1, run: Digest([7; 32]), label: "tiny-verse".into(), peers: vec![first], token: None }
    }

    const GOLDEN: &str = "skein1qqavqiaha4dqobyha4dqobyha4dqobyha4dqobyha4dqobyha4dqobyha5vhi2lopewxmzlsonsydasyeaaqcaib\
        aeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqdakhadfqa4ihckfqs3j36e";

    #[test]
    fn an_invite_is_written_as_it_always_was() {
        assert_eq!(small().encode().unwrap(), GOLDEN);
        assert_eq!(GOLDEN.parse(), Ok(small()));
    }

    #[test]
    fn an_invite_survives_being_pasted() {
        let word = small().encode().unwrap();
        let (left, right) = word.split_at(40);
        for pasted in [
            format!("skein:{word}"),
            format!("skein://{word}"),
            format!("  \"{word}\"\n"),
            format!("> {left}\r\n\t {right}").replacen("> ", "", 1),
            format!("\u{201c}SKEIN:{}\u{201d}", word.to_uppercase()),
            format!("'{left}\u{200b}{right}'"),
        ] {
            assert_eq!(Invite::decode(&pasted), Ok(small()), "{pasted}");
        }
    }

    #[test]
    fn each_refusal_has_its_reason() {
        let word = small().encode().unwrap();
        let starts = |starts: &str| Err(BadInvite::NotAnInvite { starts: starts.into() });
        assert_eq!(Invite::decode("hello world"), starts("hellow"));
        assert_eq!(Invite::decode(""), starts(""));
        assert_eq!(Invite::decode("skein"), starts("skein"));
        assert_eq!(Invite::decode(&word.replacen("skein1", "skein2", 1)), Err(BadInvite::Newer(2)));
        assert_eq!(Invite::decode("skein1"), Err(BadInvite::Damaged));
        assert_eq!(Invite::decode("skein1aaaa!aaa"), Err(BadInvite::Damaged));
        assert_eq!(Invite::decode(&word[..word.len() - 1]), Err(BadInvite::Damaged));
        assert_eq!(Invite::decode(&"a".repeat(1 << 20)), Err(BadInvite::TooLong(1 << 20)));
        assert_eq!(Invite::decode(&"a".repeat(TEXT_MAX + 1)), Err(BadInvite::TooLong(TEXT_MAX + 1)));
        // A newer format says so, whatever else it holds.
        assert_eq!(Invite::decode(&sealed(&[0x82, 0x18, 0x2a, 0xf6])), Err(BadInvite::Newer(42)));
        assert!(matches!(Invite::decode(&sealed(&[0x81, 0x01])), Err(BadInvite::Malformed(_))));
    }

    /// Any bytes as an invite with a good checksum.
    fn sealed(body: &[u8]) -> String {
        format!("{PREFIX}{}", BASE32_NOPAD.encode(&[body, &checksum(body)].concat()))
    }

    #[test]
    fn what_is_outside_its_limits_is_neither_written_nor_read() {
        let changes: [fn(&mut Invite); 9] = [
            |i| i.peers.clear(),
            |i| i.peers = (0..7).map(|n| InvitePeer { id: PeerId([n; 32]), ..i.peers[0].clone() }).collect(),
            |i| i.peers.push(i.peers[0].clone()),
            |i| i.peers[0].addresses.clear(),
            |i| i.peers[0].addresses = vec![i.peers[0].addresses[0]; 5],
            |i| i.peers[0].addresses[0].port = 0,
            |i| i.label = "x".repeat(25),
            |i| i.label = "\u{1b}[2J".into(),
            |i| i.version = 0,
        ];
        for change in changes {
            let mut invite = small();
            change(&mut invite);
            assert!(matches!(invite.encode(), Err(BadInvite::Malformed(_))), "{invite:?}");
            let word = sealed(&minicbor::to_vec(&invite).unwrap());
            assert!(matches!(Invite::decode(&word), Err(BadInvite::Malformed(_))), "{invite:?}");
        }
        // The same invite with a longer form of a number, and with something behind it.
        let mut body = minicbor::to_vec(small()).unwrap();
        body.push(0);
        assert!(matches!(Invite::decode(&sealed(&body)), Err(BadInvite::Malformed(_))));
        body.pop();
        body.splice(1..2, [0x18, 0x01]);
        assert!(matches!(Invite::decode(&sealed(&body)), Err(BadInvite::Malformed(_))));
    }

    #[test]
    fn the_largest_invite_fits_its_limit_and_a_usual_one_is_short() {
        let v6 = address("/ip6/2001:db8::7/udp/65535/quic-v1");
        let token = Token { roles: 255, not_after: u32::MAX, nonce: [255; 8], signature: [255; 64] };
        let peers = (0..6).map(|n| InvitePeer { id: PeerId([n; 32]), addresses: vec![v6; 4] }).collect();
        let large = Invite { label: "x".repeat(24), peers, token: Some(token), ..small() };
        let word = large.encode().unwrap();
        assert!(word.len() <= TEXT_MAX * 3 / 4, "{}", word.len());
        assert_eq!(Invite::decode(&word), Ok(large));
        let length = small().encode().unwrap().len();
        assert!(length < 215, "{length}");
    }

    #[test]
    fn addresses_are_read_in_four_forms_only() {
        for text in [
            "/ip4/1.2.3.4/udp/4747/quic-v1",
            "/ip6/2001:db8::7/udp/4747/quic-v1",
            "/ip4/1.2.3.4/tcp/4747",
            "/ip6/::1/tcp/65535",
        ] {
            assert_eq!(address(text).to_string(), text);
        }
        for text in [
            "",
            "/",
            "ip4/1.2.3.4/tcp/1",
            "/ip4/1.2.3.4/tcp/0",
            "/ip4/1.2.3.4/tcp/+1",
            "/ip4/1.2.3.4/tcp/65536",
            "/ip4/1.2.3.4/tcp/1/",
            "/ip4/1.2.3.4/udp/1",
            "/ip4/1.2.3.4/udp/1/quic",
            "/ip4/1.2.3.4/udp/1/quic-v1/p2p/x",
            "/ip4/::1/tcp/1",
            "/ip6/1.2.3.4/tcp/1",
            "/dns4/example.org/tcp/1",
        ] {
            assert_eq!(text.parse::<Address>(), Err(BadAddress), "{text}");
        }
    }

    prop_compose! {
        fn any_address()(tcp: bool, v6: bool, bits: u128, port in 1u16..) -> Address {
            let ip = if v6 { IpAddr::V6(Ipv6Addr::from(bits)) } else { IpAddr::V4(Ipv4Addr::from(bits as u32)) };
            Address { transport: if tcp { Transport::Tcp } else { Transport::Quic }, ip, port }
        }
    }

    prop_compose! {
        fn any_token()(roles: u8, not_after: u32, nonce: [u8; 8], fill: u8) -> Token {
            Token { roles, not_after, nonce, signature: [fill; 64] }
        }
    }

    prop_compose! {
        fn any_invite()(
            run: [u8; 32],
            label in "[a-zé ]{0,12}",
            peers in vec(vec(any_address(), 1..=4), 1..=6),
            token in prop::option::of(any_token()),
        ) -> Invite {
            let peer = |(n, addresses)| InvitePeer { id: PeerId([n as u8; 32]), addresses };
            Invite { version: 1, run: Digest(run), label, peers: peers.into_iter().enumerate().map(peer).collect(), token }
        }
    }

    proptest! {
        #[test]
        fn invites_and_addresses_survive_being_written_and_read(invite in any_invite()) {
            prop_assert_eq!(Invite::decode(&invite.encode().unwrap()), Ok(invite.clone()));
            for address in invite.peers.iter().flat_map(|peer| &peer.addresses) {
                prop_assert_eq!(address.to_string().parse(), Ok(*address));
            }
        }

        /// Whatever bytes follow a good checksum: an error, or an invite within its limits that is written the same.
        #[test]
        fn any_bytes_are_read_safely(bytes in vec(any::<u8>(), 0..1500)) {
            prop_assert!(reads_safely(&bytes));
        }

        #[test]
        fn any_mutation_is_read_safely(invite in any_invite(), at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let mut body = minicbor::to_vec(&invite).unwrap();
            let at = at.index(body.len());
            body[at] = byte;
            prop_assert!(reads_safely(&body));
            body.truncate(cut.index(body.len()));
            prop_assert!(reads_safely(&body));
            let mut word = invite.encode().unwrap();
            let at = PREFIX.len() + at;
            let letter = char::from(b'a' + byte % 26);
            let changed = !word[at..].starts_with(letter);
            word.replace_range(at..at + 1, letter.encode_utf8(&mut [0; 4]));
            prop_assert_eq!(Invite::decode(&word).is_err(), changed);
        }

        #[test]
        fn any_text_is_read_safely(text in ".{0,300}", pasted in "skein[:0-9]{1,2}[a-z2-7 \n]{0,300}") {
            let _ = Invite::decode(&text);
            let _ = Invite::decode(&pasted);
            let _ = text.parse::<Address>();
        }
    }

    fn reads_safely(body: &[u8]) -> bool {
        match Invite::decode(&sealed(body)) {
            Err(_) => true,
            Ok(invite) => invite.check().is_ok() && minicbor::to_vec(&invite).unwrap() == body,
        }
    }
}
