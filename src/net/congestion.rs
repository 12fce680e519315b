//! How much may be on its way to one peer: a congestion controller that is patient about loss and shy of queues.
//!
//! In: what quinn sees of packets (sent, acknowledged, lost, and when). Out: the window, in bytes, by which quinn also paces.
//! Reads no clock. Knows no stream and no peer.
//!
//! CUBIC takes every lost packet for a full queue, so a wireless last mile that loses one in two hundred leaves it a twentieth
//! of the link; BBR ignores losses, and keeps the queue of a clean link overflowing. This one measures what it wants to
//! know. Once a round trip it sets
//!
//! ```text
//! window = rate · base + share        rate   bytes a second that were acknowledged in the last round
//!                                     base   the shortest round trip of the last twenty seconds
//!                                     share  bytes of ours that may stand in the queue of the narrowest link
//! ```
//!
//! which is FAST TCP (Wei, Jin, Low, Hegde 2006) with the delivered rate in the place of window / round trip, so that what is
//! lost counts as not delivered: at a loss of `p` the window settles at `share / p` if that is less, and random loss far above
//! what links have costs little. `share` grows with the square root of the rate, so the queue (`share / rate`) is shorter the
//! faster a flow is, and flows with one bottleneck settle at equal rates: a flow that has more finds the common queue longer
//! than it wants (Swift's flow scaling, Kumar and others 2020).
//!
//! A queue that stays long whatever we do belongs to somebody who fills it until it overflows. Against such a neighbour
//! `share` grows by a tenth a round and shrinks with each round that loses, as Copa does (Arun and Balakrishnan 2018).
//!
//! It may also stand on the way back: where both ends fill their uplinks, acknowledgements wait behind what the other side sends,
//! and who takes that for a queue of its own leaves its link half empty. So with a queue that is too long a window larger by half
//! is tried: where the rate follows, the queue is not ours. And a window that shrinks stops where the rate would.
//!
//! All connections of a peer share its uplink. For some rounds after others of them began or ceased to send, a window may be as large
//! as what they leave of it (`outlet`).

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

use super::{
    lately::Lately,
    outlet::{Outlet, Sender},
};

/// What may be sent before anything is known: the first 64 KiB of a new connection then arrive within one round trip.
const INITIAL_WINDOW: u64 = 128 << 10;
/// Packets that the window always holds.
const PACKETS_MIN: u64 = 4;
/// Nothing is wider: 10 Gbit/s over 200 ms.
const WINDOW_MAX: u64 = 256 << 20;
/// `share` in bytes is this times the square root of the rate in bytes a second: 50 kB, which is 4 ms, at 100 Mbit/s; 13 ms
/// at 10 Mbit/s.
const SHARE: f64 = 14.0;
/// A queue shorter than this is not told from the jitter of timers; it bounds `share` from below on fast links.
const QUEUE_MIN: Duration = Duration::from_millis(1);
/// The same between processes of one machine and in one network: what makes a round trip longer there is a receiver that waits
/// for its turn on the processor, and buffers hold much more.
const QUEUE_MIN_NEAR: Duration = Duration::from_millis(5);
/// A round is at least this long, so that a rate is taken over more than one burst on links that are short and fast.
const ROUND_MIN: Duration = Duration::from_millis(4);
/// Packets of a round whose shortest round trip shows a queue, and the least and greatest queue that ends the doubling.
const STARTUP_PACKETS: u32 = 8;
const STARTUP_QUEUE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(16));
/// Datagrams that only acknowledge are hardly ever longer. quinn tells of them as of all others; nobody acknowledges them.
const ACKNOWLEDGES: u64 = 300;
/// How long a shortest round trip is believed: it stands in one of two spans of this length.
const BASE_SPAN: Duration = Duration::from_secs(10);
/// Rounds for which the window is halved to see the round trip without our own queue.
const DRAIN_ROUNDS: u32 = 2;
/// How long a share that has grown is kept without looking whether somebody still fills the queue.
const RIVAL_SPAN: Duration = Duration::from_secs(4);
/// Losses above this, together with a queue, are an overflow.
const LOSS_OVERFLOW: f64 = 0.02;
/// Losses above this are too many whatever the queue: a policer, or a buffer of a few packets.
const LOSS_POLICED: f64 = 0.15;
/// A queue of this many times what we want is somebody else's.
const RIVAL_QUEUE: f64 = 3.0;
const RIVAL_QUEUE_MAX: Duration = Duration::from_millis(20);
/// Rounds in turn with such a queue before we answer it.
const RIVAL_ROUNDS: u32 = 6;
/// A queue of this many times what we want may be one on the way back.
const TRIAL_QUEUE: f64 = 1.5;
/// A window larger by half pays when the rate grows by so much.
const TRIAL_PAYS: f64 = 1.25;
/// Rounds with such a queue between two trials: at first, and at most when none pays.
const TRIAL_PAUSE: (u32, u32) = (4, 64);
/// Rounds for which the greatest rate is remembered, and part of it below which a shorter queue is not worth it.
const BEST_ROUNDS: u32 = 8;
const KEPT: f64 = 0.75;
/// No more of a queue is taken for one on the way back: a link that gets slower must not be filled without end.
const BACK_MAX: Duration = Duration::from_millis(100);
/// Rounds without a change among the other connections of the uplink, after which a window fits what they leave.
const CALM_ROUNDS: u32 = 4;
/// Part of the window that remains to who gives way.
const HUMBLE: u64 = 4;
const BOLDNESS_MIN: f64 = 0.25;
const BOLDNESS_MAX: f64 = 16.0;

