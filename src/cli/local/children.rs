//! Serving peers, each a process of this same program with a home of its own. In: an invite and a place in the
//! pipeline. Out: processes that can be killed, asked to leave, and whose event logs can be read afterwards.

use std::{
    env,
    ffi::OsString,
    fs, io,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use skein_protocol::{PeerId, Stage, event::Record, unit};
use tokio::time::sleep;

use super::Behind;
use crate::{
    cli::failure::{Failure, Report},
    home::Home,
    node::log::{self, Tail},
};

/// What a child does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    Host(Stage),
    Join,
}

/// What every child gets.
pub struct Given {
    /// Folder for their homes.
    pub homes: PathBuf,
    /// Bytes of memory for stages.
    pub memory: u64,
    /// Whether they have a control server.
    pub watched: bool,
    /// By number, where they are behind a forwarder.
    pub behind: Vec<Behind>,
}

pub struct Serving {
    /// From 1, as the command line counts.
    pub number: u16,
    pub peer: PeerId,
    pub home: PathBuf,
    process: Child,
}

impl Serving {
    /// Starts a peer of the run at any port of the loopback interface.
    pub fn start(number: u16, task: Task, threads: u16, invite: &str, given: &Given) -> Result<Serving, Report> {
        let home = given.homes.join(format!("peer-{number}"));
        let failed = |error: io::Error| Report {
            failure: Box::new(Failure::Other { message: format!("peer {number} could not be started: {error}") }),
            cause: None,
        };
        fs::create_dir_all(&home).map_err(failed)?;
        // Its key is made here, so that it is known by name before it speaks.
        let peer = Home::at(&home).identity()?.key.peer();
        let words = fs::File::create(home.join("stderr")).map_err(failed)?;
        let mut command = Command::new(env::current_exe().map_err(failed)?);
        let ours = |name: &OsString| name.as_encoded_bytes().starts_with(b"SKEIN_") && name != "SKEIN_LOG";
        for name in env::vars_os().map(|(name, _)| name).filter(ours) {
            command.env_remove(name);
        }
        let behind = given.behind.get(usize::from(number));
        if let Some(Behind { public, .. }) = behind {
            command.env("SKEIN_NET__ANNOUNCE", public.to_string());
        }
        match task {
            Task::Host(stage) => command.args(["host", invite, "--stage", &stage.to_string()]),
            Task::Join => command.args(["join", invite]),
        };
        command
            .arg("--home")
            .arg(&home)
            .args(["--port", &behind.map_or(0, |behind| behind.port).to_string()])
            .args(["--threads", &threads.to_string(), "--memory", &unit::bytes(given.memory)])
            .arg("--until-stdin-closes")
            .env("SKEIN_NET__LISTEN", "127.0.0.1")
            .env("SKEIN_NET__LAN", "false")
            .env("SKEIN_NET__PORT_MAPPING", "false")
            .env("SKEIN_STORE__CHECKPOINT_EVERY", "0s")
            .env("SKEIN_WATCH__LISTEN", if given.watched { "127.0.0.1:0" } else { "" })
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(words);
        let process = command.spawn().map_err(failed)?;
        Ok(Serving { number, peer, home, process })
    }

    /// SIGKILL: not a word to anybody.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// The number by which the system knows the process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether the process has ended by itself.
    pub fn ended(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(Some(_)))
    }

    /// Asks it to leave politely.
    pub fn ask_to_leave(&mut self) {
        drop(self.process.stdin.take());
    }

    /// Waits until it has left; kills it if it has not by then.
    pub async fn wait(&mut self, until: Instant) -> bool {
        while !self.ended() {
            if Instant::now() >= until {
                self.kill();
                return false;
            }
            sleep(Duration::from_millis(20)).await;
        }
        true
    }

    /// Its event log.
    pub fn records(&self) -> Vec<Record> {
        self.folder().and_then(|folder| log::read(&folder).ok()).unwrap_or_default()
    }

    /// Follows its event log from as many bytes before its end.
    pub fn follow(&self, back: u64) -> Option<Tail> {
        self.folder().map(|folder| Tail::new(&folder, back))
    }

    /// Of the one run that it takes part in.
    fn folder(&self) -> Option<PathBuf> {
        Home::at(&self.home).runs().list().into_iter().next().map(|folder| folder.path)
    }

    /// The last lines that it said to stderr.
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(self.home.join("stderr")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.kill();
    }
}
