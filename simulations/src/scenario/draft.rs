//! A scenario that may be wrong, read to its end all the same. In: a text, assignments of `--set`, the files that it names. Out: a
//! document with nothing wrong in it, or every problem at once: what is no key, what is no value, and what does not go together among
//! the rest. What only seems to contradict, since a value beside it is wrong and a default stands in its place, is not told.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Document, Files, Problem, Refused,
    check::check,
    document::{in_order, salvage},
    keys,
    problem::unread,
};

/// Why files could not be read, by the name that the scenario has for them.
pub type Unread = BTreeMap<String, String>;

#[derive(Clone, Debug)]
pub struct Draft {
    /// What of it is right; nothing where the text is no TOML.
    document: Option<Document>,
    found: Vec<Problem>,
    /// Keys whose values are not known, since they are wrong; and what is no key, since it may be meant for another of its
    /// section.
    wrong: BTreeSet<String>,
}

impl Draft {
    pub fn read(file: &str, text: &str) -> Draft {
        let (document, found) = salvage(file, text);
        let wrong = found.iter().map(|problem| problem.key.clone()).collect();
        Draft { document, found, wrong }
    }

    /// Changes one value, as [`Document::set`] does.
    pub fn set(&mut self, assignment: &str) {
        let Some(document) = &mut self.document else { return };
        if let Err(refused) = document.set(assignment) {
            self.wrong.extend(refused.0.iter().map(|problem| problem.key.clone()));
            self.found.extend(refused.0);
        }
    }

    /// Files that what is right of it names.
    pub fn files(&self) -> Vec<String> {
        self.document.as_ref().map_or_else(Vec::new, Document::files)
    }

    /// # Errors
    /// Every problem of the text and of what was set.
    pub fn whole(self) -> Result<Document, Refused> {
        match self.document.filter(|_| self.found.is_empty()) {
            Some(document) => Ok(document),
            None => Err(Refused(in_order(self.found))),
        }
    }

    /// # Errors
    /// As [`Draft::whole`], with every contradiction.
    pub fn checked(mut self, files: &Files, reasons: &Unread) -> Result<Document, Refused> {
        let contradictions = self.document.as_ref().and_then(|document| check(document, files).err());
        for mut problem in contradictions.map_or_else(Vec::new, |refused| refused.0) {
            if self.is_doubtful(&problem) {
                continue;
            }
            if let Some((_, why)) = reasons.iter().find(|(name, _)| problem.what == unread(name)) {
                problem.what.push_str(&format!(" ({why})"));
            }
            self.found.push(problem);
        }
        self.whole()
    }