#[derive(Clone, Debug)]
pub struct Patient {
    window: u64,
    mtu: u64,
    /// The shortest queue that is worth avoiding.
    queue_min: Duration,
    phase: Phase,
    round: Round,
    /// The shortest round trip of the last ones.
    base: Lately<Duration>,
    /// That of the last round, no longer than a queue on the way back makes it.
    trip: Duration,
    /// What this connection sends, beside the others of the uplink, if it goes over that; how often one of them began or ceased when a
    /// round last ended, and rounds since that was something else.
    sender: Option<Arc<Sender>>,
    turns: u64,
    calm: u32,
    /// Share of packets that were lost lately.
    loss: f64,
    /// What `share` is multiplied by: above 1 against a neighbour that fills the queue, below where our own share overflows it.
    boldness: f64,
    /// Rounds in turn with a queue that is not ours.
    rivalled: u32,
    /// Rounds in turn with hardly any queue: the link has become faster, and `share` counts twice as much with each.
    room: u32,
    /// What goes over this connection gives way to what goes over others.
    humble: Arc<AtomicBool>,
    /// What it takes to tell our own queue from one on the way back.
    trial: Trial,
    /// When the window was last halved to look.
    drained: Instant,
    /// Nothing is on its way.
    idle: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Doubling each round, until a queue or losses are seen or the rate does not follow. The rate of the best round so far, and
    /// rounds in turn that were not better by a quarter.
    Startup {
        best: f64,
        flat: u32,
    },
    Cruise,
    /// Half a window for some rounds.
    Drain {
        rounds: u32,
        then: u64,
    },
}

/// Tells a queue that is ours from one that stands on the way back, where acknowledgements wait behind what the other side
/// sends: a larger window makes the first longer, and the second faster.
#[derive(Clone, Debug)]
struct Trial {
    /// The greatest rate of these rounds, and of as many before them.
    now: f64,
    before: f64,
    rounds: u32,
    /// Rounds until the next trial, and how many there were between the last two.
    wait: u32,
    pause: u32,
    /// The window and the rate before one that is under way, and whether its packets have been seen.
    running: Option<(u64, f64, bool)>,
}

impl Trial {
    fn new() -> Trial {
        Trial { now: 0.0, before: 0.0, rounds: 0, wait: TRIAL_PAUSE.0, pause: TRIAL_PAUSE.0, running: None }
    }

    fn best(&self) -> f64 {
        self.now.max(self.before)
    }

    /// Too much is on the way: what was tried was, and what was once carried is no aim.
    fn overflowed(&mut self, rate: f64) {
        let pause = (self.pause * 2).min(TRIAL_PAUSE.1);
        *self = Trial { now: rate, before: rate, rounds: 0, wait: pause, pause, running: None };
    }

    /// A round that was not limited by the sender had this rate; `long`: with a queue longer than ours should be. The window, if
    /// it is to be tried or found good.
    fn on_round(&mut self, window: u64, rate: f64, long: bool) -> Option<u64> {
        self.rounds += 1;
        if self.rounds > BEST_ROUNDS {
            (self.before, self.now, self.rounds) = (self.now, 0.0, 1);
        }
        self.now = self.now.max(rate);
        let larger = window + window / 2;
        match self.running.take() {
            Some((then, before, false)) => {
                self.running = Some((then, before, true));
                return Some(window);
            }
            Some((_, before, true)) if rate > TRIAL_PAYS * before => {
                self.pause = TRIAL_PAUSE.0;
                self.running = Some((window, rate, false));
                return Some(larger);
            }
            Some((then, ..)) => {
                self.pause = (self.pause * 2).min(TRIAL_PAUSE.1);
                self.wait = self.pause;
                return Some(then);
            }
            None => {}
        }
        if !long {
            return None;
        }
        self.wait = self.wait.saturating_sub(1);
        if self.wait > 0 {
            return None;
        }
        self.running = Some((window, rate, false));
        Some(larger)
    }
}

/// What was seen since the first packet of this round was sent.
#[derive(Clone, Copy, Debug)]
struct Round {
    began: Instant,
    packets: u32,
    acked: u64,
    lost: u64,
    /// When the last packet that was acknowledged had been sent.
    newest: Option<Instant>,
    fastest: Option<Duration>,
    /// We had less to send than we were allowed to, so the rate says nothing about the link.
    app_limited: bool,
    marked: bool,
}

impl Round {
    fn new(began: Instant) -> Round {
        Round { began, packets: 0, acked: 0, lost: 0, newest: None, fastest: None, app_limited: false, marked: false }
    }
}

impl Patient {
    fn new(now: Instant, mtu: u16, queue_min: Duration, sender: Option<Arc<Sender>>) -> Patient {
        Patient {
            window: INITIAL_WINDOW,
            mtu: u64::from(mtu),
            queue_min,
            phase: Phase::Startup { best: 0.0, flat: 0 },
            round: Round::new(now),
            base: Lately::new(now, BASE_SPAN, Duration::min),
            trip: Duration::ZERO,
            turns: sender.as_ref().map_or(0, |sender| sender.turns_of_others()),
            sender,
            calm: CALM_ROUNDS,
            loss: 0.0,
            boldness: 1.0,
            rivalled: 0,
            room: 0,
            humble: Arc::default(),
            trial: Trial::new(),
            drained: now,
            idle: true,
        }
    }

    fn set_mtu(&mut self, mtu: u16) {
        self.mtu = u64::from(mtu);
        self.window = self.window.max(self.mtu * PACKETS_MIN);
    }

    fn sent(&mut self, now: Instant, bytes: u64) {
        self.sender.iter().for_each(|sender| sender.sent(bytes));
        // A rest is part of no round. What is found lost when all else has arrived is known only after that round.
        if std::mem::take(&mut self.idle) {
            let Round { lost, marked, .. } = self.round;
            self.round = Round { lost, marked, ..Round::new(now) };
        }
    }

