//! `skein join` and `skein host`: into a run by an invite, or back into one that is known here.

use std::time::Duration;

use skein_protocol::{invite::Invite, unit};

use super::unknown_run;
use crate::{
    cli::{
        args,
        context::Context,
        failure::{Failure, Report},
        invites,
        session::{self, Plan},
    },
    config::StageChoice,
    home::RunFolder,
    node::{Role, Way, base::Base, lobby::Invited, signed},
};

/// How long the peers of an invite may stay silent before it is said.
const PATIENCE: Duration = Duration::from_secs(20);

pub fn join(args: &args::Join, context: &Context) -> Result<u8, Report> {
    let role = match context.node.give.stage {
        _ if args.observe || !context.node.give.works() => Role::observe(),
        StageChoice::Stage(stage) => Role::host(vec![stage]),
        StageChoice::Auto => Role::join(),
    };
    enter(context, "join", args.run.as_deref(), role, args.wait.as_deref(), args.give.until_stdin_closes)
}

pub fn host(args: &args::Host, context: &Context) -> Result<u8, Report> {
    let mut stages = args.stage.clone();
    stages.sort_unstable();
    stages.dedup();
    if !context.node.give.works() {
        return Err(Failure::Contradiction {
            a: "--stage".into(),
            b: context.settings.named("give.roles"),
            reason: "a peer without the role train serves no stage".into(),
        }
        .into());
    }
    let role = Role::host(stages);
    enter(context, "host", args.run.as_deref(), role, args.wait.as_deref(), args.give.until_stdin_closes)
}

fn enter(
    context: &Context,
    command: &'static str,
    run: Option<&str>,
    role: Role,
    wait: Option<&str>,
    until_stdin_closes: bool,
) -> Result<u8, Report> {
    let patience = match wait {
        None => PATIENCE,
        Some(text) => duration("--wait", text)?,
    };
    let found = find(context, run)?;
    session::run(
        context,
        Plan {
            command,
            run: found.label,
            way: found.way,
            role,
            invite: found.invite,
            patience,
            keep_trying: wait.is_none(),
            save_to: None,
            owner: false,
            base: found.base,
            until_stdin_closes,
        },
    )
}

/// A duration that a flag gives.
pub fn duration(flag: &str, text: &str) -> Result<Duration, Report> {
    unit::parse_duration(text).map_err(|error| Failure::Usage { message: format!("{flag} {text}: {error}") }.into())
}

struct Found {
    label: String,
    way: Way,
    invite: Option<String>,
    /// The model that the run began with, where this peer noted where it lies.
    base: Option<Base>,
}

/// An invite, the name of a run that is known here, or the run of last time.
fn find(context: &Context, run: Option<&str>) -> Result<Found, Report> {
    let runs = context.home.runs();
    match run {
        None => match runs.last() {
            Some(folder) => known(&folder),
            None => Err(Failure::NothingToJoin {}.into()),
        },
        Some(text) => match Invite::decode(text) {
            Ok(invite) => {
                let folder = runs.list().into_iter().find(|folder| folder.run == invite.run);
                let invited = invites::invited(&invite);
                // Known already: its manifest need not be fetched, but today's addresses are in the invite.
                let way = match folder.as_ref().map(RunFolder::manifest).transpose()?.flatten() {
                    Some(signed) if signed::open(&signed, invite.run).is_ok() => {
                        Way::Known { signed, meet: invited.peers.clone() }
                    }
                    _ => Way::Invited(invited),
                };
                let base = folder.as_ref().and_then(base_of);
                Ok(Found { label: invite.label.clone(), way, invite: Some(text.trim().to_string()), base })
            }
            Err(error) => match runs.named(text) {
                Some(folder) => known(&folder),
                None if text.to_ascii_lowercase().contains("skein") || text.len() > 40 => {
                    Err(Failure::from(error).into())
                }
                None => Err(unknown_run(context, text)),
            },
        },
    }
}

/// Who led here, if somebody did.
pub(super) fn invited(folder: &RunFolder) -> Option<Invited> {
    let invite = folder.invite().ok().flatten()?;
    Invite::decode(&invite).ok().map(|invite| invites::invited(&invite))
}

fn known(folder: &RunFolder) -> Result<Found, Report> {
    let (invite, invited) = (folder.invite()?, invited(folder));
    let way = match folder.manifest()? {
        Some(signed) => Way::Known { signed, meet: invited.map_or_else(Vec::new, |invited| invited.peers) },
        None => match invited {
            Some(invited) => Way::Invited(invited),
            None => {
                let path = folder.path.display().to_string();
                return Err(Failure::Damaged { path, why: "it holds no manifest".into() }.into());
            }
        },
    };
    Ok(Found { label: folder.name.clone(), way, invite, base: base_of(folder) })
}

/// Where the first weights lie here no more, they come from replicas like everybody's.
fn base_of(folder: &RunFolder) -> Option<Base> {
    let manifest = signed::open(&folder.manifest().ok().flatten()?, folder.run).ok()?;
    Base::of_run(folder, &manifest).ok().flatten()
}
