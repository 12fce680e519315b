//! Kills at the moments that come only when something else has gone wrong, or somebody comes or leaves; and the proof that no
//! frame of a micro-batch, a round or a transfer is without its moments.

use std::{cell::Cell, rc::Rc, time::Duration};

use skein_pipeline::peer::io::Command;
use skein_protocol::{
    Stage,
    wire::{Frame, Starts, average, flow, hello, state},
};
use skein_simulations::{
    Fault, Moment, Plan, Role, Setup, Simulation, Small, What, worker::modelled::Device, world::Access,
};

use crate::{
    common::{seconds, swarm, unsound},
    steps::cases,
};

/// How a frame is made to be sent.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trouble {
    /// A replica is suspended for less than makes it dead: offers are taken back.
    Stalls,
    /// A replica computes so slowly that it is asked whether it still holds what it holds.
    Crawls,
    /// A replica leaves.
    Leaves,
    /// A third replica of the first stage begins.
    Joins,
    /// Three replicas a stage: proposals of rounds meet.
    Three,
    /// One replica a stage: snapshots are pushed.
    Few,
}

/// Peers: the feeder, then the hosts of three stages; a joiner of stage 0 is the last.
fn start(trouble: Trouble, seed: u64) -> Simulation {
    let replicas = match trouble {
        Trouble::Three => 3,
        Trouble::Few => 1,
        _ => 2,
    };
    let crawl = Device { flops: Device::CORE.flops / 400.0, ..Device::CORE };
    let mut peers = swarm(3, replicas);
    match trouble {
        Trouble::Crawls => peers[5].device = crawl,
        // A forward is on its way to it when it says that it leaves.
        Trouble::Leaves => peers = peers.into_iter().map(|plan| plan.access(Access::HOME)).collect(),
        Trouble::Joins => peers.push(Plan::new(Role::host(0)).starts(seconds(4))),
        _ => {}
    }
    let mut sim = Simulation::new(Setup::new(seed, Small::demo(3).manifest(), peers));
    match trouble {
        Trouble::Stalls => {
            for (i, peer) in [3, 5, 4, 6, 1].into_iter().cycle().take(25).enumerate() {
                sim.at(
                    Duration::from_millis(2500 + 1900 * i as u64),
                    Fault::PauseFor(peer, Duration::from_millis(1450)),
                );
            }
        }
        Trouble::Leaves => {
            let leaves = |at, peer| (seconds(at), Fault::Command(peer, Command::Drain));
            // Two stages lose one each; whoever sends to them may hear it after the fact.
            for (at, fault) in [leaves(4, 5), leaves(6, 3)] {
                sim.at(at, fault);
            }
        }
        _ => {}
    }
    sim
}

type Matches = fn(&Frame) -> bool;

macro_rules! frame {
    ($pattern:pat) => {
        |frame| matches!(frame, $pattern)
    };
}

/// Frames that an undisturbed swarm of two replicas a stage does not send, and what has them sent.
const RARE: &[(&str, Trouble, Matches)] = &[
    ("Cancel", Trouble::Stalls, frame!(Frame::Flow(flow::Frame::Cancel(_)))),
    ("Ask", Trouble::Crawls, frame!(Frame::Flow(flow::Frame::Ask(_)))),
    ("Declined", Trouble::Leaves, frame!(Frame::Flow(flow::Frame::Declined(_)))),
    ("Goodbye", Trouble::Leaves, frame!(Frame::Hello(hello::Frame::Goodbye))),
    ("Busy", Trouble::Three, frame!(Frame::Average(average::Frame::Busy(_)))),
    ("Want", Trouble::Joins, frame!(Frame::State(state::Frame::Want(_)))),
    ("Is", Trouble::Joins, frame!(Frame::State(state::Frame::Is(_)))),
    ("WantChunk", Trouble::Joins, frame!(Frame::State(state::Frame::WantChunk(_)))),
    ("Chunk", Trouble::Joins, frame!(Frame::State(state::Frame::Chunk(_)))),
    ("Thanks", Trouble::Joins, frame!(Frame::State(state::Frame::Thanks(_)))),
    ("Keep", Trouble::Few, frame!(Frame::State(state::Frame::Keep(_)))),
];

/// Whether a frame has moments in a table: of the common steps, or of the rare ones. What is struck nowhere says why.
fn is_struck(frame: &Frame) -> bool {
    let moment = |what| Moment { at: 0, peer: 0, what };
    let common = |what| {
        let mut all = cases();
        all.iter_mut().any(|case| (0..7).any(|peer| case.happens(&Moment { peer, ..moment(what) })))
    };
    let in_rare = RARE.iter().any(|(_, _, matches)| matches(frame));
    in_rare || common(What::Sent { to: 0, frame }) && common(What::Arrived { from: 0, frame })
}

