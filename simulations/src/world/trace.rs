//! A recorded course of comings and goings: lines `ms,add|remove,id`. In: the file's text. Out: changes in order, or the line that
//! is wrong.
//!
//! `ms` counts from the beginning of the trace, `id` is any word. Empty lines and lines that begin with `#` say nothing. Time
//! never goes back; who is removed was there, who is added was not.

use std::collections::{BTreeMap, BTreeSet};

use super::unit;
use crate::engine::{MILLISECOND, Time};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// In the order in which they first come.
    pub ids: Vec<String>,
    pub lines: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub at: Time,
    /// Number of the id, from 0.
    pub id: usize,
    pub comes: bool,
}

/// What is wrong with a trace, and where; lines count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadTrace {
    pub line: usize,
    pub what: String,
}

impl Trace {
    pub fn read(text: &str) -> Result<Self, BadTrace> {
        let mut trace = Trace::default();
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        let mut there: BTreeSet<usize> = BTreeSet::new();
        let longest = unit::time("365 d").expect("a year is a time");
        for (index, line) in text.lines().enumerate() {
            let bad = |what: String| BadTrace { line: index + 1, what };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let fields: Vec<&str> = line.split(',').map(str::trim).collect();
            let &[ms, word, id] = &fields[..] else {
                return Err(bad(format!("has {} fields; a line is ms,add|remove,id", fields.len())));
            };
            let at = ms.parse::<u64>().ok().and_then(|ms| ms.checked_mul(MILLISECOND)).filter(|at| *at <= longest);
            let at =
                at.ok_or_else(|| bad(format!("begins with \"{ms}\"; allowed: whole milliseconds up to a year")))?;
            let comes = match word {
                "add" => true,
                "remove" => false,
                _ => return Err(bad(format!("says \"{word}\"; allowed: add, remove"))),
            };
            if id.is_empty() {
                return Err(bad("has no id".into()));
            }
            if let Some(before) = trace.lines.last().filter(|before| before.at > at) {
                return Err(bad(format!("goes back in time: {ms} ms after {} ms", before.at / MILLISECOND)));
            }
            let number = *numbers.entry(id).or_insert(trace.ids.len());
            if number == trace.ids.len() {
                trace.ids.push(id.into());
            }
            match (comes, there.contains(&number)) {
                (true, true) => return Err(bad(format!("adds {id}, who is there already"))),
                (false, false) => return Err(bad(format!("removes {id}, who is not there"))),
                (true, false) => there.insert(number),
                (false, true) => there.remove(&number),
            };
            trace.lines.push(Entry { at, id: number, comes });
        }
        if trace.lines.is_empty() {
            return Err(BadTrace { line: 1, what: "nobody comes: the trace is empty".into() });
        }
        Ok(trace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_in_order() {
        let trace = Trace::read("# spot\n0,add,b\n 0 , add , a\n\n1500,remove,b\n1500,add,b\n").unwrap();
        assert_eq!(trace.ids, ["b", "a"]);
        assert_eq!(trace.lines[2], Entry { at: 1_500_000_000, id: 0, comes: false });
        assert_eq!(trace.lines.len(), 4);
    }

    #[test]
    fn a_broken_trace_says_where_and_what_is_allowed() {
        for (text, line, part) in [
            ("0,add,a\n1,kill,a\n", 2, "says \"kill\"; allowed: add, remove"),
            ("5,add,a\n4,add,b\n", 2, "goes back in time: 4 ms after 5 ms"),
            ("5,add,a\n6,remove,b\n", 2, "removes b, who is not there"),
            ("5,add,a\n\n6,add,a\n", 3, "adds a, who is there already"),
            ("5,add\n", 1, "has 2 fields"),
            ("5,add,\n", 1, "has no id"),
            ("-5,add,a\n", 1, "whole milliseconds"),
            ("99999999999999,add,a\n", 1, "up to a year"),
            ("# nothing\n", 1, "empty"),
        ] {
            let bad = Trace::read(text).unwrap_err();
            assert_eq!(bad.line, line, "{text}");
            assert!(bad.what.contains(part), "{} should say {part}", bad.what);
        }
    }
}
