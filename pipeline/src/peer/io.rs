//! What a driver tells a peer, and what a peer asks of its driver. Both drivers speak exactly this.

use skein_protocol::{
    Blob, Incarnation, JobId, Lane, PeerId, Stage, Utc, Version,
    event::{Event, Severity},
    hash::Digest,
    wire::{Frame, Starts, flow::About},
};

use crate::{
    flow::coding::LinkSpeed,
    job::{Done, Job},
};

/// Facts, in the past tense.
#[derive(Clone, Debug)]
pub enum Input {
    /// A frame arrived whole; its body, if any, lies in the store and is the peer's to release.
    Frame {
        from: PeerId,
        frame: Frame,
        body: Option<Blob>,
    },
    /// A connection stands; nothing was said yet.
    PeerUp {
        peer: PeerId,
    },
    /// The connection is gone, and with it everything that was on its way.
    PeerLost {
        peer: PeerId,
        why: String,
    },
    /// Answer to `Lookup`: peers that say they have the key. The last answer of a request has `last`.
    Found {
        request: u64,
        peers: Vec<(PeerId, Vec<String>)>,
        last: bool,
    },
    /// A job ended. Blobs in `done` are the peer's to release.
    Done {
        job: JobId,
        done: Done,
    },
    /// Records of samples that `Output::Records` asked for: token ids and labels of one micro-batch, and where its records begin.
    Records {
        request: u64,
        tokens: Blob,
        labels: Blob,
        starts: Starts,
    },
    /// There is no more data (an epoch limit, an empty source).
    RecordsEnded,
    /// The incarnation that `Output::Incarnation` asked for is durable.
    Incarnated {
        incarnation: Incarnation,
    },
    /// Answer to `Shelve`: whether the bytes have the hash. Those that have lie on the disk, or stay in memory where it is full.
    Shelved {
        blob: Digest,
        is_right: bool,
    },
    /// What the connection to this peer does, from time to time.
    Measured {
        peer: PeerId,
        link: LinkSpeed,
    },
    /// The body of an id, activations or a gradient by its lane, is on its way no longer: it lies at `peer`, as far as the
    /// connection tells, or was refused there.
    Delivered {
        peer: PeerId,
        lane: Lane,
        about: About,
    },
    /// The lane to this peer is full: the message was not sent.
    Congested {
        peer: PeerId,
        lane: Lane,
    },
    /// `peer` had no room for a chunk that it asked for with this request.
    ChunkRefused {
        peer: PeerId,
        request: u64,
    },
    /// Where others reach me, best first.
    Addresses(Vec<String>),
    Command(Command),
    /// At least every 250 ms.
    Tick {
        utc: Utc,
    },
}

/// What the person (or the program) in front of this peer wants.
#[derive(Clone, Debug)]
pub enum Command {
    /// Serve this stage, and stay there.
    Host {
        stage: Stage,
    },
    /// Serve where it helps most.
    Join,
    /// Feed data (owner and delegates).
    Feed,
    /// Stop feeding: what is open is finished.
    StopFeeding,
    /// Leave politely: finish or hand on, save, say goodbye.
    Drain,
    /// Fetch what the manifest names by this hash: once it is here, `Event::Shelved` says so.
    Fetch {
        blob: Digest,
    },
    /// Save every served stage now.
    Save,
    /// Collect the weights of every stage: answered by one `Output::Exported` a replica, the last of a stage with `last`. After
    /// each the next replica waits for `ExportNext`.
    Export {
        request: u64,
    },
    /// What came last is worked up: there is room for the weights of another replica.
    ExportNext {
        request: u64,
    },
    /// Nobody waits for this export any more.
    ExportEnd {
        request: u64,
    },
    /// Start a session of generation; `tokens` is the prompt (u32, little endian).
    Generate {
        session: u64,
        tokens: Blob,
        /// Who is not to compute it, where others may.
        without: Vec<PeerId>,
        /// Nothing is begun where nobody but exactly these could compute it.
        apart: bool,
    },
    /// The next token of a session.
    GenerateNext {
        session: u64,
        tokens: Blob,
    },
    GenerateClose {
        session: u64,
    },
}

/// Requests to the driver.
#[derive(Clone, Debug)]
pub enum Output {
    /// To `me` means: hand it back as a frame. Does not consume the body.
    Send {
        to: PeerId,
        lane: Lane,
        frame: Frame,
        body: Option<Blob>,
    },
    Dial {
        peer: PeerId,
        addresses: Vec<String>,
    },
    Hangup {
        peer: PeerId,
    },
    /// Announce that I have this key, until further notice.
    Provide {
        key: [u8; 32],
    },
    Lookup {
        request: u64,
        key: [u8; 32],
    },
    Compute {
        job: JobId,
        job_spec: Job,
    },
    /// Data of the `index`-th micro-batch of this feeder.
    Records {
        request: u64,
        index: u64,
    },
    /// Write my incarnation plus one durably, then tell me (`Incarnated`).
    Incarnation,
    /// Give a `len`-long view of `blob` from `offset` a handle of its own. Answered at once by the driver's table: the peer
    /// names the new handle itself with an id from its own range.
    Slice {
        blob: Blob,
        offset: u64,
        new: Blob,
    },
    Release {
        blob: Blob,
    },
    /// A snapshot that this peer holds for others, possibly for long: its bytes belong on the disk. The handles stay good.
    Held {
        version: Version,
        root: Digest,
        parts: Vec<Blob>,
    },
    /// Compare what has arrived with its hash, and lay it on the disk if it is right (`Shelved`). The handles stay good.
    Shelve {
        blob: Digest,
        parts: Vec<Blob>,
    },
    /// These connections are in use: notice their death fast, and keep them.
    Active {
        peers: Vec<PeerId>,
    },
    Blame {
        peer: PeerId,
        severity: Severity,
        why: String,
    },
    /// What one replica of a stage gave for an export; `last` of its stage.
    Exported {
        request: u64,
        stage: Stage,
        copy: Exported,
        last: bool,
    },
    /// Logits of the last position of a session's piece (f32), or nothing when the session is lost.
    Generated {
        session: u64,
        logits: Option<Blob>,
    },
    Emit(Event),
    /// Everything is handed on and saved: the process may end.
    Drained,
}

/// What became of the weights of one replica.
#[derive(Clone, Debug, PartialEq)]
pub enum Exported {
    /// Parts in order, the driver's to release, unchecked: together they have this root.
    Weights { from: PeerId, parts: Vec<Blob>, root: Digest },
    /// It serves the stage, and its weights did not come.
    Missed { from: PeerId, why: String },
    /// No replica of the stage is known.
    Nobody,
}
