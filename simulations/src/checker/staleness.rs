//! No gradient enters a sum that is older than the manifest allows.

use skein_protocol::event::Event;

use super::{Given, Line, Summary, once::name};

pub fn check(lines: &[Line], given: &Given, summary: &mut Summary) {
    for line in lines {
        if let Event::Added { id, stage, staleness, .. } = &line.record.event
            && *staleness > given.staleness_bound
        {
            summary.broken(format!("{} was added at stage {stage} {staleness} steps late", name(id)));
        }
    }
}
