//! Every failure and warning that a person can meet: code, exit class, what happened, why, what to do next, and a page.
//!
//! The texts are templates; `{field}` is a field of the variant. This table is the only place where they stand: the terminal,
//! `--json`, `skein explain CODE` and docs/errors.md are made from it.

use super::show::{Bytes, Span};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The command ends.
    Failure,
    /// Work goes on, worse than it could.
    Warning,
}

/// The fixed part of one entry.
pub struct Text {
    pub code: &'static str,
    pub level: Level,
    /// Exit code of the process; 0 for what does not end it.
    pub exit: u8,
    pub what: &'static str,
    pub why: &'static str,
    /// What to do and, beside it, what that is good for.
    pub next: &'static [(&'static str, &'static str)],
    /// More than a message can hold.
    pub about: &'static str,
}

macro_rules! catalogue {
    ($(
        $name:ident { $($field:ident: $type:ty = $example:expr),* $(,)? } $code:literal $level:ident $exit:literal
        what $what:literal
        why $why:literal
        next [$($act:literal => $note:literal),* $(,)?]
        about $about:literal
    )*) => {
        /// What went wrong, or is worth knowing, with its measured values.
        #[derive(Clone, Debug)]
        pub enum Failure {
            $(#[doc = $what] $name { $($field: $type),* },)*
        }

        /// The texts, in the order of the codes.
        pub const TEXTS: &[Text] = &[$(Text {
            code: $code,
            level: Level::$level,
            exit: $exit,
            what: $what,
            why: $why,
            next: &[$(($act, $note)),*],
            about: $about,
        }),*];

        impl Failure {
            /// The fixed part.
            pub fn text(&self) -> &'static Text {
                let code = match self { $(Failure::$name { .. } => $code,)* };
                TEXTS.iter().find(|text| text.code == code).expect("made by the same table")
            }

            /// Names and values of the fields, as they are shown.
            pub(super) fn fields(&self) -> Vec<(&'static str, String)> {
                match self {
                    $(Failure::$name { $($field),* } => vec![$((stringify!($field), $field.to_string())),*],)*
                }
            }

            /// One of each.
            pub fn examples() -> Vec<Failure> {
                vec![$(Failure::$name { $($field: $example.into()),* }),*]
            }
        }
    };
}