    /// A packet of `bytes` arrived that was sent at `sent`.
    fn acked(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool) {
        let took = now.saturating_duration_since(sent);
        self.sender.iter().for_each(|sender| sender.acked(now, bytes));
        let round = &mut self.round;
        round.packets += 1;
        round.acked += bytes;
        round.newest = round.newest.max(Some(sent));
        round.fastest = Some(round.fastest.map_or(took, |fastest| fastest.min(took)));
        // How much it could send otherwise, it does not see while it gives way.
        let app_limited = app_limited || self.humble.load(Relaxed);
        round.app_limited |= app_limited;
        if let Phase::Startup { .. } = self.phase
            && !app_limited
        {
            self.window = (self.window + bytes).min(WINDOW_MAX);
        }
    }

    /// All that one acknowledgement says was said; `in_flight` bytes are still on their way.
    fn acks_end(&mut self, now: Instant, in_flight: u64) {
        let Round { began, newest, .. } = self.round;
        if newest >= Some(began) && now.saturating_duration_since(began) >= ROUND_MIN && self.round.acked > 0 {
            let round = std::mem::replace(&mut self.round, Round::new(now));
            self.on_round(now, round);
        } else {
            self.peek(now);
        }
        self.idle = in_flight == 0;
        self.sender.iter().for_each(|sender| sender.has_in_flight(in_flight));
    }

    /// Packets of `bytes` together were lost; 0 where a router marked one instead.
    fn lost(&mut self, now: Instant, bytes: u64, persistent: bool) {
        self.round.lost += bytes;
        self.round.marked |= bytes == 0;
        self.sender.iter().for_each(|sender| sender.lost(bytes));
        if persistent {
            // Nothing got through for several round trips: whatever was known of the path is not true any more.
            self.sender.iter().for_each(|sender| sender.forget(now));
            let new = Patient::new(now, self.mtu as u16, self.queue_min, self.sender.clone());
            let humble = self.humble.clone();
            *self = Patient { window: self.mtu * PACKETS_MIN, idle: false, humble, ..new };
        }
    }

    fn on_round(&mut self, now: Instant, round: Round) {
        let Some(fastest) = round.fastest else { return };
        self.base.note(now, fastest);
        let base = self.base.get().unwrap_or(fastest);
        let queue = fastest.saturating_sub(base).as_secs_f64();
        self.trip = fastest.min(base + BACK_MAX);
        if let Some(sender) = &self.sender {
            sender.takes(fastest);
            let turns = sender.turns_of_others();
            self.calm = if turns == self.turns { self.calm.saturating_add(1) } else { 0 };
            self.turns = turns;
        }
        let rate = round.acked as f64 / now.saturating_duration_since(round.began).as_secs_f64().max(1e-6);
        let lost = round.lost as f64 / (round.lost + round.acked) as f64;
        self.loss += (lost - self.loss) / 8.0;
        let wanted = self.wanted_queue(rate);
        match self.phase {
            Phase::Startup { .. } => self.start_up(now, &round, rate, base, fastest.saturating_sub(base)),
            Phase::Cruise => self.cruise(now, &round, rate, base, queue, wanted),
            Phase::Drain { rounds, then } => self.drain(rounds, then, queue, wanted),
        }
        self.bound();
    }

    /// The window, and what others leave of the uplink while it is not known yet whether that is for long.
    fn whole(&self) -> u64 {
        let Some(sender) = self.sender.as_ref().filter(|_| self.phase == Phase::Cruise) else { return self.window };
        let calm = self.calm >= CALM_ROUNDS && self.turns == sender.turns_of_others();
        if calm { self.window } else { self.window.max(sender.may(self.trip)).min(WINDOW_MAX) }
    }

    /// A window below a packet would never open again: nothing would be sent that could be acknowledged.
    fn bound(&mut self) {
        self.window = self.window.clamp(self.mtu * PACKETS_MIN, WINDOW_MAX);
    }

    /// Seconds of queue that our share of it makes where nobody else is, at a rate in bytes a second.
    fn wanted_queue(&self, rate: f64) -> f64 {
        (SHARE / rate.max(1.0).sqrt()).max(self.queue_min.as_secs_f64())
    }

    /// The queue that ends the doubling.
    fn startup_queue(&self, base: Duration) -> Duration {
        (base / 8).clamp(STARTUP_QUEUE.0, STARTUP_QUEUE.1).max(self.queue_min)
    }

    fn start_up(&mut self, now: Instant, round: &Round, rate: f64, base: Duration, queue: Duration) {
        let Phase::Startup { best, flat } = self.phase else { return };
        let losing = round.lost > 8 * self.mtu && round.lost as f64 > LOSS_OVERFLOW * round.acked as f64;
        if round.app_limited && !losing {
            return;
        }
        let flat = if rate > best * 1.25 { 0 } else { flat + 1 };
        let best = best.max(rate);
        self.phase = Phase::Startup { best, flat };
        if losing || flat >= 3 || queue > self.startup_queue(base) {
            self.end_startup(now, best, base);
        }
    }

    /// The first packets of a round tell as much of the queue as all of it, and each more makes what is too much longer.
    fn peek(&mut self, now: Instant) {
        let Phase::Startup { best, .. } = self.phase else { return };
        if self.round.app_limited {
            return;
        }
        let (Some(fastest), Some(base)) = (self.round.fastest, self.base.get()) else { return };
        let took = now.saturating_duration_since(self.round.began);
        if self.round.packets >= STARTUP_PACKETS
            && took >= ROUND_MIN
            && fastest.saturating_sub(base) > self.startup_queue(base)
        {
            let rate = self.round.acked as f64 / took.as_secs_f64();
            self.round = Round::new(now);
            self.end_startup(now, best.max(rate), base);
        }
    }

