//! Child processes that end in time, or are ended: what hangs is a failure of its own test, not of all of them.

use std::{
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

/// What has not come after this does not come: the longest wait that is right is a tenth of it.
pub const NEVER: Duration = Duration::from_secs(300);

/// Waits until `child` has ended.
pub fn wait(child: &mut Child) -> ExitStatus {
    guarded(child.id(), || child.wait().unwrap())
}

/// Runs a command to its end.
pub fn output(command: &mut Command) -> Output {
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    output_of(piped.spawn().unwrap())
}

/// What a child writes to its pipes until it has ended.
pub fn output_of(child: Child) -> Output {
    guarded(child.id(), || child.wait_with_output().unwrap())
}

/// Kills process `pid` when `end` takes too long.
fn guarded<T>(pid: u32, end: impl FnOnce() -> T) -> T {
    let (ended, over) = mpsc::channel::<()>();
    let guard = thread::spawn(move || {
        let late = over.recv_timeout(NEVER) == Err(mpsc::RecvTimeoutError::Timeout);
        if late {
            signal(pid, KILL);
        }
        late
    });
    let value = end();
    drop(ended);
    assert!(!guard.join().unwrap(), "it did not end in time and was killed");
    value
}

#[cfg(unix)]
const KILL: i32 = libc::SIGKILL;
#[cfg(not(unix))]
const KILL: i32 = 9;

#[cfg(unix)]
pub fn signal(pid: u32, signal: i32) {
    // SAFETY: plain integers, and the process is a child that has not been waited for.
    let sent = unsafe { libc::kill(pid as i32, signal) };
    assert_eq!(sent, 0, "signal {signal} to {pid}");
}

#[cfg(not(unix))]
fn signal(_: u32, _: i32) {}
