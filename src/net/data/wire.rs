//! What the data plane says on its streams: the greeting, the records of the control stream, the head of a message.
//! In and out: bytes. Everything from outside is checked here and read as `None` when it is not ours. Integers are little
//! endian. Knows no stream.

use skein_protocol::Lane;

/// First bytes of a control stream; the last one is the version.
const MAGIC: [u8; 4] = *b"SKN\x01";
pub const GREETING_LEN: usize = 20;

/// What each side says first: which start of its process this is, and, from the side that dialled, a number that is
/// higher for later connections. Both sides rank duplicate connections by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    pub instance: u64,
    pub serial: u64,
}

impl Greeting {
    pub fn encode(&self) -> [u8; GREETING_LEN] {
        let mut bytes = [0; GREETING_LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..12].copy_from_slice(&self.instance.to_le_bytes());
        bytes[12..].copy_from_slice(&self.serial.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; GREETING_LEN]) -> Option<Greeting> {
        let rest = bytes.strip_prefix(&MAGIC[..])?;
        let (instance, serial) = rest.split_first_chunk::<8>()?;
        Some(Greeting { instance: u64::from_le_bytes(*instance), serial: u64::from_le_bytes(serial.try_into().ok()?) })
    }
}

pub const RECORD_HEAD_LEN: usize = 5;

/// Bytes that a record may have beyond a frame.
pub const RECORD_OVERHEAD: u32 = 16;

/// What a record on the control stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A frame of the control lane.
    Frame,
    /// Eight bytes that come back.
    Ping,
    Pong,
    /// From here on frames belong to this segment: see [`Segment`].
    Segment,
    /// I send no more frames on this connection; messages of other lanes may be on their way still.
    LastFrame,
    /// I send nothing more on this connection, and everything I sent was received.
    End,
    /// I have read your end.
    EndRead,
    /// A message is not read, or not to its end: see [`Refusal`].
    Refused(Lane),
    /// Where messages have no streams of their own: the head and frame of a message, a piece of its body, its early end.
    Start(Lane),
    Piece(Lane),
    Abort(Lane),
}

const START: u8 = 0x10;
const PIECE: u8 = 0x20;
const ABORT: u8 = 0x30;
const REFUSED: u8 = 0x40;

impl Kind {
    fn number(self) -> u8 {
        match self {
            Kind::Frame => 0,
            Kind::Ping => 1,
            Kind::Pong => 2,
            Kind::Segment => 3,
            Kind::End => 4,
            Kind::EndRead => 5,
            Kind::LastFrame => 6,
            Kind::Start(lane) => START + lane as u8,
            Kind::Piece(lane) => PIECE + lane as u8,
            Kind::Abort(lane) => ABORT + lane as u8,
            Kind::Refused(lane) => REFUSED + lane as u8,
        }
    }

    fn from_number(number: u8) -> Option<Kind> {
        let lane = || Lane::from_index(number & 0x0f);
        Some(match number & 0xf0 {
            0 => match number {
                0 => Kind::Frame,
                1 => Kind::Ping,
                2 => Kind::Pong,
                3 => Kind::Segment,
                4 => Kind::End,
                5 => Kind::EndRead,
                6 => Kind::LastFrame,
                _ => return None,
            },
            START => Kind::Start(lane()?),
            PIECE => Kind::Piece(lane()?),
            ABORT => Kind::Abort(lane()?),
            REFUSED => Kind::Refused(lane()?),
            _ => return None,
        })
    }
}

pub fn record_head(kind: Kind, len: u32) -> [u8; RECORD_HEAD_LEN] {
    let [a, b, c, d] = len.to_le_bytes();
    [kind.number(), a, b, c, d]
}

/// Kind and length; a kind of a later version is `None` and its record is skipped.
pub fn read_record_head(bytes: [u8; RECORD_HEAD_LEN]) -> (Option<Kind>, u32) {
    let [kind, a, b, c, d] = bytes;
    (Kind::from_number(kind), u32::from_le_bytes([a, b, c, d]))
}

/// Control frames keep their order when they move from one connection to another: the sender numbers the stretches that it
/// sends over each, and the receiver reads the next stretch when it has read the last frame of the one before. `broken` says that
/// the former connection died, so that its end will never come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub number: u32,
    pub broken: bool,
}

impl Segment {
    pub fn encode(&self) -> [u8; 5] {
        let [a, b, c, d] = self.number.to_le_bytes();
        [a, b, c, d, u8::from(self.broken)]
    }

    pub fn decode(bytes: &[u8]) -> Option<Segment> {
        let [a, b, c, d, broken] = *bytes else { return None };
        Some(Segment { number: u32::from_le_bytes([a, b, c, d]), broken: broken != 0 })
    }
}