    fn end_startup(&mut self, now: Instant, rate: f64, base: Duration) {
        self.phase = Phase::Cruise;
        self.drained = now;
        self.window = self.window.min((rate * (base.as_secs_f64() + self.wanted_queue(rate))) as u64);
        self.bound();
    }

    fn cruise(&mut self, now: Instant, round: &Round, rate: f64, base: Duration, queue: f64, wanted: f64) {
        let lost = round.lost as f64 / (round.lost + round.acked) as f64;
        let overflowing = self.judge(round, queue, wanted);
        if round.lost > 0 && (overflowing || lost > LOSS_OVERFLOW) {
            self.trial.overflowed(rate);
        }
        if overflowing || lost > LOSS_OVERFLOW {
            self.sender.iter().for_each(|sender| sender.overflowed(now));
        }
        // Bursts that overflow the queue are too large, though there is nothing to send between them.
        if !round.app_limited
            && !overflowing
            && let Some(window) = self.trial.on_round(self.window, rate, queue > TRIAL_QUEUE * wanted)
        {
            self.window = window;
        } else if !round.app_limited || overflowing {
            let share = rate * wanted * self.boldness * f64::from(1u32 << self.room.saturating_sub(2).min(6));
            let mut aim = rate * base.as_secs_f64() + share;
            if !overflowing && rate < KEPT * self.trial.best() {
                // The link carried more a moment ago: a smaller window made it slower, and the queue no shorter.
                let back = queue.min(BACK_MAX.as_secs_f64());
                aim = aim.max(self.trial.best() * (base.as_secs_f64() + back));
            }
            let most = self.window as f64 * if round.app_limited { 1.0 } else { 2.0 };
            // Half way, so that the round trip that the answer takes makes nothing swing.
            self.window = ((self.window as f64 + aim.min(most)) / 2.0) as u64;
        }
        let rests = now.saturating_duration_since(self.drained);
        // A round trip as short as the base was seen lately: nothing hides behind our own queue.
        let seen = queue < wanted / 4.0;
        if seen && self.boldness <= 1.0 {
            self.drained = now;
        } else if rests >= if self.boldness > 1.0 { RIVAL_SPAN } else { BASE_SPAN / 2 } {
            self.drained = now;
            self.phase = Phase::Drain { rounds: 0, then: self.window };
            self.window /= 2;
        }
    }

    /// Decides how bold to be, from what the last round showed. True when there is too much on the way.
    fn judge(&mut self, round: &Round, queue: f64, wanted: f64) -> bool {
        let losing = round.lost > 0 && (self.loss > LOSS_OVERFLOW || self.boldness > 1.0) && queue > wanted / 2.0;
        if losing || round.marked || (round.lost > 0 && self.loss > LOSS_POLICED) {
            self.boldness = (self.boldness * 0.7).max(BOLDNESS_MIN);
            (self.rivalled, self.room) = (0, 0);
            return true;
        }
        let rival = (RIVAL_QUEUE * wanted).min(RIVAL_QUEUE_MAX.as_secs_f64());
        self.rivalled = if queue > rival { self.rivalled + 1 } else { 0 };
        self.room =
            if queue < wanted / 2.0 && !round.app_limited && self.loss < LOSS_OVERFLOW { self.room + 1 } else { 0 };
        if self.rivalled >= RIVAL_ROUNDS {
            self.boldness = (self.boldness * 1.1).min(BOLDNESS_MAX);
        } else if self.boldness < 1.0 {
            self.boldness = (self.boldness * 1.1).min(1.0);
        }
        false
    }

    fn drain(&mut self, rounds: u32, then: u64, queue: f64, wanted: f64) {
        if rounds < DRAIN_ROUNDS {
            self.phase = Phase::Drain { rounds: rounds + 1, then };
            return;
        }
        // The queue went with ours: there is no rival.
        if queue < wanted {
            self.boldness = self.boldness.min(1.0);
            self.rivalled = 0;
        }
        (self.phase, self.window) = (Phase::Cruise, then);
    }
}

/// What makes the connection's sender give way: set, it has a part of its window; nothing, if another controller runs.
pub fn humility(connection: &quinn::Connection) -> Option<Arc<AtomicBool>> {
    let controller = connection.congestion_state().into_any();
    controller.downcast::<Patient>().ok().map(|patient| patient.humble)
}

/// Makes a controller for each path of a connection.
#[derive(Debug)]
pub struct PatientConfig {
    queue_min: Duration,
    outlet: Option<Arc<Outlet>>,
}

impl PatientConfig {
    /// `near`: both ends of its connections are on one machine, or in one network, and have no uplink.
    pub fn new(now: Instant, near: bool) -> PatientConfig {
        match near {
            true => PatientConfig { queue_min: QUEUE_MIN_NEAR, outlet: None },
            false => PatientConfig { queue_min: QUEUE_MIN, outlet: Some(Arc::new(Outlet::new(now))) },
        }
    }
}

impl ControllerFactory for PatientConfig {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let sender = self.outlet.clone().map(|outlet| Arc::new(Sender::new(now, outlet)));
        Box::new(Patient::new(now, mtu, self.queue_min, sender))
    }
}

impl Controller for Patient {
    fn on_sent(&mut self, now: Instant, bytes: u64, _last: u64) {
        if bytes > ACKNOWLEDGES {
            self.sent(now, bytes);
        }
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, _rtt: &RttEstimator) {
        self.acked(now, sent, bytes, app_limited);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, _app_limited: bool, _largest: Option<u64>) {
        self.acks_end(now, in_flight);
    }

    fn on_congestion_event(&mut self, now: Instant, _sent: Instant, persistent: bool, lost_bytes: u64) {
        self.lost(now, lost_bytes, persistent);
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.set_mtu(mtu);
    }