#[test]
fn every_frame_of_a_micro_batch_and_of_a_round_has_its_moments() {
    let id =
        skein_protocol::MicroBatchId { feeder: skein_protocol::PeerId([1; 32]), incarnation: 1, step: 0, index: 0 };
    let attempt = skein_protocol::Attempt::first(0);
    let (stage, next): (Stage, _) = (0, None);
    let about = flow::About { id, attempt: attempt.clone(), stage };
    let accepted = flow::Accepted { id, attempt: attempt.clone(), stage, next };
    let declined = flow::Declined { id, attempt: attempt.clone(), stage, why: flow::Why::Busy };
    let forward = flow::Forward {
        id,
        attempt: attempt.clone(),
        stage,
        samples: 0,
        close: false,
        hint: None,
        starts: Starts::default(),
        held_out: false,
    };
    let returned = flow::Returned { id, attempt, stage, path: vec![], loss: 0.0, tokens: 0, waited_us: 0 };
    use flow::Frame as F;
    let flows = [
        F::Forward(forward),
        F::Accepted(accepted.clone()),
        F::Confirmed(accepted),
        F::Declined(declined),
        F::Cancel(about.clone()),
        F::WantLabels(id),
        F::Labels(id),
        F::Backward(returned.clone()),
        F::Finished(returned),
        F::Ask(about),
        F::Void(flow::Void { id, stage }),
    ];
    for frame in flows {
        // A frame that is new here has to be put into the list above, and into a table.
        let void = match &frame {
            F::Forward(_) | F::Accepted(_) | F::Confirmed(_) | F::Declined(_) | F::Cancel(_) | F::Ask(_) => false,
            F::WantLabels(_) | F::Labels(_) | F::Backward(_) | F::Finished(_) => false,
            // Nothing is in flight after it: the id is over. Poison is looked at with real arithmetic.
            F::Void(_) => true,
        };
        assert!(void || is_struck(&Frame::Flow(frame.clone())), "{frame:?}");
    }
    let name = average::Name { stage, session: 0 };
    let terms = average::Terms { name, round: 0, samples: 0, own_round: 0 };
    use average::Frame as A;
    let rounds = [A::Propose(terms), A::Agree(terms), A::Busy(name), A::Tensors(terms), A::Ready(name)];
    for frame in rounds.into_iter().chain([A::Adopted(name), A::Abort(name)]) {
        let abort = match &frame {
            A::Propose(_) | A::Agree(_) | A::Busy(_) | A::Tensors(_) | A::Ready(_) | A::Adopted(_) => false,
            // A word that the round is over already at who says it.
            A::Abort(_) => true,
        };
        assert!(abort || is_struck(&Frame::Average(frame.clone())), "{frame:?}");
    }
}

/// Kills the peer that sends (or hears) the frame for the `nth` time, and sees that nothing is lost.
fn strike(seed: u64, (name, trouble, matches): (&str, Trouble, Matches), heard: bool, nth: u32) -> Result<(), String> {
    let what = format!("{name} {} for the {nth}. time, seed {seed}", if heard { "arrives" } else { "is sent" });
    let mut sim = start(trouble, seed);
    let struck = Rc::new(Cell::new(None));
    let (seen, mut left) = (struck.clone(), nth);
    sim.hook(move |moment| {
        let frame = match moment.what {
            What::Sent { frame, to } if !heard && to != moment.peer => frame,
            What::Arrived { frame, from } if heard && from != moment.peer => frame,
            _ => return Vec::new(),
        };
        if seen.get().is_some() || !matches(frame) || moment.at < 2_000_000_000 {
            return Vec::new();
        }
        left -= 1;
        if left > 0 {
            return Vec::new();
        }
        seen.set(Some(moment.peer));
        vec![Fault::Kill(moment.peer)]
    });
    sim.run_for(seconds(30));
    let Some(who) = struck.get() else { return Err(format!("{what}: never happened")) };
    // Whoever feeds, or served a stage alone, comes back.
    if trouble == Trouble::Few || trouble == Trouble::Leaves || who == 0 {
        sim.act(Fault::Start(who));
    }
    // A peer that crawls holds up the whole window, again and again.
    if !sim.run_completed(seconds(300), 40) {
        return Err(format!("{what}: nothing is completed any more"));
    }
    sim.command(0, Command::StopFeeding);
    sim.run_for(seconds(20));
    let overlapped = sim.summary().overlapped;
    let overlap = || (overlapped > 0).then(|| format!("{overlapped} overlapped"));
    unsound(&sim).or_else(overlap).map_or(Ok(()), |wrong| Err(format!("{what}: {wrong}")))
}

#[test]
fn a_kill_at_a_rare_moment_loses_doubles_and_overlaps_nothing() {
    let mut failed = Vec::new();
    for (number, rare) in (0u64..).zip(RARE) {
        for heard in [false, true] {
            for nth in [1, 2] {
                // A joiner asks once, a peer leaves twice.
                let once = matches!(rare.0, "Want" | "Is" | "Thanks" | "WantChunk" | "Chunk") && nth > 1;
                if !once {
                    failed.extend(strike(100 + number, *rare, heard, nth).err());
                }
            }
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}