/// Names the message that is not read to its end: by the index of its stream, or where messages have none by its number in its
/// lane on this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub number: u64,
    pub code: Code,
}

impl Refusal {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.number.to_le_bytes().to_vec();
        bytes.push(self.code as u8);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Refusal> {
        let (number, code) = bytes.split_first_chunk::<8>()?;
        let [code] = *code else { return None };
        Some(Refusal { number: u64::from_le_bytes(*number), code: Code::from_number(u64::from(code)) })
    }
}

/// Why a stream was stopped or a connection closed. The numbers are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Code {
    Done = 0,
    Busy = 1,
    Stale = 2,
    Cancelled = 3,
    Malformed = 4,
    TooLarge = 5,
    ShuttingDown = 6,
    NotWanted = 7,
}

impl Code {
    pub const ALL: [Code; 8] = [
        Code::Done,
        Code::Busy,
        Code::Stale,
        Code::Cancelled,
        Code::Malformed,
        Code::TooLarge,
        Code::ShuttingDown,
        Code::NotWanted,
    ];

    /// The code with this number; unknown numbers are those of a later version, and read as `Cancelled`.
    pub fn from_number(number: u64) -> Code {
        usize::try_from(number).ok().and_then(|n| Code::ALL.get(n)).copied().unwrap_or(Code::Cancelled)
    }

    pub fn words(self) -> &'static str {
        match self {
            Code::Done => "done",
            Code::Busy => "busy",
            Code::Stale => "stale",
            Code::Cancelled => "cancelled",
            Code::Malformed => "malformed",
            Code::TooLarge => "too large",
            Code::ShuttingDown => "shutting down",
            Code::NotWanted => "not wanted",
        }
    }
}

pub const HEAD_LEN: usize = 13;

/// How a message begins, on a stream of its own or in a `Start` record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub lane: Lane,
    pub frame_len: u32,
    pub body_len: u64,
}

impl Head {
    pub fn encode(&self) -> [u8; HEAD_LEN] {
        let mut bytes = [0; HEAD_LEN];
        bytes[0] = self.lane as u8;
        bytes[1..5].copy_from_slice(&self.frame_len.to_le_bytes());
        bytes[5..].copy_from_slice(&self.body_len.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; HEAD_LEN]) -> Option<Head> {
        let (lane, rest) = bytes.split_first()?;
        let (frame_len, body_len) = rest.split_first_chunk::<4>()?;
        Some(Head {
            lane: Lane::from_index(*lane)?,
            frame_len: u32::from_le_bytes(*frame_len),
            body_len: u64::from_le_bytes(body_len.try_into().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let greeting = Greeting { instance: 7, serial: u64::MAX };
        assert_eq!(Greeting::decode(&greeting.encode()), Some(greeting));
        let segment = Segment { number: 70_000, broken: true };
        assert_eq!(Segment::decode(&segment.encode()), Some(segment));
        let refusal = Refusal { number: 1 << 60, code: Code::Stale };
        assert_eq!(Refusal::decode(&refusal.encode()), Some(refusal));
        for lane in Lane::ALL {
            let head = Head { lane, frame_len: 3, body_len: 1 << 40 };
            assert_eq!(Head::decode(&head.encode()), Some(head));
            for kind in [Kind::Start(lane), Kind::Piece(lane), Kind::Abort(lane), Kind::Refused(lane)] {
                assert_eq!(read_record_head(record_head(kind, 9)), (Some(kind), 9));
            }
        }
        for kind in [Kind::Frame, Kind::Ping, Kind::Pong, Kind::Segment, Kind::End, Kind::EndRead, Kind::LastFrame] {
            assert_eq!(read_record_head(record_head(kind, u32::MAX)), (Some(kind), u32::MAX));
        }
    }

    #[test]
    fn every_number_reads_as_one_kind_or_none() {
        let known = (0..=255u8).filter_map(Kind::from_number).count();
        assert_eq!(known, 7 + 4 * Lane::ALL.len());
        assert!((0..=255u8).all(|n| Kind::from_number(n).is_none_or(|kind| kind.number() == n)));
    }

    #[test]
    fn foreign_bytes_are_not_read() {
        assert_eq!(Greeting::decode(b"GET / HTTP/1.1\r\n\r\n.."), None);
        assert_eq!(Head::decode(&[6; HEAD_LEN]), None);
        assert_eq!(Segment::decode(&[1, 2, 3]), None);
        assert_eq!(Refusal::decode(&[0; 8]), None);
    }
}