    fn window(&self) -> u64 {
        if self.humble.load(Relaxed) { (self.window / HUMBLE).max(self.mtu * PACKETS_MIN) } else { self.whole() }
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        INITIAL_WINDOW
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const PACKET: u64 = 1452;
    /// Bytes of the link that an acknowledgement takes.
    const ACK: f64 = 40.0;

    fn patient(now: Instant) -> Patient {
        beside(now, &Arc::new(Outlet::new(now)))
    }

    /// One of the connections of an uplink.
    fn beside(now: Instant, outlet: &Arc<Outlet>) -> Patient {
        Patient::new(now, PACKET as u16, QUEUE_MIN, Some(Arc::new(Sender::new(now, outlet.clone()))))
    }

    /// What a flow's controller is asked, so that the model of CUBIC stands beside ours.
    trait Controls {
        fn sent(&mut self, now: Instant);
        fn ack(&mut self, now: Instant, sent: Instant, in_flight: u64, app_limited: bool);
        fn loss(&mut self, now: Instant, sent: Instant, bytes: u64);
        fn window(&self) -> u64;
    }

    impl Controls for Patient {
        fn sent(&mut self, now: Instant) {
            self.sent(now, PACKET);
        }
        fn ack(&mut self, now: Instant, sent: Instant, in_flight: u64, app_limited: bool) {
            self.acked(now, sent, PACKET, app_limited);
            self.acks_end(now, in_flight);
        }
        fn loss(&mut self, now: Instant, _: Instant, bytes: u64) {
            self.lost(now, bytes, false);
        }
        fn window(&self) -> u64 {
            self.whole()
        }
    }

    /// RFC 9438 without its friendly region: what most of the world's traffic does.
    struct Cubic {
        window: f64,
        threshold: f64,
        w_max: f64,
        epoch: Option<Instant>,
        recovery: Instant,
    }

    impl Cubic {
        fn new(now: Instant) -> Cubic {
            Cubic { window: 14_520.0, threshold: f64::MAX, w_max: 0.0, epoch: None, recovery: now }
        }
    }

    impl Controls for Cubic {
        fn sent(&mut self, _: Instant) {}
        fn ack(&mut self, now: Instant, _: Instant, _: u64, _: bool) {
            let packet = PACKET as f64;
            if self.window < self.threshold {
                self.window += packet;
                return;
            }
            let epoch = *self.epoch.get_or_insert(now);
            let k = (self.w_max * 0.3 / 0.4 / packet).cbrt();
            let t = (now - epoch).as_secs_f64() - k;
            let target = (0.4 * t * t * t) * packet + self.w_max;
            if target > self.window {
                self.window += (target - self.window) / self.window * packet;
            }
        }
        fn loss(&mut self, now: Instant, sent: Instant, _: u64) {
            if sent < self.recovery {
                return;
            }
            (self.w_max, self.epoch, self.recovery) = (self.window, None, now);
            self.window = (self.window * 0.7).max(2.0 * PACKET as f64);
            self.threshold = self.window;
        }
        fn window(&self) -> u64 {
            self.window as u64
        }
    }

    /// One narrow link: so many bytes a second, a queue of so many bytes, and so much of it lost without reason.
    #[derive(Clone, Copy)]
    struct Narrow {
        rate: f64,
        round_trip: Duration,
        queue: f64,
        loss: f64,
    }

    /// 100 Mbit/s and 50 ms, with a queue of what is on its way.
    const CLEAN: Narrow = Narrow { rate: 12.5e6, round_trip: Duration::from_millis(50), queue: 625e3, loss: 0.0 };

    struct Flow {
        controls: Box<dyn Controls>,
        starts: Duration,
        in_flight: u64,
        /// Packets on their way, by number: when sent.
        flying: BTreeMap<u64, Instant>,
        next: u64,
        /// When the pacer lets the next packet go.
        may: Instant,
        smoothed: f64,
        delivered: Vec<(Duration, f64)>,
        dropped: u64,
        /// It will be asked again by the pacer.
        asked: bool,
        /// It goes against the others, over a link of its own, and over theirs come its acknowledgements.
        back: bool,
        /// Packets that are still to be sent, and how many come, how long after the last of them arrived.
        left: u64,
        next_body: Option<(u64, Duration)>,
        /// What comes after a body comes over any flow of this direction.
        wanders: bool,
    }

    impl Flow {
        fn new(controls: impl Controls + 'static, starts: u64, now: Instant) -> Flow {
            Flow {
                controls: Box::new(controls),
                starts: Duration::from_secs(starts),
                in_flight: 0,
                flying: BTreeMap::new(),
                next: 0,
                may: now,
                smoothed: 0.05,
                delivered: Vec::new(),
                dropped: 0,
                asked: false,
                back: false,
                left: u64::MAX,
                next_body: None,
                wanders: false,
            }
        }

        /// It sends bodies of so many packets, each so long after the one before it arrived.
        fn with_bodies(self, packets: u64, pause: Duration) -> Flow {
            Flow { left: packets, next_body: Some((packets, pause)), ..self }
        }

        /// It begins with so many bodies; the next after each comes over any flow of its direction.
        fn with_wandering(self, bodies: u64, packets: u64, pause: Duration) -> Flow {
            Flow { left: packets * bodies, next_body: Some((packets, pause)), wanders: true, ..self }
        }

        /// Mbit/s between two seconds.
        fn mbit(&self, from: u64, to: u64) -> f64 {
            let span = Duration::from_secs(from)..Duration::from_secs(to);
            let bytes = self.delivered.iter().filter(|(at, _)| span.contains(at)).count() as f64 * PACKET as f64;
            bytes * 8e-6 / (to - from) as f64
        }

        /// Mean round trip in ms between two seconds.
        fn trip(&self, from: u64, to: u64) -> f64 {
            let span = Duration::from_secs(from)..Duration::from_secs(to);
            let all: Vec<f64> = self.delivered.iter().filter(|(at, _)| span.contains(at)).map(|(_, t)| *t).collect();
            all.iter().sum::<f64>() / all.len() as f64 * 1e3
        }

        fn drops_percent(&self) -> f64 {
            100.0 * self.dropped as f64 / self.next as f64
        }
    }

    #[derive(Clone, Copy)]
    enum Event {
        /// The flow may try to send.
        Send(usize),
        /// It has something to send again.
        Body(usize),
        /// Nothing was sent since this packet, the last there was to send.
        Probe(usize, u64),
        /// A packet arrives.
        Arrival(usize, u64),
        /// The acknowledgement of a packet arrives.
        Ack(usize, u64),
    }

    /// The next of 53 random bits: xorshift (Marsaglia 2003).
    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state >> 11
    }

