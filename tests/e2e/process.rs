//! A `skein` process with a home of its own, on the loopback interface, whose lines of `--json` can be waited for.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;
use skein::{
    home::Home,
    node::{log, signed},
};
use skein_protocol::{Manifest, PeerId};
use skein_simulations::checker::{self, Given, Kill, Summary};

use crate::deadline::{self, NEVER};

/// Swarms share two cores: one at a time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct Skein {
    home: PathBuf,
    child: Child,
    lines: mpsc::Receiver<String>,
    story: mpsc::Receiver<String>,
}

/// `skein ARGS` with `home`, and nothing of this machine's environment.
fn skein(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skein"));
    command.args(args).env_clear().env("SKEIN_HOME", home).env("LANG", "C.UTF-8").stdin(Stdio::null());
    command
}

impl Skein {
    /// Starts `skein ARGS --json` with `home`.
    pub fn start(home: &Path, args: &[&str]) -> Skein {
        Skein::start_with(home, args, &[])
    }

    /// As [`Skein::start`], with more variables.
    pub fn start_with(home: &Path, args: &[&str], variables: &[(&str, &str)]) -> Skein {
        fs::create_dir_all(home).unwrap();
        let mut child = skein(home, args)
            .arg("--json")
            .env("TMPDIR", home)
            .env("SKEIN_NET__LISTEN", "127.0.0.1")
            .env("SKEIN_NET__PORT", "0")
            .env("SKEIN_NET__LAN", "false")
            .env("SKEIN_NET__PORT_MAPPING", "false")
            .env("SKEIN_WATCH__LISTEN", "127.0.0.1:0")
            .env("SKEIN_GIVE__THREADS", "1")
            .env("SKEIN_GIVE__MEMORY", "1GiB")
            .envs(variables.iter().map(|(name, value)| (OsStr::new(name), OsStr::new(value))))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (said, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| said.send(line)));
        let (told, story) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut kept = File::create(home.join("stderr")).unwrap();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = writeln!(kept, "{line}");
                let _ = told.send(line);
            }
        });
        Skein { home: home.into(), child, lines, story }
    }

    /// Runs `skein ARGS` with the same home to its end.
    pub fn ask(&self, args: &[&str]) -> Output {
        deadline::output(&mut skein(&self.home, args))
    }

    /// The first line of this type from here on.
    pub fn wait_for(&mut self, kind: &str) -> Value {
        let found = self.wait_until(|line| line["type"] == kind);
        found.unwrap_or_else(|| panic!("it ended before any {kind}: {}", self.words()))
    }

    pub fn wait_until(&mut self, mut wanted: impl FnMut(&Value) -> bool) -> Option<Value> {
        let until = Instant::now() + NEVER;
        loop {
            let line = match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => line,
                Err(mpsc::RecvTimeoutError::Disconnected) => return None,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("it never said what was waited for: {}", self.words()),
            };
            let line: Value = serde_json::from_str(&line).expect("each line is JSON");
            if wanted(&line) {
                return Some(line);
            }
        }
    }

    /// Drops the lines that are here: what is waited for from now on was said after this.
    pub fn forget(&mut self) {
        while self.lines.try_recv().is_ok() {}
    }

    /// Waits until the story on stderr has these words.
    pub fn wait_for_words(&mut self, words: &str) {
        let until = Instant::now() + NEVER;
        loop {
            let line = self.story.recv_timeout(until.saturating_duration_since(Instant::now()));
            if line.unwrap_or_else(|_| panic!("it never said {words:?}: {}", self.words())).contains(words) {
                return;
            }
        }
    }

    /// All lines until it ends, and how it ended.
    pub fn finish(mut self) -> (Vec<Value>, ExitStatus) {
        let mut all = Vec::new();
        self.wait_until(|line| {
            all.push(line.clone());
            false
        });
        (all, deadline::wait(&mut self.child))
    }

    fn words(&self) -> String {
        fs::read_to_string(self.home.join("stderr")).unwrap_or_default()
    }

    /// Asks it to leave, and waits until it has.
    pub fn leave(self) {
        assert!(self.ask(&["stop"]).status.success());
        assert!(self.finish().1.success());
    }

    /// SIGKILL. When it was.
    pub fn kill(mut self) -> u64 {
        self.child.kill().unwrap();
        deadline::wait(&mut self.child);
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
    }

    #[cfg(unix)]
    pub fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    #[cfg(unix)]
    pub fn signal(&self, signal: i32) {
        deadline::signal(self.child.id(), signal);
    }
}

impl Drop for Skein {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The invite that `train` prints.
pub fn invite(owner: &mut Skein) -> String {
    owner.wait_for("Invite")["invite"].as_str().unwrap().to_string()
}

/// Some text to train on.
pub fn text(path: &Path) {
    let corpus = skein::corpus::fables::expand(3, 60_000).0;
    fs::write(path, corpus).unwrap();
}

/// The manifest of the run that a home was in last.
pub fn manifest_of(home: &Path) -> Manifest {
    let folder = Home::at(home).runs().last().unwrap();
    signed::open(&folder.manifest().unwrap().unwrap(), folder.run).unwrap()
}

/// The books of a run, from the event logs of all its homes, dead or alive.
pub fn books(homes: &[&Path], kills: &[(PeerId, u64)]) -> Summary {
    let logs = homes.iter().map(|home| log::read(&Home::at(home).runs().last().unwrap().path).unwrap());
    let kills = kills.iter().map(|(peer, at)| Kill { peer: *peer, at: *at }).collect();
    checker::check(&checker::log::merge(logs), &Given::of(&manifest_of(homes[0]), kills))
}