    /// Whether it speaks of a value that is wrong, or follows from one.
    fn is_doubtful(&self, problem: &Problem) -> bool {
        let is_below = |key: &str, section: &str| {
            key.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let follows = follows_from(&problem.key);
        self.wrong.iter().any(|key| {
            (is_known(key) && names(&problem.what, key)) || follows.iter().any(|section| is_below(key, section))
        })
    }
}

fn is_known(key: &str) -> bool {
    keys::find(key).is_some() || keys::is_section(key)
}

/// Whether a sentence has `key` as a word, or a key below it.
fn names(what: &str, key: &str) -> bool {
    let of_key = |char: char| char.is_alphanumeric() || char == '_';
    what.match_indices(key).any(|(at, _)| {
        let before = what[..at].chars().next_back();
        let after = what[at + key.len()..].chars().next();
        !before.is_some_and(|char| of_key(char) || char == '.') && !after.is_some_and(of_key)
    })
}

/// Keys and sections on which a contradiction at `key` may rest.
fn follows_from(key: &str) -> &'static [&'static str] {
    let (section, rest) = key.split_once('.').unwrap_or((key, ""));
    match section {
        "simulate" if rest == "duration" => &["simulate.duration"],
        "peers" if rest == "arrive_within" => &["simulate.duration", "peers.arrive_within"],
        "peers" if rest.starts_with("devices") => &["peers.devices"],
        "churn" => &["churn"],
        "cost" => &["cost"],
        _ => &["run", "peers", "fault", "churn", "learning", "simulate.fidelity"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str, sets: &[&str]) -> Vec<String> {
        let mut draft = Draft::read("my.toml", text);
        sets.iter().for_each(|set| draft.set(set));
        let refused = draft.checked(&Files::new(), &Unread::new()).expect_err("something is wrong");
        refused.0.iter().map(ToString::to_string).collect()
    }

    #[track_caller]
    fn says(said: &[String], parts: &[&str]) {
        assert_eq!(said.len(), parts.len(), "{said:#?}");
        for (said, part) in said.iter().zip(parts) {
            assert!(said.contains(part), "{said} should say {part}");
        }
    }

    #[test]
    fn wrong_values_unknown_keys_and_contradictions_are_told_together() {
        let text = "question = \"?\"\n[run]\nmodel = \"demo\"\n[peers]\ncount = 4\narrive_within = \"2 h\"\n[network]\nacess = 3\n\
                    regions = \"mars\"\n[cost]\nreference = \"8xa10\"\n[simulate]\nduration = \"1 h\"\n";
        says(
            &said(text, &["churn=sopt", "pers=3", "stages=9"]),
            &[
                "my.toml:6:17: peers.arrive_within is longer than simulate.duration",
                "my.toml:8:1: network.acess is no key",
                "my.toml:9:11: network.regions \"mars\" is not known",
                "my.toml:11:13: cost.reference \"8xa10\" is not known",
                "--set churn=sopt: churn.preset",
                "--set pers=3: pers is no key",
            ],
        );
        // What rests on a wrong value waits until it is right: the stages are judged by the peers.
        says(
            &said(text.replace("acess = 3", "").replace("mars", "aws").as_str(), &["stages=9"]),
            &[
                "arrive_within",
                "8xa10",
                "run.stages is 9, and peers.count = 4",
                "run.stages is 9, and the model has 3 layers",
            ],
        );
    }

    #[test]
    fn what_rests_on_a_wrong_value_is_not_told() {
        let text = "question = \"?\"\n[run]\nmodel = \"demo\"\nstages = 3\n[peers]\ncount = 0\n[[fault]]\nat = \"1 s\"\n\
                    what = \"die\"\npeers = 13\n";
        says(&said(text, &[]), &["peers.count cannot be 0"]);
    }

    #[test]
    fn what_is_no_key_hides_no_contradiction_that_has_its_letters() {
        let text = "question = \"?\"\na = 1\n[run]\nmodel = \"demo\"\nstages = 9\n[peers]\ncount = 4\n";
        says(
            &said(text, &["s=3"]),
            &[
                "my.toml:2:1: a is no key",
                "run.stages is 9, and peers.count = 4",
                "run.stages is 9, and the model has 3 layers",
                "--set s=3: s is no key",
            ],
        );
    }

    #[test]
    fn a_sentence_names_a_key_as_a_whole_word() {
        assert!(names("is longer than simulate.duration", "simulate.duration"));
        assert!(names("is longer than simulate.duration", "simulate"));
        assert!(!names("is longer than simulate.duration", "duration"));
        assert!(!names("is 9, and peers.count = 4", "peers.co"));
        assert!(!names("rests on relearning", "learning"));
    }

    #[test]
    fn a_line_that_is_no_toml_hides_no_other_problem() {
        let text =
            "question = \"?\"\n[run]\nmodel = \"7c\"\nstages = \n[peers]\ncount = 99999999999999999999\ncuont = 6\n";
        says(
            &said(text, &[]),
            &["my.toml:3:9: run.model \"7c\"", "my.toml:4:", "my.toml:6:9: peers.count", "my.toml:7:1: peers.cuont"],
        );
    }

    #[test]
    fn a_fault_that_is_wrong_leaves_the_numbers_of_the_others() {
        let text = "question = \"?\"\n[run]\nmodel = \"demo\"\n[[fault]]\nat = \"1 h\"\nwhat = \"dei\"\n[[fault]]\nat = \"1 s\"\n\
                    what = \"slow\"\nfactor = 2.0\n";
        says(&said(text, &[]), &["fault.0.what \"dei\" is not known"]);
        says(&said(&text.replace("dei", "die"), &[]), &["fault.1.factor is 2"]);
    }

    #[test]
    fn a_file_that_cannot_be_read_says_why() {
        let mut draft = Draft::read("my.toml", "question = \"?\"\n[run]\nmodel = \"demo\"\n");
        draft.set("churn=trace:mine");
        assert_eq!(draft.files(), ["mine"]);
        let reasons = [("mine".to_string(), "it is a folder".to_string())].into();
        let said = draft.checked(&Files::new(), &reasons).unwrap_err().to_string();
        assert!(said.ends_with("churn.preset names a file that could not be read: mine (it is a folder)"), "{said}");
    }
}