    /// Runs flows that always have something to send over one link.
    fn run(link: Narrow, seconds: u64, make: impl FnOnce(Instant) -> Vec<Flow>) -> Vec<Flow> {
        let zero = Instant::now();
        let mut flows = make(zero);
        let end = zero + Duration::from_secs(seconds);
        let mut events: BTreeMap<(Instant, u64), Event> = BTreeMap::new();
        let mut serial = 0;
        let mut noise = 1u64;
        let mut free_at = [zero; 2];
        for (i, flow) in flows.iter().enumerate() {
            events.insert((zero + flow.starts, i as u64), Event::Send(i));
            serial = i as u64 + 1;
        }
        while let Some(((now, _), event)) = events.pop_first() {
            if now >= end {
                break;
            }
            let mut probes = false;
            let who = match event {
                Event::Send(i) => {
                    flows[i].asked = false;
                    i
                }
                Event::Body(i) => {
                    let flow = &mut flows[i];
                    flow.left += flow.next_body.map_or(0, |(packets, _)| packets);
                    i
                }
                Event::Arrival(i, number) => {
                    let free = &mut free_at[usize::from(!flows[i].back)];
                    *free = (*free).max(now) + Duration::from_secs_f64(ACK / link.rate);
                    events.insert((*free + link.round_trip / 2, serial), Event::Ack(i, number));
                    serial += 1;
                    i
                }
                Event::Ack(i, number) => {
                    let flow = &mut flows[i];
                    if let Some(sent) = flow.flying.remove(&number) {
                        flow.in_flight -= PACKET;
                        flow.smoothed += ((now - sent).as_secs_f64() - flow.smoothed) / 8.0;
                        flow.delivered.push((now - zero, (now - sent).as_secs_f64()));
                        let app_limited = flow.left == 0;
                        flow.controls.ack(now, sent, flow.in_flight, app_limited);
                        // What was sent three packets before one that arrived is lost: the path keeps its order.
                        let lost: Vec<u64> = flow.flying.range(..number.saturating_sub(2)).map(|(n, _)| *n).collect();
                        for n in lost {
                            let sent = flow.flying.remove(&n).expect("it is flying");
                            flow.in_flight -= PACKET;
                            flow.dropped += 1;
                            flow.left = flow.left.saturating_add(1);
                            flow.controls.loss(now, sent, PACKET);
                        }
                        let idle = flow.left == 0 && flow.flying.is_empty();
                        let done = |packets| {
                            if flow.wanders { (flow.delivered.len() as u64).is_multiple_of(packets) } else { idle }
                        };
                        if let Some((_, pause)) = flow.next_body.filter(|(packets, _)| done(*packets)) {
                            let (wanders, back) = (flow.wanders, flow.back);
                            let side: Vec<usize> = (0..flows.len()).filter(|n| flows[*n].back == back).collect();
                            let next = if wanders { side[random(&mut noise) as usize % side.len()] } else { i };
                            events.insert((now + pause, serial), Event::Body(next));
                            serial += 1;
                        }
                    }
                    i
                }
                Event::Probe(i, last) => {
                    let flow = &mut flows[i];
                    if flow.next == last + 1 && !flow.flying.is_empty() {
                        (flow.left, probes) = (flow.left.max(1), true);
                    }
                    i
                }
            };
            let flow = &mut flows[who];
            while std::mem::take(&mut probes)
                || (flow.left > 0 && flow.in_flight + PACKET < flow.controls.window() && flow.may <= now)
            {
                let (number, window) = (flow.next, flow.controls.window());
                flow.next += 1;
                flow.left -= 1;
                if flow.next_body.is_some() {
                    // As QUIC's probe: an acknowledgement of it tells what of the end was lost.
                    let late = Duration::from_secs_f64(2.0 * flow.smoothed + 0.03);
                    events.insert((now + late, serial), Event::Probe(who, number));
                    serial += 1;
                }
                flow.in_flight += PACKET;
                flow.flying.insert(number, now);
                flow.controls.sent(now);
                // As quinn's pacer: a quarter faster than a window a round trip.
                let gap = Duration::from_secs_f64(flow.smoothed * PACKET as f64 / window as f64 / 1.25);
                flow.may = flow.may.max(now - Duration::from_millis(2)) + gap;
                let random = random(&mut noise);
                let free = &mut free_at[usize::from(flow.back)];
                *free = (*free).max(now);
                let backlog = (*free - now).as_secs_f64() * link.rate;
                if backlog + PACKET as f64 > link.queue {
                    continue;
                }
                *free += Duration::from_secs_f64(PACKET as f64 / link.rate);
                if (random as f64 / (1u64 << 53) as f64) < link.loss {
                    continue;
                }
                events.insert((*free + link.round_trip / 2, serial), Event::Arrival(who, number));
                serial += 1;
            }
            // Woken by the pacer, by an acknowledgement, or when all that is on its way is lost.
            let wake =
                if !flow.asked && flow.left > 0 && flow.may > now && flow.in_flight + PACKET < flow.controls.window() {
                    Some(flow.may)
                } else {
                    None
                };
            if let Some(at) = wake {
                flow.asked = true;
                events.insert((at, serial), Event::Send(who));
                serial += 1;
            }
        }
        flows
    }

