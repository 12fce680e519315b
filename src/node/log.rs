//! The event log of a run: one [`Record`] a line. In: events. Out: `events.jsonl` in the run's folder, and the record itself.
//!
//! A line is in the operating system's hands before any frame that follows the event leaves this process, so the log of a killed
//! process is complete up to its last frame. It is not synced: it need not survive the machine. Old lines go: the log is two
//! files, and the older one is replaced when the newer is full.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use skein_protocol::{
    Instant, PeerId, Utc,
    event::{Event, Record},
};

const NOW: &str = "events.jsonl";
const BEFORE: &str = "events.before.jsonl";

pub struct Log {
    dir: PathBuf,
    file: File,
    /// Bytes in the file.
    len: u64,
    /// Bytes of both files together.
    keep: u64,
    pending: Vec<u8>,
    peer: PeerId,
    seq: u64,
    /// Nothing is written any more.
    failed: bool,
}

impl Log {
    /// Goes on with the log in `dir`. `keep`: bytes that all of it may take, at least 64 KiB.
    ///
    /// # Errors
    /// The file cannot be opened for writing.
    pub fn open(dir: &Path, peer: PeerId, keep: u64) -> io::Result<Log> {
        fs::create_dir_all(dir)?;
        let mut file = File::options().create(true).read(true).append(true).open(dir.join(NOW))?;
        let len = file.seek(SeekFrom::End(0))?;
        let mut log = Log {
            dir: dir.into(),
            file,
            len,
            keep: keep.max(64 << 10),
            pending: Vec::new(),
            peer,
            seq: 0,
            failed: false,
        };
        if log.ends_torn()? {
            log.pending.push(b'\n');
        }
        Ok(log)
    }

    /// A process that died while it wrote leaves part of a line.
    fn ends_torn(&mut self) -> io::Result<bool> {
        if self.len == 0 {
            return Ok(false);
        }
        let mut last = [0];
        self.file.seek(SeekFrom::End(-1))?;
        self.file.read_exact(&mut last)?;
        Ok(last != *b"\n")
    }

    /// Notes an event. It is written by the next [`Log::flush`].
    pub fn append(&mut self, now: Instant, utc: Utc, event: Event) -> Record {
        self.seq += 1;
        let record = Record { at: now.0, utc: utc.0, peer: self.peer, seq: self.seq, event };
        serde_json::to_writer(&mut self.pending, &record).expect("events are plain data");
        self.pending.push(b'\n');
        record
    }

    /// Hands everything noted to the operating system. A log that cannot be written stops, and training goes on.
    pub fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let lines = std::mem::take(&mut self.pending);
        if self.failed {
            return;
        }
        let written = self.make_room().and_then(|()| self.file.write_all(&lines));
        match written {
            Ok(()) => self.len += lines.len() as u64,
            Err(error) => {
                tracing::warn!(%error, dir = %self.dir.display(), "the event log ends here");
                self.failed = true;
            }
        }
        self.pending = lines;
        self.pending.clear();
    }

    fn make_room(&mut self) -> io::Result<()> {
        if self.len < self.keep / 2 {
            return Ok(());
        }
        fs::rename(self.dir.join(NOW), self.dir.join(BEFORE))?;
        self.file = File::options().create(true).append(true).open(self.dir.join(NOW))?;
        self.len = 0;
        Ok(())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.flush();
    }
}

/// All records of the log in `dir`, the oldest first. Lines that are no records (torn by a crash) are left out.
pub fn read(dir: &Path) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    for name in [BEFORE, NOW] {
        let file = match File::open(dir.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for line in BufReader::new(file).split(b'\n') {
            if let Ok(record) = serde_json::from_slice(&line?) {
                records.push(record);
            }
        }
    }
    Ok(records)
}

/// Follows the log of another process.
pub struct Tail {
    path: PathBuf,
    at: u64,
}

impl Tail {
    /// Of the log in `dir`, from as many bytes before its end of today.
    pub fn new(dir: &Path, back: u64) -> Tail {
        let path = dir.join(NOW);
        let len = fs::metadata(&path).map_or(0, |file| file.len());
        Tail { path, at: len.saturating_sub(back) }
    }

    /// What was written since the last look, as far as it is whole lines. A log that cannot be read says nothing.
    pub fn read(&mut self) -> Vec<Record> {
        let bytes = self.bytes().unwrap_or_default();
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.at += whole as u64;
        bytes[..whole].split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }

    fn bytes(&mut self) -> io::Result<Vec<u8>> {
        let mut file = File::open(&self.path)?;
        // Another file took its place.
        if file.metadata()?.len() < self.at {
            self.at = 0;
        }
        file.seek(SeekFrom::Start(self.at))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage_empty(stage: u16) -> Event {
        Event::StageEmpty { stage }
    }

    fn stages(dir: &Path) -> Vec<u16> {
        let records = read(dir).unwrap();
        records
            .iter()
            .map(|record| match record.event {
                Event::StageEmpty { stage } => stage,
                _ => panic!("{record:?}"),
            })
            .collect()
    }

    #[test]
    fn what_was_flushed_is_there_without_an_orderly_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(dir.path(), PeerId::default(), 1 << 20).unwrap();
        log.append(Instant(1), Utc(2), stage_empty(0));
        log.append(Instant(1), Utc(2), stage_empty(1));
        log.flush();
        log.append(Instant(1), Utc(2), stage_empty(2));
        assert_eq!(stages(dir.path()), [0, 1]);
        std::mem::forget(log);
    }

    #[test]
    fn a_torn_line_costs_itself_only() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(dir.path(), PeerId::default(), 1 << 20).unwrap();
        log.append(Instant(1), Utc(2), stage_empty(0));
        drop(log);
        let mut file = File::options().append(true).open(dir.path().join(NOW)).unwrap();
        file.write_all(b"{\"at\":5,\"ut").unwrap();
        let mut log = Log::open(dir.path(), PeerId::default(), 1 << 20).unwrap();
        log.append(Instant(1), Utc(2), stage_empty(1));
        drop(log);
        assert_eq!(stages(dir.path()), [0, 1]);
    }

    #[test]
    fn a_tail_gives_each_whole_line_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut early = Tail::new(dir.path(), 0);
        assert_eq!(early.read(), []);
        let mut log = Log::open(dir.path(), PeerId::default(), 1 << 20).unwrap();
        let first = log.append(Instant(1), Utc(2), stage_empty(0));
        log.flush();
        let (mut tail, mut back) = (Tail::new(dir.path(), 0), Tail::new(dir.path(), 10));
        assert_eq!((early.read(), back.read()), (vec![first], vec![]), "half a line is none");
        let second = log.append(Instant(1), Utc(2), stage_empty(1));
        log.flush();
        let mut file = File::options().append(true).open(dir.path().join(NOW)).unwrap();
        file.write_all(b"{\"at\":5").unwrap();
        assert_eq!((tail.read(), tail.read()), (vec![second.clone()], vec![]));
        assert_eq!((early.read(), back.read()), (vec![second.clone()], vec![second]));
    }

    #[test]
    fn the_log_is_bounded_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(dir.path(), PeerId::default(), 0).unwrap();
        for round in 0..20_000u16 {
            log.append(Instant(1), Utc(2), stage_empty(round));
            log.flush();
        }
        let size: u64 = fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
        assert!(size <= (64 << 10) + 1024, "{size}");
        let kept = stages(dir.path());
        assert_eq!(kept.last(), Some(&19_999));
        assert!(kept.windows(2).all(|pair| pair[0] + 1 == pair[1]) && kept.len() > 200);
    }
}