catalogue! {
    Usage { message: String = "unexpected argument '--pears' found" } "SK100" Failure 2
    what "The command line is not understood."
    why "{message}"
    next ["skein --help" => "all commands"]
    about "Flags and commands are checked before anything else happens: no file is opened and nothing is sent."

    PortTaken { port: u16 = 5000u16, origin: String = "flag --port", command: String = "join", free: u16 = 5001u16 } "SK101" Failure 4
    what "Port {port} is already in use."
    why "You asked for this port ({origin}), and another program listens on it."
    next [
        "skein status" => "see whether it is your own peer",
        "skein {command} --port {free}" => "use another port",
    ]
    about "A peer uses one port, for UDP and TCP. The default, 4747, moves on to the next free one by itself; a port that was set by hand does not, since a port forward in a router would then lead nowhere."

    PortDenied { port: u16 = 80u16, command: String = "join" } "SK102" Failure 4
    what "Opening port {port} is not permitted."
    why "Ports below 1024 need extra rights, or a sandbox forbids it."
    next ["skein {command} --port 4747" => "the usual port", "publish 4747/udp and 4747/tcp" => "in a container"]
    about "The operating system refused the port. Skein never needs a privileged one."

    ControlPortTaken { address: String = "127.0.0.1:4750", origin: String = "config.toml, line 31" } "SK103" Failure 4
    what "The local control address {address} is already in use."
    why "It was set by hand ({origin}), and another program listens there."
    next ["skein status" => "see whether it is your own peer", "set watch.listen to 127.0.0.1:0" => "any free port"]
    about "Each peer answers `skein status`, `peers`, `stop` and the like on a loopback address of its own and writes that address into its home folder, so any free port is as good as another."

    ApiAddress { address: String = "127.0.0.1:4751", error: String = "Address already in use (os error 98)", model: String = "./model" } "SK104" Failure 4
    what "The API cannot listen at {address}."
    why "{error}."
    next ["skein serve {model} --listen 127.0.0.1:0" => "any free port of this machine"]
    about "`skein serve` takes the address that it is given, or none: programs look for it there. An address belongs to one program at a time, and to a machine that has it."

    HomeInUse { holder: String = "812", path: String = "/home/ada/.local/share/skein/lock", other: String = "/home/ada/.local/share/skein-2" } "SK110" Failure 4
    what "This key is already running on this machine."
    why "Process {holder} holds {path}; one home folder is one peer."
    next ["skein status" => "see what it does", "skein --home {other} join" => "a second peer, with a key of its own"]
    about "Two processes with one key would contradict each other in everything they sign. The lock goes away with its process, whatever ends it."

    KeyOpen { path: String = "/home/ada/.config/skein/key", mode: String = "0644" } "SK112" Failure 4
    what "The key file can be read by other users."
    why "{path} has mode {mode}."
    next ["chmod 600 {path}" => "only you can read it"]
    about "Who reads the key can act as this peer, in every run it owns. If somebody else may have read it, move the file away: a new key is made at the next start, and the run's owner has to invite it again."

    NotAKey { path: String = "/home/ada/.config/skein/key", bytes: u64 = 17u64, reason: String = "expected 64 hexadecimal digits" } "SK113" Failure 3
    what "The key file is not a Skein key."
    why "{path} has {bytes} bytes; {reason}."
    next ["put your copy of the key back" => "at the same place", "mv {path} {path}.old" => "a new key is made at the next start"]
    about "A key is 32 secret bytes, written as 64 hexadecimal digits. It is never overwritten."

    Damaged { path: String = "/home/ada/.local/share/skein/incarnation", why: String = "not a number" } "SK114" Failure 4
    what "A file of the home folder is damaged."
    why "{path}: {why}."
    next ["rm {path}" => "after ten minutes without this peer in the run"]
    about "The counter of starts must never run backwards: other peers would take this one for its own past. They forget it ten minutes after it was seen last; from then on it may begin again. A manifest comes back with an invite of the run."

    NoHome {} "SK115" Failure 4
    what "There is no home folder."
    why "The system names none for this user."
    next ["skein --home ./skein-home key show" => "name one"]
    about "Skein keeps its key, runs and checkpoints in the folders that the platform has for such things, or all under the one that --home or SKEIN_HOME names."

    OpenToAll { address: String = "0.0.0.0:4751", model: String = "./model" } "SK118" Failure 2
    what "The API is not opened to other machines without a key."
    why "--listen {address} can be reached by them, and no --api-key was given."
    next [
        "skein serve {model} --listen {address} --api-key file:key.txt" => "a key of your own, on the first line of that file",
        "skein serve {model}" => "for programs of this machine",
    ]
    about "Whoever reaches the API can use this machine as much as it allows. A key in a file does not show in the list of processes."

    TooManyThreads { given: u16 = 64u16, most: u16 = 8u16, place: String = "flag --threads", command: String = "join" } "SK122" Failure 4
    what "{given} threads are more than this process may run at one time."
    why "They are set by {place}; the system gives this process {most}."
    next ["skein {command} --threads {most}" => "as many as there are", "skein {command} --threads 0" => "one less than there are physical cores"]
    about "How many that is follows from the processors, the affinity of the process (taskset) and the limit of its container. Threads beyond that take turns, and every matrix product waits for the last of them."

    NoDevice { device: String = "CUDA", features: String = "cpu" } "SK123" Failure 2
    what "This build has no {device} support."
    why "Built with: {features}."
    next [
        "cargo install --path . --locked --features cuda" => "on a machine with the CUDA toolkit",
        "skein join --device cpu" => "use the processor",
    ]
    about "A device that was asked for by name is used or refused, never replaced in silence. `--device auto` takes the best one that this build has and that passes its test."

    DeviceFails { device: String = "cuda:0", why: String = "no CUDA-capable device is detected" } "SK124" Failure 4
    what "{device} does not compute."
    why "A small product was tried on it: {why}."
    next [
        "nvidia-smi" => "whether the system sees an NVIDIA card and its driver",
        "skein join --device auto" => "for a peer: the card if it computes, else the processor",
    ]
    about "A device that was asked for by name is tried before anything else happens, and used or refused, never replaced in silence. A build for CUDA needs an NVIDIA driver of the CUDA version that it was built with, or a newer one."

    NotEnoughMemory { need: Bytes = 1503238553u64, give: Bytes = 1073741824u64, free: Bytes = 5583457484u64, run: String = "tiny-verse", command: String = "join", enough: String = "1434MiB" } "SK125" Failure 4
    what "Not enough memory for any stage of {run}."
    why "Its smallest stage needs {need}; you give {give}, {free} are free."
    next ["skein {command} --memory {enough}" => "give more", "skein join --observe" => "watch only"]
    about "A stage needs room for its weights, their optimizer state, two versions while they change, and what is kept of each micro-batch in flight. `skein run check` prints the sum for each stage of a manifest."

    DiskFull { path: String = "/home/ada/.local/share/skein", free: Bytes = 3145728u64, need: Bytes = 178257920u64 } "SK126" Failure 4
    what "The disk is full."
    why "{path}: {need} needed, {free} free."
    next [
        "df -h {path}" => "make room there, then the same command again",
        "skein --home /mnt/other/skein join" => "a home on another disk",
        "lower store.keep_versions" => "fewer checkpoints of each stage",
    ]
    about "Files are written beside the old ones and renamed when they are complete, so the last checkpoint is whole. The peer tries again at the next one."

    Unwritable { path: String = "/data", error: String = "Permission denied (os error 13)", owner: String = "user 0" } "SK127" Failure 4
    what "Cannot use {path}."
    why "{error}; owned by {owner}."
    next ["skein --home ./skein-home join" => "a home that you own", "chown 10001 {path}" => "for a volume of the container image"]
    about "Skein writes into its home folder and into folders that you name, nowhere else."

    TooMuchMemory { given: Bytes = 68719476736u64, total: Bytes = 17179869184u64, place: String = "flag --memory", command: String = "join", most: String = "16GiB" } "SK128" Failure 4
    what "{given} of memory is more than there is."
    why "It is set by {place}; this machine, or the container of this process, has {total}."
    next ["skein {command} --memory auto" => "what this machine can spare", "skein {command} --memory {most}" => "all of it"]
    about "Stages are taken until the memory that was given is used. What does not exist cannot be given: the system would end the peer in the middle of its work, and those that wait for it would have to repair that."

    ResultLost { error: String = "No space left on device (os error 28)" } "SK129" Failure 4
    what "The result was not written whole."
    why "Writing to stdout: {error}."
    next ["df -h" => "is there room where it goes?"]
    about "A result that is cut off must not look like a whole one. A reader that closes its end early, as `head` does, is no failure."

    ClocksApart { peer: String = "quiet-heron 12fa9c", apart: Span = 3_600_000u64 } "SK130" Warning 0
    what "The clock of this machine and that of another peer do not agree."
    why "It is {apart} off that of {peer}; beyond 90 s neither takes what the other signs."
    next ["timedatectl set-ntp true" => "has the time set by the network, on Linux"]
    about "What peers announce carries a time, so that old words cannot be repeated. With a clock that is wrong nobody is heard, and every stage looks empty; so nothing is started anew until somebody with the same time is met."

    UnknownKey { key: String = "give.memori", place: String = "config.toml:12", hint: Hint = "give.memory" } "SK140" Failure 3
    what "`{key}` is not a setting."
    why "It stands at {place}.{hint}"
    next ["skein config show" => "all settings"]
    about "A key that is misspelt would otherwise be a setting that silently does nothing."

    BadValue { key: String = "net.port", value: String = "70000", allowed: String = "a whole number from 0 to 65535", place: String = "config.toml:3", fix: String = "net.port = 4747" } "SK141" Failure 3
    what "`{key}` cannot be {value}."
    why "Allowed: {allowed}. It stands at {place}."
    next ["{fix}" => "would do"]
    about "Each key's allowed values stand in docs/config.md."

    NoUnit { key: String = "give.memory", value: String = "4", could_be: String = "bytes, MB or MiB", place: String = "config.toml:7", fix: String = "give.memory = \"4MiB\"" } "SK142" Failure 3
    what "`{key} = {value}` has no unit."
    why "It could be {could_be}. It stands at {place}."
    next ["{fix}" => "say which"]
    about "Sizes are written \"4GiB\" or \"500MB\", durations \"90s\", \"10m\" or \"2h\"."

    Contradiction { a: String = "averaging.every (line 27)", b: String = "checkpoint.every (line 40)", reason: String = "a checkpoint would hold replicas that never agreed" } "SK143" Failure 3
    what "Two settings contradict each other."
    why "{a} and {b}: {reason}."
    next ["skein config show --origin" => "where each value of this machine comes from", "skein run check" => "all problems of a manifest at once"]
    about "Contradictions are refused at the start rather than resolved by a hidden order."

    NoProfile { name: String = "laptopp", known: String = "home-cpu, home-gpu, laptop", hint: Hint = "laptop" } "SK145" Failure 3
    what "The profile or preset {name} does not exist."
    why "Known: {known}.{hint}"
    next ["skein config show --profile laptop" => "what a profile says", "skein run new --preset tiny" => "what a preset says"]
    about "A profile says what a machine gives (`--profile`), a preset what a run is (`--preset`). Both can also be a file."

    BadSyntax { place: String = "config.toml:4", message: String = "expected `=`" } "SK146" Failure 3
    what "{place} is not TOML."
    why "{message}."
    next ["skein config check" => "again, when it is corrected"]
    about "Configuration and manifests are TOML 1.0: `key = value` under `[section]`, texts in double quotes."

    BadManifest { path: String = "my.toml", problems: String = "train.sequence (512) is larger than model.config.context (256)" } "SK147" Failure 3
    what "The manifest {path} is not valid."
    why "{problems}"
    next ["skein run check {path}" => "again, when it is corrected", "skein run new my-run" => "one that is valid"]
    about "A manifest is shared, hashed and signed: every peer of the run must agree to every value, so nothing in it is repaired or guessed."

    BadScenario { problems: String = "1 problem", list: String = "my.toml:3:9: peers.count cannot be 0" } "SK148" Failure 3
    what "The scenario cannot be simulated: {problems}."
    why "{list}"
    next ["skein simulate show first" => "a scenario to begin with", "skein simulate list" => "scenarios that come with the program"]
    about "A scenario is read as a whole before anything is simulated: unknown keys, values without a unit and what contradicts itself are refused with their lines, so that no report answers another question than the one that was meant. docs/simulator.md lists every key."

    NoScenario { what: String = "home_uplod", why: String = "there is no such file, and none of the built-in scenarios has that name", hint: Hint = "home_upload" } "SK149" Failure 2
    what "There is no scenario {what}."
    why "{why}.{hint}"
    next ["skein simulate list" => "scenarios that come with the program", "skein simulate show first > mine.toml" => "begin one of your own"]
    about "A scenario is a name of the list, or the path of a TOML file. What it names (traces, probes, prices) is looked for beside it."

    NoReport { path: String = "sim-first/summary.json", why: String = "No such file or directory (os error 2)" } "SK150" Failure 2
    what "{path} is no report of a simulation."
    why "{why}."
    next ["skein simulate first --out sim-first" => "make one"]
    about "A report is the folder that `skein simulate` wrote; what is read of it is its summary.json."

    NoEvents { path: String = "events.jsonl", why: String = "line 3 is no event: expected value at column 1" } "SK151" Failure 2
    what "{path} is no event log."
    why "{why}."
    next ["ls ~/.local/share/skein/runs" => "each run has the event logs of this peer", "skein train --help" => "--json prints the same events"]
    about "A peer writes one JSON object a line for everything that it does, into the folder of its run. Logs of several peers are merged by their clocks."

    NoReportFolder { path: String = "/proc/report", error: String = "No such file or directory (os error 2)" } "SK152" Failure 4
    what "A report cannot be written to {path}."
    why "{error}."
    next ["--out sim-2" => "another folder, which you may write to"]
    about "A report is a folder: it is made where it is not there, and its files are written into it. This is seen before anything is simulated."

    ReportTooLarge { path: String = "sim-first", need: Bytes = 178257920u64, free: Bytes = 3145728u64 } "SK153" Failure 4
    what "The disk has no room for the report."
    why "{path}: {need} needed, {free} free; what was there before is untouched."
    next ["df -h {path}" => "make room there, then the same command again", "--out /mnt/other/report" => "a folder on another disk", "without --events" => "the events of a run are most of its report"]
    about "A report is written whole or not at all. The figures of the run are printed all the same, and the same command gives the same report."

    NoFile { path: String = "/proc/probe.json", error: String = "Permission denied (os error 13)" } "SK154" Failure 4
    what "The file {path} cannot be written."
    why "{error}."
    next ["--out FILE" => "a file in a folder that you may write to"]
    about "The folder is made where it is not there. This is seen before anything is measured."

    NobodyAnswers { count: usize = 2usize, list: String = "192.0.2.7:4747 refused\n192.0.2.8:4747 silent for 20 s" } "SK201" Failure 5
    what "None of the {count} bootstrap peers answers."
    why "{list}"
    next [
        "skein invite" => "on the other side: a fresh invite with today's addresses",
        "skein join" => "without an invite: the last run, through every peer met before and the local network",
    ]
    about "A peer needs one living member of the run to find the others. Addresses of home connections change; an invite made today carries today's. All addresses are tried at once, and again while the command runs."

    WrongIdentity { address: String = "192.0.2.7:4747", found: String = "12D3KooWFound", expected: String = "12D3KooWExpected" } "SK202" Failure 5
    what "A bootstrap peer is not who the invite says."
    why "{address} is {found}, expected {expected}."
    next ["skein invite" => "on the other side: a fresh invite"]
    about "Either the peer has a new key (its home folder was lost), or its address belongs to somebody else now, or the connection is intercepted. Nothing was said to it."

    SwarmLost { count: String = "5 neighbours", ago: Span = 95_000u64 } "SK204" Warning 0
    what "Connection to the swarm was lost."
    why "{count} fell silent, nobody has been here for {ago}, and training waits for what is missing."
    next ["skein peers" => "who is known, and where", "skein invite" => "on another member's machine: a fresh invite"]
    about "The peer keeps its weights and its place, and dials everyone it knows until somebody answers. What it held is computed by others in the meantime."

    NotReachable { why: String = "the NAT gives every target another port (symmetric)", port: u16 = 4747u16 } "SK206" Warning 0
    what "Others cannot reach you directly."
    why "It seems that {why}."
    next ["forward UDP {port} in your router" => "to this machine", "use IPv6" => "where your provider offers it"]
    about "Work goes on through relays and hole punching, slower. What is behind this is in `skein explain relay`."

    NotTheirRun { run: String = "tiny-verse", peers: String = "quiet-heron 12fa9c" } "SK209" Failure 5
    what "The peers of the invite are there, but not in this run."
    why "{peers} say that they do not know {run}."
    next [
        "skein status" => "on the other side: in which run is that peer?",
        "skein invite" => "on the other side, once it works on the run again: a fresh invite",
    ]
    about "A peer works on one run at a time and hands out the manifest of that one alone. `skein join` without --wait keeps asking until one of them is back in the run."

    NotAnInvite { prefix: String = "skien1qp…" } "SK301" Failure 2
    what "This is not a Skein invite."
    why "It starts with {prefix}; an invite starts with skein1."
    next ["copy the whole word" => "a double click selects it", "skein invite" => "on the other side: prints it again"]
    about "An invite is one word of small letters and digits. Line breaks, quotes and spaces around it do no harm."

    DamagedInvite { reason: String = "its checksum does not match" } "SK302" Failure 6
    what "The invite is damaged or was made by a newer version."
    why "Read as an invite, {reason}."
    next ["copy it again" => "the whole word", "skein --version" => "compare with the other side"]
    about "The last characters of an invite are a checksum of the ones before, so a letter that got lost is noticed before anything is sent."

    ManifestMismatch { expected: String = "b3:7f3a12c1", found: String = "b3:90de4417", peer: String = "quiet-heron 12fa9c" } "SK305" Failure 9
    what "The manifest does not match the invite."
    why "Expected {expected}, {peer} sent {found}."
    next ["skein invite" => "on the owner's machine: a fresh invite"]
    about "The invite holds the hash of the manifest, so whoever relays it cannot change the run. A peer that sends another one is not asked again."

    Versions { run: String = "protocol 2", build: u16 = 1u16 } "SK306" Failure 6
    what "Versions do not fit."
    why "The run speaks {run}, this build protocol {build}."
    next ["skein --version" => "compare with the other side, and update the older"]
    about "The wire has a protocol number of its own, apart from the version of the program. It changes only when peers would misunderstand each other."

    RunFull { run: String = "tiny-verse", peers: String = "quiet-heron 12fa9c" } "SK309" Failure 6
    what "The run is full."
    why "{run} has no place for another peer, says {peers}."
    next ["skein join" => "keeps trying until a place is free"]
    about "The owner sets admission.peers_max in the manifest. A place is free two minutes after a peer has left. The owner, its delegates and the members that the manifest lists always find one."

    BelowTheRunsLeast { run: String = "tiny-verse", least: Bytes = 4294967296u64, give: Bytes = 1073741824u64, command: String = "join", enough: String = "4GiB" } "SK310" Failure 6
    what "The run asks for more memory than you give."
    why "The manifest of {run} says admission.memory_min = {least}; you give {give}."
    next ["skein {command} --memory {enough}" => "give more", "skein join --observe" => "watch only"]
    about "The owner wants peers that can take any stage. Each peer checks itself, before anything is fetched."

    BadSignature { path: String = "my.toml", by: String = "quiet-heron 12fa9c" } "SK311" Failure 9
    what "The signature of {path} does not hold."
    why "It says that {by} signed it, but something was changed since."
    next ["skein run check {path}" => "if you changed it: what it says now", "ask the owner for the original" => "if you did not"]
    about "A signed manifest is the exact bytes that its owner signed."

    UnknownRun { name: String = "tiny-vers", known: String = "tiny-verse", hint: Hint = "tiny-verse" } "SK312" Failure 2
    what "No run named {name} is known here."
    why "Known: {known}.{hint}"
    next ["skein join skein1…" => "take part in one, by its invite", "skein run new my-run" => "make one"]
    about "Runs are known by name once this home folder has taken part in them. Names are labels: the identity of a run is the hash of its manifest."

    NoPage { word: String = "stalenes", hint: Hint = "staleness" } "SK313" Failure 2
    what "There is no page about {word}."
    why "Pages are error codes (SK101) and words (staleness).{hint}"
    next ["skein explain" => "lists all pages"]
    about "All pages are in the program; no network is used."

    NotEmpty { path: String = "./model" } "SK314" Failure 2
    what "{path} is already there."
    why "Nothing is overwritten unasked."
    next ["--out {path}-2" => "another place", "--force" => "replaces a manifest, or the files of a model or a report; a run that trains has no such option"]
    about "`--force` replaces a manifest, or the files of a model or of a report. Other files in the folder stay. A report of the same scenario is replaced without it."

    NotYours { run: String = "my.toml", owner: String = "quiet-heron 12fa9c" } "SK315" Failure 6
    what "{run} is not your run."
    why "It belongs to {owner}; only its owner and its delegates feed data."
    next ["skein join skein1…" => "take part, by an invite of its owner", "skein run new my-run" => "a run of your own"]
    about "The owner of a run is the key that signed its manifest. A manifest file without an owner belongs to whoever starts it."

    NothingToJoin {} "SK316" Failure 2
    what "There is no run to go back to."
    why "No invite was given, and this home folder has not taken part in a run yet."
    next ["skein join skein1…" => "take part in one, by its invite", "skein train --data book.txt" => "start one of your own"]
    about "`skein join` without an invite goes back into the run of last time. Each home folder remembers its own: look whether --home or SKEIN_HOME names another one than then."

    NoTokenizer { path: String = "./model", files: String = "config.json, model.safetensors" } "SK401" Failure 7
    what "The model has no tokenizer."
    why "{path} holds {files}; expected tokenizer.json, or a vocabulary with room for the 256 bytes."
    next ["copy tokenizer.json beside it" => "from where the model came", "skein export my-run --out ./model" => "writes a complete folder"]
    about "Without its tokenizer a model's numbers are no text. A model whose vocabulary has 256 tokens or more is taken for one of bytes, with a warning."

    NotAModel { path: String = "./model", why: String = "there is no such folder" } "SK403" Failure 7
    what "{path} is no model that this build can read."
    why "Looked for config.json, model.safetensors and tokenizer.json: {why}."
    next ["skein export my-run --out ./model" => "saves the model of the run that the peer here works on", "skein generate my-run Once" => "asks the live swarm instead"]
    about "A model is a folder as `skein export` and Hugging Face tools write it: the shape of a supported family in config.json, the weights in model.safetensors or in shards with an index, and its tokenizer in tokenizer.json. A GGUF file of such a family is one too, and hf:OWNER/NAME names one of the Hub. Of other families see SK407, of pickled weights SK415."

    NoData { path: String = "./books", found: String = "3 files, 12 records, none usable (12 without `text`)" } "SK404" Failure 7
    what "There is nothing to learn from in the data."
    why "{path}: {found}."
    next ["skein explain data" => "what is read, and how"]
    about "Plain text (.txt, .md) is taken as it is, .jsonl by the `text` of each line, .parquet by that of each row, a folder as all of these."

    NotText { file: String = "./books/old.txt", byte: String = "0xf6", offset: u64 = 4711u64, line: u64 = 92u64, guess: String = "Latin-1 or Windows-1252" } "SK405" Failure 7
    what "{file} is not UTF-8 text."
    why "Byte {byte} at offset {offset} (line {line}); it looks like {guess}."
    next ["iconv -f latin1 -t utf-8 {file}" => "if it is text in another encoding"]
    about "A text in the wrong encoding would teach the model wrong letters without a word."

    UnknownFamily { name: String = "GPT2LMHeadModel", supported: String = "llama, mistral, qwen2, qwen3" } "SK407" Failure 7
    what "The model family {name} is not supported."
    why "Supported: {supported}."
    next ["skein run new my-run" => "a model of a supported family"]
    about "The family decides how a block computes. Guessing would give a model that loads and talks nonsense."

    CheckpointDamaged { path: String = "runs/tiny-verse/checkpoints/stage-1/0000000003.state", why: String = "its bytes are not what its hash says", fallback: String = "the one before (own step 1800) is used" } "SK408" Warning 0
    what "Checkpoint {path} is damaged."
    why "It is there, but {why}; {fallback}."
    next ["rm {path}" => "it is of no use any more"]
    about "Every checkpoint carries the hash of its content. A damaged one is never loaded. Living replicas of the stage, and snapshots that other peers hold, come before any checkpoint."

    SaveInterrupted { count: String = "1 unfinished file was", path: String = "runs/tiny-verse/checkpoints/stage-1" } "SK409" Warning 0
    what "A save was interrupted last time."
    why "{count} removed from {path}; the last complete checkpoint is untouched."
    next []
    about "Checkpoints are written beside the old ones and renamed when they are complete. Power loss in between leaves an unfinished file, never half a checkpoint."

    ModelNotSaved { path: String = "./model", run: String = "tiny-verse", why: String = "the peer left before that" } "SK410" Failure 1
    what "The run has ended, and its model was not saved."
    why "{path} was not written: {why}."
    next [
        "skein join {run}" => "serve again what this home holds",
        "skein export {run} --out {path}" => "then save the model",
    ]
    about "`train --out` collects the weights of every stage when the run has ended, and leaves only then. The checkpoints of the stages are saved apart from that, by every peer that leaves in good order."

    DataUnreadable { path: String = "./bookz", error: String = "No such file or directory (os error 2)" } "SK413" Failure 7
    what "{path} cannot be read."
    why "{error}."
    next ["ls -l {path}" => "is it there, and yours?"]
    about "All data is read before a run starts, so that a run does not stop half way for want of a file."

    NotAsTheirs { path: String = "./model", found: String = "logits 3.1e-2 apart, 1e-4 allowed" } "SK414" Failure 9
    what "{path} is not computed as the reference says."
    why "{found}."
    next [
        "python pipeline/tests/families/reference.py {path} --out reference.json" => "makes the reference of this folder anew: was it made of another?",
        "skein model show {path}" => "what was read of the folder: is that its shape?"
    ]
    about "Loss and logits may be 1e-4 apart, gradients 1e-3 of their size, and the continued text must be the same."

    Pickle { file: String = "./model/pytorch_model.bin", path: String = "./model" } "SK415" Failure 7
    what "{file} is a pickle file: it is not read."
    why "A pickle can run code of whoever made it when it is read; safetensors files hold numbers and nothing else."
    next ["python -c 'from transformers import AutoModelForCausalLM as M; M.from_pretrained(\"{path}\").save_pretrained(\"{path}-safe\")'" => "writes the same model as safetensors, where you trust the file"]
    about "Files that end in .bin, .pt, .pth or .ckpt are pickles. Most models are published as safetensors too."

    WordsUnknown { path: String = "./model", why: String = "splits a text in a way that is not known by name; gpt-2, smollm, llama-bpe, qwen2, tekken are" } "SK416" Failure 7
    what "The tokenizer of {path} cannot be carried over."
    why "It {why}."
    next ["skein model pull hf:OWNER/NAME" => "as a folder a model has a tokenizer of any kind"]
    about "A GGUF file keeps a tokenizer as a list of tokens and the name of a known way to split a text. One that is neither byte-level BPE nor BPE that falls back to bytes, or that splits in a way without such a name, would read other tokens than the model learned."

    NoHub { endpoint: String = "https://huggingface.co", why: String = "nobody knows the address of that name", folder: String = "./model" } "SK417" Failure 5
    what "The Hub cannot be reached."
    why "{endpoint}: {why}."
    next [
        "skein model list" => "what is already on this computer",
        "HF_ENDPOINT=https://mirror.example skein model pull hf:OWNER/NAME" => "a mirror, where there is one",
        "skein chat {folder}" => "a folder that another computer downloaded and you copied"
    ]
    about "Only the download of a model needs the Hub; one that is here is used without it. The same command goes on where a download broke off. A status of 429 or above 500 is the Hub's own trouble: try later."

    HubRefuses { model: String = "TinyOrg/Tiny-1B", why: String = "it is private, gated, or not there, and no HF_TOKEN is set" } "SK418" Failure 6
    what "The Hub does not hand out {model}."
    why "The answer is no: {why}."
    next ["HF_TOKEN=hf_… skein model pull hf:{model}" => "with a key of an account that may have it"]
    about "Some models are given only to accounts that accepted their terms, on the page of the model. A key is made in the settings of the account; skein reads it from HF_TOKEN, sends it to the Hub alone, and keeps it nowhere."

    NotOnHub { model: String = "TinyOrg/Tiny-1B", why: String = "there is no model or revision of that name" } "SK419" Failure 7
    what "{model} cannot be downloaded as a model."
    why "On the Hub {why}."
    next ["skein model pull hf:OWNER/NAME" => "as its page is called", "skein explain SK403" => "what a model has to be"]
    about "A model needs config.json and its weights as safetensors. Pickled weights are not downloaded: reading them can run code."

    NotAsAnnounced { file: String = "model.safetensors", why: String = "its SHA-256 is 3f…, 9c… was announced" } "SK420" Failure 9
    what "{file} is not what the Hub announced."
    why "While it came: {why}."
    next ["skein model pull hf:OWNER/NAME" => "once more: what came was thrown away"]
    about "The Hub says how long a file is and, of large ones, the SHA-256 of its content. If it happens again, a proxy or mirror on the way changes files."

    NotHere { model: String = "TinyOrg/Tiny-1B", known: String = "none" } "SK421" Failure 2
    what "{model} is not on this computer."
    why "Models of the Hub that are here: {known}."
    next ["skein model list" => "with their sizes"]
    about "`skein model rm` removes what `skein model pull` downloaded. Other folders are yours to remove."

    NotFinite { count: u64 = 3u64, step: u32 = 1846u32, stage: u16 = 2u16 } "SK501" Warning 0
    what "The loss is not a number."
    why "{count} micro-batches within a minute had values that are not finite; the latest, of run step {step}, was found out at stage {stage}."
    next ["skein status" => "if the loss it shows goes on falling, one peer computes wrongly", "lower optimizer.lr in a new manifest" => "if it does not: skein run new starts one"]
    about "Values that are not finite are refused where they first appear, and the micro-batch is voided. If every peer produces them, the model itself has diverged."

    StageEmpty { stages: String = "Stage 4 has", run: String = "tiny-verse", flags: String = "--stage 4", ago: Span = 12_000u64 } "SK503" Warning 0
    what "{stages} no replica."
    why "Nobody has been there for {ago}; training waits."
    next ["skein host {run} {flags}" => "on this machine or another that is in the run", "skein invite" => "ask somebody else to"]
    about "The run goes on when a newcomer, or a peer with room, takes the stage: from the newest snapshot that other peers hold, or from the run's seed where nobody has served it yet. At most the work since that snapshot is lost."

    StageRestored { stage: u16 = 4u16, from: String = "the snapshot of own step 1800" } "SK504" Warning 0
    what "Stage {stage} was restored."
    why "No replica was left to copy; it goes on from {from}, and any step after that is lost."
    next []
    about "All replicas of the stage died before they could hand their work on. The steps in between are lost, and counted. `checkpoint.copies_min` and `checkpoint.every` of the manifest say how much that can be."

    NoFeeder { run: String = "tiny-verse", ago: Span = 42_000u64 } "SK505" Warning 0
    what "Nobody provides data."
    why "Neither the owner of {run} nor a delegate has been seen for {ago}; training waits."
    next ["skein train --run {run} --data ./books" => "on the owner's machine: feed it again"]
    about "Stages keep their weights and wait. Only the owner of a run and the delegates that its manifest names may feed data."

    Stale { count: u64 = 12u64, bound: u32 = 4u32 } "SK507" Warning 0
    what "{count} of your gradients were too old and were not used."
    why "They were more than {bound} own steps old."
    next ["skein status" => "see where micro-batches wait"]
    about "A gradient that was computed for older weights is weighted down by its age, and past the bound of the manifest it is not added. It is still passed on, so other stages lose nothing. Slow links and slow devices make work stale. It is said once a minute at most, and at the end."

    NobodyHere { control: String = "/home/ada/.local/state/skein/control", why: String = "is missing" } "SK701" Failure 4
    what "No peer is running here."
    why "{control} {why}."
    next ["skein join" => "start one", "skein --home ./other status" => "ask the peer of another home folder"]
    about "`status`, `peers`, `stop`, `export` and `generate` ask the peer that runs on this machine, at the address that it wrote into its home folder."

    CannotAnswer { stages: String = "1, 2" } "SK702" Failure 6
    what "The model cannot answer right now."
    why "No replica serves stage {stages}."
    next ["skein status" => "who serves what", "skein generate ./model Once" => "from a saved folder"]
    about "Text comes from the whole pipeline: every stage must have a replica."

    NotPossible { why: String = "this peer does not own the run" } "SK703" Failure 1
    what "The peer that runs here cannot do that now."
    why "It says: {why}."
    next ["skein status" => "what it is doing"]
    about "The request reached the peer, and the peer refused it."

    OtherVersion { why: String = "missing field `phase`" } "SK704" Failure 1
    what "The peer that runs here gave an answer that this program does not understand."
    why "It is probably of another version: {why}."
    next ["skein stop" => "then start it again with this version"]
    about "Programs of one version understand each other. The network is not concerned: peers of different versions work together while their protocol is the same."

    NotYet { what: String = "ready", span: Span = 30_000u64, doing: String = "joining (for a replica of stage 1)" } "SK705" Failure 1
    what "The peer was not {what} after {span}."
    why "It is {doing}."
    next ["skein status" => "what it is doing", "skein status --wait ready --timeout 5m" => "wait longer"]
    about "The time limit was yours; the peer goes on with what it does."

    Silent { pid: u32 = 812u32 } "SK706" Failure 1
    what "The peer that runs here does not answer."
    why "Process {pid} took the question and said nothing in time."
    next ["skein status" => "ask again", "kill {pid}" => "let it leave", "kill -9 {pid}" => "if it does not"]
    about "A peer answers questions of this machine at once. One that does not is suspended, or its machine is far too busy. Nothing on disk is harmed when it is ended."

    Panic { message: String = "index out of bounds", place: String = "pipeline/src/flow/stage.rs:120", file: String = "skein-report-20261123T180411Z.txt" } "SK900" Failure 70
    what "Skein stopped because of a bug in Skein."
    why "{message} at {place}."
    next ["attach {file} to a report" => "it holds the build, the place and the last log lines; no key, no text of yours"]
    about "Running again is safe: nothing on disk is ever half written, and other peers take this one's silence for what it is."

    Other { message: String = "the sky is falling" } "SK999" Failure 1
    what "That did not work."
    why "{message}."
    next ["skein -v status" => "more detail, with -v on any command"]
    about "A failure that has no text of its own yet."
}

/// A neighbour to suggest, or nothing: ` Did you mean give.memory?`
#[derive(Clone, Debug, Default)]
pub struct Hint(pub Option<String>);

impl std::fmt::Display for Hint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some(near) => write!(f, " Did you mean {near}?"),
            None => Ok(()),
        }
    }
}

impl From<&str> for Hint {
    fn from(near: &str) -> Self {
        Hint(Some(near.into()))
    }
}

impl From<Option<String>> for Hint {
    fn from(near: Option<String>) -> Self {
        Hint(near)
    }
}