    fn alone(link: Narrow, seconds: u64) -> Flow {
        run(link, seconds, |now| vec![Flow::new(patient(now), 0, now)]).remove(0)
    }

    fn both(link: Narrow, seconds: u64, starts: u64, second: impl FnOnce(Instant) -> Flow) -> [Flow; 2] {
        let flows = run(link, seconds, |now| {
            let mut second = second(now);
            second.starts = Duration::from_secs(starts);
            vec![Flow::new(patient(now), 0, now), second]
        });
        flows.try_into().unwrap_or_else(|_| panic!("two flows"))
    }

    #[test]
    fn a_clean_link_is_filled_without_a_standing_queue_and_almost_without_drops() {
        let flow = alone(CLEAN, 10);
        assert!(flow.mbit(1, 10) > 95.0, "{}", flow.mbit(1, 10));
        assert!(flow.trip(2, 10) < 58.0, "{}", flow.trip(2, 10));
        assert!(flow.drops_percent() < 1.0, "{}", flow.drops_percent());
    }

    #[test]
    fn random_loss_costs_little_more_than_what_is_lost() {
        for (loss, least) in [(0.005, 93.0), (0.02, 90.0), (0.05, 75.0)] {
            let flow = alone(Narrow { loss, ..CLEAN }, 12);
            assert!(flow.mbit(2, 12) > least, "{loss}: {}", flow.mbit(2, 12));
            assert!(flow.drops_percent() < 100.0 * loss + 1.0, "{loss}: {}", flow.drops_percent());
        }
    }

    #[test]
    fn a_short_queue_is_not_kept_overflowing() {
        let flow = alone(Narrow { queue: 62e3, ..CLEAN }, 12);
        assert!(flow.mbit(2, 12) > 93.0, "{}", flow.mbit(2, 12));
        assert!(flow.drops_percent() < 3.0, "{}", flow.drops_percent());
    }

    #[test]
    fn slow_fast_near_and_far_links_are_filled() {
        let near = Duration::from_millis(1);
        let far = Duration::from_millis(200);
        for (link, mbit) in [
            (Narrow { rate: 1.25e6, queue: 62e3, ..CLEAN }, 10.0),
            (Narrow { rate: 50e6, queue: 200e3, round_trip: near, ..CLEAN }, 400.0),
            (Narrow { round_trip: far, queue: 2.5e6, ..CLEAN }, 100.0),
        ] {
            let flow = alone(link, 8);
            let got = flow.mbit(4, 8);
            assert!(got > 0.9 * mbit, "{got} of {mbit}");
        }
    }

    #[test]
    fn flows_that_pause_between_bodies_fill_a_narrow_link_and_seldom_overflow_it() {
        // An uplink of 4 Mbit/s with the queue of a home router, and the bodies of four micro-batches.
        let link = Narrow { rate: 500e3, round_trip: Duration::from_millis(24), queue: 64e3, loss: 0.0 };
        let flows = run(link, 30, |now| {
            let outlet = Arc::new(Outlet::new(now));
            let body = |_| Flow::new(beside(now, &outlet), 0, now).with_bodies(88, Duration::from_millis(150));
            (0..4).map(body).collect()
        });
        let total: f64 = flows.iter().map(|flow| flow.mbit(5, 30)).sum();
        let drops: Vec<f64> = flows.iter().map(Flow::drops_percent).collect();
        assert!(total > 3.6 && drops.iter().all(|drops| *drops < 8.0), "{total} Mbit/s of 4, {drops:?} % dropped");
    }

    #[test]
    fn a_link_that_becomes_slower_is_not_filled_with_a_queue() {
        // A second flow takes half of it, which to the first is a link of half the rate. No loss tells it. What each still takes
        // for a queue on the way back stays with them, and does not grow.
        let link = Narrow { rate: 1.25e6, round_trip: Duration::from_millis(24), queue: 4e6, loss: 0.0 };
        let [first, second] = both(link, 30, 10, |now| Flow::new(patient(now), 0, now));
        let (before, after) = (first.trip(5, 10), first.trip(14, 30).max(second.trip(14, 30)));
        assert!(before < 60.0 && after < 350.0, "{before} ms, then {after} ms");
    }

    /// Two neighbours with an uplink of 4 Mbit/s each, who send to each other: what one sends waits behind what acknowledges.
    #[test]
    fn flows_fill_narrow_links_in_both_directions() {
        let link = Narrow { rate: 500e3, round_trip: Duration::from_millis(24), queue: 64e3, loss: 0.0 };
        let mut failed = Vec::new();
        for (there, back, bodies) in
            [(1, 1, false), (4, 4, false), (1, 4, false), (2, 2, true), (4, 4, true), (1, 4, true)]
        {
            let flows = run(link, 30, |now| {
                let outlets = [(); 2].map(|()| Arc::new(Outlet::new(now)));
                let flow = |i: usize| {
                    let back = i >= there;
                    let patient = beside(now, &outlets[usize::from(back)]);
                    let flow = Flow { back, ..Flow::new(patient, (i % 2) as u64, now) };
                    if bodies { flow.with_bodies(88, Duration::from_millis(10 + 10 * i as u64)) } else { flow }
                };
                (0..there + back).map(flow).collect()
            });
            let total = |back| -> f64 { flows.iter().filter(|f| f.back == back).map(|f| f.mbit(5, 30)).sum() };
            let drops = flows.iter().map(Flow::drops_percent).fold(0.0, f64::max);
            // One that pauses has nothing to send for a part of the time.
            let least = if bodies && there == 1 { 1.8 } else { 3.1 };
            if total(false) < least || total(true) < 3.1 || drops > 12.0 {
                failed.push((there, back, bodies, total(false), total(true), drops));
            }
        }
        assert!(failed.is_empty(), "{failed:?}");
    }

