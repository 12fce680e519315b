//! What happens when we are wrong: a panic anywhere ends the process with SK900 and a report file. In: the panic. Out: a text
//! with the build, the place and the last log lines; no key, no text of the user.

use std::{
    backtrace::Backtrace,
    env,
    fmt::Write as _,
    panic::{self, PanicHookInfo},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::{failure::Failure, logs, out::Out};
use crate::{
    home::file::{self, Reader},
    text,
};

const EXIT: i32 = 70;

/// Installs the hook. `folder` is where reports go; the folder for temporary files if it cannot be written.
pub fn catch(out: Out, folder: PathBuf) {
    panic::set_hook(Box::new(move |info| {
        // A stranger's tokenizer file ends in an error, not in this process.
        if text::is_guarded() {
            return;
        }
        let failure = report(info, &folder);
        out.report(&failure.into(), false);
        std::process::exit(EXIT);
    }));
}

fn report(info: &PanicHookInfo<'_>, folder: &Path) -> Failure {
    let message = info.payload_as_str().unwrap_or("a panic without a message").to_string();
    let place = info.location().map_or("an unknown place".into(), ToString::to_string);
    let text = words(&message, &place, &Backtrace::force_capture().to_string(), &logs::last_lines());
    let name = format!("skein-report-{}.txt", Timestamp::now().strftime("%Y%m%dT%H%M%SZ"));
    let written = [folder.to_path_buf(), env::temp_dir()].into_iter().find_map(|dir| {
        // Log lines may name peers and paths: they are this user's alone.
        let path = dir.join(&name);
        file::write(&path, text.as_bytes(), Reader::OwnerOnly).ok().map(|()| path)
    });
    let file = written.map_or("this message".into(), |path| path.display().to_string());
    Failure::Panic { message, place, file }
}

fn words(message: &str, place: &str, backtrace: &str, log: &[String]) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "skein {} ({})\n{message}\nat {place}\n\nbacktrace\n{backtrace}\n\nlog",
        version(),
        env::consts::OS
    );
    for line in log {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// Version and build facts: `0.1.0, x86_64 linux, cpu`.
pub fn version() -> String {
    format!("{}, {} {}, {}", env!("CARGO_PKG_VERSION"), env::consts::ARCH, env::consts::OS, features())
}

/// What this build computes on.
pub fn features() -> &'static str {
    match (cfg!(feature = "cuda"), cfg!(feature = "metal")) {
        (false, false) => "cpu",
        (true, false) => "cpu, cuda",
        (false, true) => "cpu, metal",
        (true, true) => "cpu, cuda, metal",
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;
    use crate::cli::out::{Colour, Style};

    /// Runs this test again in a process of its own, where the panic is.
    #[test]
    fn a_panic_ends_with_a_report_and_its_own_code() {
        const FOLDER: &str = "SKEIN_TEST_REPORT_FOLDER";
        if let Some(folder) = env::var_os(FOLDER) {
            catch(Out::new(Style::look(false, false, Colour::Never, true)), folder.into());
            std::thread::spawn(|| panic!("the sky is falling")).join().unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("log");
        let out = Command::new(env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "cli::bug::tests::a_panic_ends_with_a_report_and_its_own_code"])
            .env(FOLDER, &folder)
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(EXIT));
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert!(stderr.contains("Skein stopped because of a bug") && stderr.contains("SK900"), "{stderr}");
        let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1);
        #[cfg(unix)]
        for (path, mode) in [(&folder, 0o700), (&files[0], 0o600)] {
            let found = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions());
            assert_eq!(found & 0o777, mode, "{}", path.display());
        }
        let text = fs::read_to_string(&files[0]).unwrap();
        assert!(text.contains("the sky is falling\nat src/cli/bug.rs"), "{text}");
    }
}
