//! A `skein` process with a home of its own, on the loopback interface, whose lines of `--json` can be waited for.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// What has not come after this does not come: the longest wait that is right is a tenth of it.
const NEVER: Duration = Duration::from_secs(300);

/// Swarms share two cores: one at a time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct Skein {
    home: std::path::PathBuf,
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Skein {
    /// Starts `skein ARGS --json` with `home`.
    pub fn start(home: &Path, args: &[&str]) -> Skein {
        std::fs::create_dir_all(home).unwrap();
        let stderr = std::fs::File::create(home.join("stderr")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_skein"))
            .args(args)
            .arg("--json")
            .env_clear()
            .env("SKEIN_HOME", home)
            .env("TMPDIR", home)
            .env("SKEIN_NET__LISTEN", "127.0.0.1")
            .env("SKEIN_NET__PORT", "0")
            .env("SKEIN_NET__LAN", "false")
            .env("SKEIN_NET__PORT_MAPPING", "false")
            .env("SKEIN_WATCH__LISTEN", "127.0.0.1:0")
            .env("SKEIN_GIVE__THREADS", "1")
            .env("SKEIN_GIVE__MEMORY", "1GiB")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let (said, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| said.send(line)));
        Skein { home: home.into(), child, lines }
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

    /// All lines until it ends, and how it ended.
    pub fn finish(mut self) -> (Vec<Value>, ExitStatus) {
        let mut all = Vec::new();
        self.wait_until(|line| {
            all.push(line.clone());
            false
        });
        let status = self.child.wait().unwrap();
        (all, status)
    }

    /// SIGTERM: what Ctrl-C is to a process without a terminal.
    #[cfg(unix)]
    pub fn terminate(&self) {
        let sent = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn words(&self) -> String {
        std::fs::read_to_string(self.home.join("stderr")).unwrap_or_default()
    }

    /// Asks it to leave, and waits until it has.
    pub fn leave(self) {
        let asked = Command::new(env!("CARGO_BIN_EXE_skein"))
            .arg("stop")
            .env_clear()
            .env("SKEIN_HOME", &self.home)
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(asked.success());
        assert!(self.finish().1.success());
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
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
    std::fs::write(path, corpus).unwrap();
}