    /// Two neighbours, whose bodies take now this connection, now that.
    #[test]
    fn connections_that_take_turns_fill_the_uplink_that_they_share() {
        let link = Narrow { rate: 500e3, round_trip: Duration::from_millis(50), queue: 64e3, loss: 0.0 };
        for (each, bodies, least) in [(4, 5, 7.0), (8, 5, 7.1), (2, 3, 6.7), (4, 2, 6.6)] {
            let flows = run(link, 60, |now| {
                let outlets = [(); 2].map(|()| Arc::new(Outlet::new(now)));
                let flow = |i: usize| {
                    let mine = (bodies + each - 1 - i % each) / each;
                    let flow = Flow { back: i >= each, ..Flow::new(beside(now, &outlets[i / each]), 0, now) };
                    flow.with_wandering(mine as u64, 60, Duration::from_millis(30))
                };
                (0..2 * each).map(flow).collect()
            });
            let both: f64 = flows.iter().map(|flow| flow.mbit(5, 60)).sum();
            assert!(both > least, "{both} Mbit/s of 7.8 with {bodies} bodies on {each} connections each way");
        }
    }

    #[test]
    fn two_flows_share_a_link_evenly_and_the_later_one_soon() {
        let [first, second] = both(CLEAN, 20, 2, |now| Flow::new(patient(now), 0, now));
        let (a, b) = (first.mbit(8, 20), second.mbit(8, 20));
        assert!(a < 2.0 * b && b < 2.0 * a && a + b > 93.0, "{a} {b}");
    }

    #[test]
    fn beside_cubic_neither_starves() {
        let [ours, cubic] = both(CLEAN, 40, 5, |now| Flow::new(Cubic::new(now), 0, now));
        let (a, b) = (ours.mbit(10, 40), cubic.mbit(10, 40));
        assert!(a > 15.0 && b > 30.0 && a + b > 90.0, "{a} {b}");
    }

    #[test]
    fn who_gives_way_has_a_part_of_the_window_and_gets_it_back() {
        let mut patient = patient(Instant::now());
        patient.window = 80 * PACKET;
        patient.humble.store(true, Relaxed);
        assert_eq!(Controller::window(&patient), 20 * PACKET);
        patient.window = 8 * PACKET;
        assert_eq!(Controller::window(&patient), PACKETS_MIN * PACKET, "it goes on in any case");
        patient.humble.store(false, Relaxed);
        assert_eq!(Controller::window(&patient), 8 * PACKET);
    }

    #[test]
    fn what_a_copy_of_the_controller_is_told_the_controller_hears() {
        let now = Instant::now();
        let controller = Arc::new(PatientConfig::new(now, false)).build(now, PACKET as u16);
        let copy = controller.clone_box().into_any().downcast::<Patient>().expect("it is ours");
        copy.humble.store(true, Relaxed);
        assert_eq!(controller.window(), INITIAL_WINDOW / HUMBLE);
    }

    #[test]
    fn a_sender_with_little_to_say_gets_no_larger_window_and_keeps_the_one_it_has() {
        let zero = Instant::now();
        let mut patient = patient(zero);
        for n in 0..1000u64 {
            let sent = zero + Duration::from_millis(60 * n);
            patient.sent(sent, PACKET);
            patient.acked(sent + Duration::from_millis(50), sent, PACKET, true);
            patient.acks_end(sent + Duration::from_millis(50), 0);
        }
        assert_eq!(patient.window, INITIAL_WINDOW);
    }

    #[test]
    fn acknowledgements_that_are_sent_during_a_rest_belong_to_no_round() {
        let (zero, trip) = (Instant::now(), Duration::from_millis(50));
        let window = |acknowledges: bool| {
            let mut patient = patient(zero);
            let mut flight = |at: Instant| {
                for n in 0..20 {
                    Controller::on_sent(&mut patient, at, PACKET, n);
                }
                (0..20).for_each(|_| patient.acked(at + trip, at, PACKET, false));
                patient.acks_end(at + trip, 0);
                if acknowledges {
                    (1..20).for_each(|n| Controller::on_sent(&mut patient, at + trip * n, 45, u64::from(n)));
                }
                patient.window
            };
            (0..30).map(|n| flight(zero + Duration::from_secs(n))).last()
        };
        assert_eq!(window(true), window(false));
    }

    #[test]
    fn a_window_holds_some_packets_however_slow_and_late_they_are() {
        let (zero, soon) = (Instant::now(), Duration::from_micros(30));
        let mut patient = Patient::new(zero, 6500, QUEUE_MIN_NEAR, None);
        patient.sent(zero, 60);
        let second = zero + ROUND_MIN;
        patient.acked(second + soon, second, 60, false);
        patient.acks_end(second + soon, 60);
        // Sent before the round ended, and small; the receiver gets no turn for long.
        for n in 0..30 {
            let late = second + Duration::from_millis(20 + n);
            patient.acked(late, second, 60, false);
            patient.acks_end(late, 60);
        }
        assert_eq!((patient.phase, patient.window), (Phase::Cruise, PACKETS_MIN * 6500));
    }

    #[test]
    fn when_nothing_gets_through_it_starts_again_from_little() {
        let zero = Instant::now();
        let mut patient = patient(zero);
        patient.lost(zero, 100 * PACKET, true);
        assert_eq!(patient.window, PACKETS_MIN * PACKET);
        assert!(matches!(patient.phase, Phase::Startup { .. }));
    }
}
