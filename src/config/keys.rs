//! Every key of NodeConfig in one table: what it may be, its default, its extremes, in words. docs/config.md, `config show` and
//! the checks of each layer read this table and nothing else.

use super::value::Kind;

pub struct Key {
    /// `section.name`.
    pub path: &'static str,
    pub kind: Kind,
    /// As written in TOML.
    pub default: &'static str,
    pub about: &'static str,
}

const fn key(path: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Key {
    Key { path, kind, default, about }
}

pub const KEYS: &[Key] = &[
    key(
        "me.name",
        Kind::Text { bytes_max: 24 },
        r#""""#,
        "Label of this peer in tables. Empty: two words made from its key.",
    ),
    key(
        "give.memory",
        Kind::Size { auto: true, min: 256 << 20 },
        r#""auto""#,
        "Memory for stages. auto: half of all, at most what is free less 2 GiB, at least 512 MiB.",
    ),
    key(
        "give.device",
        Kind::Device,
        r#""auto""#,
        "Where to compute: auto, cpu, cuda, cuda:N or metal. auto: the graphics card of a build for one, if it computes a small product rightly; else the CPU.",
    ),
    key(
        "give.threads",
        Kind::Count { min: 0, max: 1024 },
        "0",
        "Threads for computing. 0: one less than there are physical cores, at least one.",
    ),
    key(
        "give.stage",
        Kind::Stage,
        r#""auto""#,
        "The stage to serve, from 0, and to stay at. auto: where help is needed most.",
    ),
    key(
        "give.roles",
        Kind::Roles,
        r#"["train"]"#,
        "Work that this peer does for a run. Empty: it only watches (and relays, where it can be reached).",
    ),
    key(
        "net.port",
        Kind::Count { min: 0, max: 65535 },
        "4747",
        "Port for UDP and TCP. 0: any that is free. The default moves on when it is taken; a port set by hand does not.",
    ),
    key(
        "net.listen",
        Kind::Ips,
        r#"["0.0.0.0", "::"]"#,
        "Addresses of this machine to listen at. Empty: nobody can connect to this peer except through a relay.",
    ),
    key(
        "net.announce",
        Kind::Addresses,
        "[]",
        "More addresses to tell others, for instance behind a fixed port forward: HOST:PORT or a multiaddress.",
    ),
    key("net.lan", Kind::Flag, "true", "Find peers in the local network (mDNS)."),
    key("net.port_mapping", Kind::Flag, "true", "Ask the router for a port (UPnP)."),
    key("net.relay_use", Kind::Flag, "true", "Let other peers relay for this one where nothing better works."),
    key("net.relay_serve", Kind::Flag, "true", "Relay for others while this peer can be reached from outside."),
    key(
        "net.bootstrap",
        Kind::Addresses,
        "[]",
        "More peers to start from: HOST:PORT or a multiaddress. Those of the invite are enough.",
    ),
    key(
        "store.path",
        Kind::Text { bytes_max: 4096 },
        r#""""#,
        "Folder for checkpoints; each peer has its own in it. Empty: with the run, in the data folder.",
    ),
    key("store.keep_versions", Kind::Count { min: 1, max: 100 }, "3", "Checkpoints that are kept of each stage."),
    key(
        "store.checkpoint_every",
        Kind::Duration { min_s: 10, max_s: 7 * 86_400 },
        r#""10m""#,
        "Time between checkpoints on this disk. 0s: only when the peer stops.",
    ),
    key(
        "watch.listen",
        Kind::Socket,
        r#""127.0.0.1:4750""#,
        "Where `status`, `peers` and `stop` reach this peer. Empty: they cannot. Beyond this machine a token is needed to read, too.",
    ),
    key(
        "watch.token",
        Kind::Token,
        r#""auto""#,
        "Secret that is needed for whatever changes state. auto: a new one at each start, readable by this user only.",
    ),
    key(
        "log.level",
        Kind::Choice(&["error", "warn", "info", "debug", "trace"]),
        r#""warn""#,
        "How much the log says on the terminal. -v: debug, -vv: trace, -q: error.",
    ),
    key("log.format", Kind::Choice(&["text", "json"]), r#""text""#, "Form of log lines."),
    key("log.file", Kind::Text { bytes_max: 4096 }, r#""""#, "A file that gets everything down to debug. Empty: none."),
];

pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Whether keys lie below `section`.
pub(super) fn is_section(section: &str) -> bool {
    KEYS.iter().any(|key| key.path.strip_prefix(section).is_some_and(|rest| rest.starts_with('.')))
}

/// docs/config.md.
pub fn markdown() -> String {
    let mut text = String::from(
        "# Configuration of a peer\n\n\
         `config.toml` lies where `skein config path` says. Layers, each over the one before: defaults, `--profile`, the file, \
         environment (`SKEIN_` + section + `__` + key, as `SKEIN_GIVE__MEMORY=4GiB`), flags. `skein config show --origin` prints \
         each value and where it came from.\n\nSizes are written `\"4GiB\"` or `\"500MB\"`, durations `\"90s\"`, `\"10m\"`, `\"2h\"`; a bare \
         number is refused where a unit belongs, and an unknown key is an error.\n",
    );
    let mut section = "";
    for key in KEYS {
        let (head, name) = key.path.split_once('.').expect("a key has a section");
        if head != section {
            section = head;
            text.push_str(&format!("\n## [{section}]\n\n| key | default | allowed | meaning |\n|---|---|---|---|\n"));
        }
        text.push_str(&format!("| `{name}` | `{}` | {} | {} |\n", key.default, key.kind.allowed(), key.about));
    }
    text
}
