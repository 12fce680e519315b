//! Texts before which an answer ends. In: text, piece by piece. Out: the part of it that surely begins none of them, and whether
//! one came.

pub(super) struct Stops {
    stops: Vec<String>,
    held: String,
}

impl Stops {
    pub fn new(stops: Vec<String>) -> Self {
        Stops { stops, held: String::new() }
    }

    /// What may be shown after one more piece; with `true`, the last of it.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            // What follows the stop is nobody's any more.
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let begun = self.begun();
        let rest = self.held.split_off(self.held.len() - begun);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, when nothing follows.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes of the longest end of what is held that may be the beginning of a stop.
    fn begun(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest.saturating_sub(1));
        let starts = self.held.char_indices().map(|(at, _)| at).filter(|at| *at >= from);
        let mut begun = starts.map(|at| &self.held[at..]).filter(|end| self.stops.iter().any(|s| s.starts_with(end)));
        begun.next().map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut stopper = Stops::new(stops.iter().map(ToString::to_string).collect());
        let mut out = Vec::new();
        for piece in pieces {
            let (text, stopped) = stopper.push(piece);
            out.push(text);
            if stopped {
                return (out, true);
            }
        }
        out.push(stopper.finish());
        (out, false)
    }

    #[test]
    fn what_may_begin_a_stop_is_held_until_it_is_sure() {
        assert_eq!(through(&["\nUser:"], &["so.\nU", "n", "it\nUser: and"]), {
            (vec!["so.".into(), "\nUn".into(), "it".into()], true)
        });
        assert_eq!(through(&["abc"], &["xab"]), (vec!["x".into(), "ab".into()], false));
        assert_eq!(through(&[], &["a", "b"]), (vec!["a".into(), "b".into(), String::new()], false));
    }

    #[test]
    fn the_first_of_several_stops_ends_the_text() {
        assert_eq!(through(&["later", "now"], &["it is now or later"]), (vec!["it is ".into()], true));
        assert_eq!(through(&["aab", "ab"], &["aaa", "b"]).0.concat(), "a");
    }

    #[test]
    fn characters_are_not_cut() {
        assert_eq!(through(&["é!"], &["caf", "é", "é!"]), (vec!["caf".into(), String::new(), "é".into()], true));
    }
}
