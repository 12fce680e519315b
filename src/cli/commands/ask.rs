//! What the commands share that ask the peer of this home: finding it, and whether it works on the run that was named.

use crate::{
    cli::{
        context::Context,
        failure::{Failure, Report},
    },
    config::nearest,
    watch::{Client, RunState, State},
};

pub fn client(context: &Context) -> Result<Client, Report> {
    Ok(Client::find(&context.home.control_file())?)
}

/// The run of the peer that runs here, if it goes by `name`: its label, or the beginning of its hash.
///
/// # Errors
/// The peer works on another run, or does not know yet.
pub fn run_named(state: &State, name: &str) -> Result<RunState, Report> {
    match &state.run {
        Some(run) if run.name == name || is_hash_of(name, run) => Ok(run.clone()),
        Some(run) => {
            let hint = nearest(name, [run.name.clone()]);
            let known = format!("{}, which the peer here works on", run.name);
            Err(Failure::UnknownRun { name: name.into(), known, hint: hint.into() }.into())
        }
        None => Err(Failure::NotPossible { why: "it does not know its run yet".into() }.into()),
    }
}

fn is_hash_of(name: &str, run: &RunState) -> bool {
    let digits = name.strip_prefix("b3:").unwrap_or(name);
    digits.len() >= 6 && run.id.to_hex().starts_with(digits)
}

#[cfg(test)]
mod tests {
    use skein_protocol::{PeerId, hash::Digest};

    use super::*;
    use crate::watch::Me;

    #[test]
    fn a_run_goes_by_its_label_or_its_hash() {
        let mut state = State::starting(Me::default(), 0);
        assert_eq!(run_named(&state, "tiny").unwrap_err().failure.code(), "SK703");
        let run =
            RunState { name: "tiny".into(), id: Digest([0xab; 32]), about: String::new(), owner: PeerId([1; 32]) };
        state.run = Some(run.clone());
        for name in ["tiny", "ababab", "b3:abababab"] {
            assert_eq!(run_named(&state, name).unwrap(), run, "{name}");
        }
        for name in ["tinny", "ab", "b3:", "cdcdcd"] {
            assert_eq!(run_named(&state, name).unwrap_err().failure.code(), "SK312", "{name}");
        }
    }
}
