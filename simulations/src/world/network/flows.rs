//! Bodies on their way, as flows that share links: who sends how fast, and when the last byte of a body has left.
//!
//! In: bodies with a size and a lane, processes that stop. Out: bodies that have left whole. It knows nothing of delays: the
//! bytes of a flow take the sender's uplink and the receiver's downlink at the same moment, and the one-way delay comes after,
//! which ends a lone flow at the same time as a flow that begins after its delay.
//!
//! A flow is one direction of one connection, since that is what has a congestion controller of its own in the product. Inside it
//! bodies go one after the other, the most urgent lane first, as the priorities of its streams have it. Between flows rates are
//! max-min fair (Bertsekas and Gallager, Data Networks, 6.5.2: progressive filling), weighted by the lane of the body that goes.
//! All amounts are integers, so that rates and times are equal on every platform.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use skein_protocol::Lane;

use crate::engine::{SECOND, Time};

/// Peers above which only the two ends of a flow are looked at.
const EXACT_MAX: usize = 1000;
/// Shares are bytes a second and weight, shifted by this.
const SCALE: u32 = 20;
/// Out-of-date alarms that are kept, beside one for every flow that runs.
const SPARE: usize = 1024;

/// How links are shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// Exact up to 1,000 peers.
    #[default]
    Auto,
    /// Weighted max-min, exactly: what one flow cannot use, others get.
    Exact,
    /// The smaller of the shares at both ends: what a flow that is bound elsewhere leaves is lost. Costs the flows at two links.
    Local,
}

impl Sharing {
    /// What is done for so many peers.
    pub fn for_peers(self, peers: usize) -> Sharing {
        match self {
            Sharing::Auto if peers <= EXACT_MAX => Sharing::Exact,
            Sharing::Auto => Sharing::Local,
            chosen => chosen,
        }
    }
}

/// Weights of lanes between flows, in the order of [`Lane::ALL`].
pub type Weights = [u32; Lane::ALL.len()];

/// The product's, between connections; inside a connection its lanes are priorities. Bulk gives way by a quarter of its window
/// while the same peer sends what somebody waits for, but it always has something to send, where bodies come one after the
/// other: the state of a stage that went over an uplink of 4 Mbit/s beside training took nearly half of it.
pub const EQUAL: Weights = [1; Lane::ALL.len()];

/// A body that has left its sender.
#[derive(Debug, PartialEq)]
pub struct Left<B> {
    pub from: usize,
    pub to: usize,
    pub lane: Lane,
    pub body: B,
}

/// What waits in a flow, or goes: `left` is in billionths of a byte, so that a byte a second is one a nanosecond.
#[derive(Debug)]
struct Going<B> {
    left: u128,
    body: B,
}

#[derive(Debug)]
struct Flow<B> {
    /// Its links: the uplink of the sender and the downlink of the receiver, and where it stands in their lists.
    ports: [usize; 2],
    places: [usize; 2],
    /// The most it ever gets, bytes a second.
    bound: u64,
    /// By urgency: the first one goes.
    queue: BTreeMap<(Lane, u64), Going<B>>,
    /// Nothing goes before.
    opens: Time,
    runs: bool,
    weight: u32,
    rate: u64,
    /// What keeps it from going faster while it runs.
    bound_by: BoundBy,
    /// The first body's `left` is as of this time.
    since: Time,
    /// Only the alarm with this number counts.
    stamp: u64,
    seen: u64,
}

/// What keeps a flow from going faster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum BoundBy {
    /// Nothing does: it does not run, or its own controller is at its end.
    #[default]
    Neither,
    Uplink,
    Downlink,
}

/// What the links of one peer do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InUse {
    pub sends: bool,
    pub receives: bool,
    /// The link itself is what keeps at least one of its flows from going faster.
    pub up_full: bool,
    pub down_full: bool,
    /// Something that is received could come faster, were the uplink of its sender not full.
    pub sender_full: bool,
    /// Something that is sent could go faster, were the downlink of its receiver not full.
    pub receiver_full: bool,
}

/// An uplink or a downlink.
#[derive(Debug, Default)]
struct Port {
    capacity: u64,
    /// Flows that this port bounds, and those that the port at their other end does.
    bounds: u32,
    bound_beyond: u32,
    /// Flows that run.
    flows: Vec<u32>,
    weight: u64,
    /// What its flows could take if this port had no end: below its capacity it binds nobody.
    demand: u64,
    seen: u64,
    /// While rates are found: what is left, and the weight that wants it.
    rest: u64,
    open: u64,
}

impl Port {
    fn binds(&self) -> bool {
        self.demand > self.capacity
    }

    fn share(&self) -> u64 {
        let share = (u128::from(self.rest) << SCALE) / u128::from(self.open.max(1));
        u64::try_from(share).unwrap_or(u64::MAX)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Limit {
    Flow(u32),
    Port(usize),
}

pub struct Flows<B> {
    exact: bool,
    weights: Weights,
    ports: Vec<Port>,
    flows: Vec<Option<Flow<B>>>,
    free: Vec<u32>,
    /// By sender: its flows by receiver.
    of: Vec<BTreeMap<usize, u32>>,
    /// Peers whose process is suspended.
    held: Vec<bool>,
    alarms: BinaryHeap<Reverse<(Time, u32, u64)>>,
    running: usize,
    next: u64,
    epoch: u64,
    turned: Vec<usize>,
    // Kept between calls for their memory.
    limits: BinaryHeap<Reverse<(u64, Limit)>>,
    rated: Vec<u32>,
    reached: Vec<usize>,
}

impl<B> Flows<B> {
    /// `access`: bytes a second up and down, of each peer.
    pub fn new(sharing: Sharing, weights: Weights, access: &[(u64, u64)]) -> Self {
        let port = |capacity: u64| Port { capacity: capacity.max(1), ..Port::default() };
        Flows {
            exact: sharing.for_peers(access.len()) == Sharing::Exact,
            weights,
            ports: access.iter().flat_map(|(up, down)| [port(*up), port(*down)]).collect(),
            flows: Vec::new(),
            free: Vec::new(),
            of: access.iter().map(|_| BTreeMap::new()).collect(),
            held: vec![false; access.len()],
            alarms: BinaryHeap::new(),
            running: 0,
            next: 0,
            epoch: 0,
            turned: Vec::new(),
            limits: BinaryHeap::new(),
            rated: Vec::new(),
            reached: Vec::new(),
        }
    }

    // ---- for those who watch ---------------------------------------------------------------------------------------------

    pub fn is_exact(&self) -> bool {
        self.exact
    }

    /// Whether the uplink of `peer` is sending.
    pub fn sends(&self, peer: usize) -> bool {
        !self.ports[2 * peer].flows.is_empty()
    }

    pub fn receives(&self, peer: usize) -> bool {
        !self.ports[2 * peer + 1].flows.is_empty()
    }

    /// What the links of `peer` do now, and what bounds it.
    pub fn in_use(&self, peer: usize) -> InUse {
        let (up, down) = (&self.ports[2 * peer], &self.ports[2 * peer + 1]);
        InUse {
            sends: !up.flows.is_empty(),
            receives: !down.flows.is_empty(),
            up_full: up.bounds > 0,
            down_full: down.bounds > 0,
            sender_full: down.bound_beyond > 0,
            receiver_full: up.bound_beyond > 0,
        }
    }

    /// Bytes a second from one peer to another now.
    pub fn rate(&self, from: usize, to: usize) -> u64 {
        self.flow_of(from, to).filter(|flow| flow.runs).map_or(0, |flow| flow.rate)
    }

    /// Whether nothing went this way since its connection stands.
    pub fn is_cold(&self, from: usize, to: usize) -> bool {
        !self.of[from].contains_key(&to)
    }

    /// Bytes of a lane that wait for the links from one peer to another.
    pub fn waiting(&self, from: usize, to: usize, lane: Lane) -> u64 {
        let bodies = self.flow_of(from, to).map(|flow| flow.queue.range((lane, 0)..=(lane, u64::MAX)));
        let left: u128 = bodies.into_iter().flatten().map(|(_, going)| going.left).sum();
        (left / u128::from(SECOND)) as u64
    }

    /// Peers of whom something of [`Flows::in_use`] changed since this was last asked.
    pub fn take_turned(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.turned)
    }

    fn flow_of(&self, from: usize, to: usize) -> Option<&Flow<B>> {
        self.of[from].get(&to).and_then(|id| self.flows[*id as usize].as_ref())
    }

    fn flow(&mut self, id: u32) -> &mut Flow<B> {
        self.flows[id as usize]
            .as_mut()
            .expect("a flow is named by its pair or its ports, and leaves both when it ends")
    }

    // ---- bodies ----------------------------------------------------------------------------------------------------------

    /// Puts a body of `size` bytes on its way. Of a flow that is new: it gets no more than `cap`, and begins after `wait`.
    #[allow(clippy::too_many_arguments)]
    pub fn begin(&mut self, now: Time, from: usize, to: usize, lane: Lane, size: u64, body: B, cap: u64, wait: Time) {
        let id = match self.of[from].get(&to) {
            Some(id) => *id,
            None => self.open(from, to, cap, now + wait),
        };
        self.settle(id, now);
        self.next += 1;
        let key = (lane, self.next);
        let flow = self.flow(id);
        flow.queue.insert(key, Going { left: u128::from(size) * u128::from(SECOND), body });
        let goes = flow.queue.first_key_value().is_some_and(|(first, _)| *first == key);
        if flow.opens > now {
            let opens = flow.opens;
            return self.alarm(id, opens);
        }
        match (goes, flow.runs) {
            (true, true) => self.change_weight(now, id),
            (true, false) => self.run(now, id),
            (false, _) => {}
        }
    }

    fn open(&mut self, from: usize, to: usize, cap: u64, opens: Time) -> u32 {
        let ports = [2 * from, 2 * to + 1];
        let bound = cap.min(self.ports[ports[0]].capacity).min(self.ports[ports[1]].capacity).max(1);
        let flow = Flow {
            ports,
            places: [0; 2],
            bound,
            queue: BTreeMap::new(),
            opens,
            runs: false,
            weight: 0,
            rate: 0,
            bound_by: BoundBy::Neither,
            since: opens,
            stamp: 0,
            seen: 0,
        };
        let id = self.free.pop().unwrap_or_else(|| {
            self.flows.push(None);
            (self.flows.len() - 1) as u32
        });
        self.flows[id as usize] = Some(flow);
        self.of[from].insert(to, id);
        id
    }

    /// The connection from one peer to another is gone, and what was on its way with it.
    pub fn close(&mut self, now: Time, from: usize, to: usize) -> Vec<B> {
        let Some(id) = self.of[from].remove(&to) else { return Vec::new() };
        self.rest(now, id);
        self.free.push(id);
        let flow = self.flows[id as usize].take();
        flow.into_iter().flat_map(|flow| flow.queue.into_values()).map(|going| going.body).collect()
    }

    /// The process of a peer is gone: it sends nothing any more.
    pub fn stop(&mut self, now: Time, from: usize) -> Vec<B> {
        let others: Vec<usize> = self.of[from].keys().copied().collect();
        let bodies = others.into_iter().flat_map(|to| self.close(now, from, to)).collect();
        self.held[from] = false;
        bodies
    }

    /// The process of a peer is suspended: what it sends stays where it is.
    pub fn hold(&mut self, now: Time, from: usize, held: bool) {
        self.held[from] = held;
        let ids: Vec<u32> = self.of[from].values().copied().collect();
        for id in ids {
            if held { self.rest(now, id) } else { self.run(now, id) }
        }
    }

    // ---- time ------------------------------------------------------------------------------------------------------------

    /// When something happens next.
    pub fn next_at(&self) -> Option<Time> {
        self.alarms.peek().map(|Reverse((at, ..))| *at)
    }

    /// Does what is due, of which a body may have left.
    pub fn step(&mut self, now: Time) -> Option<Left<B>> {
        let Reverse((at, id, stamp)) = *self.alarms.peek()?;
        if at > now {
            return None;
        }
        self.alarms.pop();
        let is_news = self.flows[id as usize].as_ref().is_some_and(|flow| flow.stamp == stamp);
        let left = if is_news { self.ring(now, id) } else { None };
        self.forget_old_alarms();
        left
    }

    fn ring(&mut self, now: Time, id: u32) -> Option<Left<B>> {
        if !self.flow(id).runs {
            self.run(now, id);
            return None;
        }
        self.settle(id, now);
        let flow = self.flow(id);
        let ((lane, _), going) = flow.queue.pop_first()?;
        let (from, to) = (flow.ports[0] / 2, flow.ports[1] / 2);
        if flow.queue.is_empty() {
            self.rest(now, id);
        } else {
            self.change_weight(now, id);
        }
        Some(Left { from, to, lane, body: going.body })
    }

    /// Takes what has gone since off the first body.
    fn settle(&mut self, id: u32, now: Time) {
        let flow = self.flow(id);
        if flow.runs
            && let Some(mut first) = flow.queue.first_entry()
        {
            let gone = u128::from(flow.rate) * u128::from(now - flow.since);
            let going = first.get_mut();
            going.left = going.left.saturating_sub(gone);
        }
        flow.since = now;
    }

    /// Plans when the first body will have left at the present rate.
    fn schedule(&mut self, id: u32) {
        let flow = self.flow(id);
        let Some((_, first)) = flow.queue.first_key_value() else { return };
        let takes = first.left.div_ceil(u128::from(flow.rate.max(1)));
        let at = flow.since.saturating_add(Time::try_from(takes).unwrap_or(Time::MAX));
        self.alarm(id, at);
    }

    fn alarm(&mut self, id: u32, at: Time) {
        self.next += 1;
        let stamp = self.next;
        self.flow(id).stamp = stamp;
        self.alarms.push(Reverse((at, id, stamp)));
        if self.alarms.len() > SPARE + 4 * self.running {
            let flows = &self.flows;
            self.alarms.retain(|Reverse((_, id, stamp))| {
                flows[*id as usize].as_ref().is_some_and(|flow| flow.stamp == *stamp)
            });
        }
        self.forget_old_alarms();
    }

    /// The first alarm is one that counts.
    fn forget_old_alarms(&mut self) {
        while let Some(Reverse((_, id, stamp))) = self.alarms.peek() {
            if self.flows[*id as usize].as_ref().is_some_and(|flow| flow.stamp == *stamp) {
                return;
            }
            self.alarms.pop();
        }
    }

    // ---- sharing ---------------------------------------------------------------------------------------------------------

    /// A flow with something to send begins to take its share.
    fn run(&mut self, now: Time, id: u32) {
        let weights = self.weights;
        let flow = self.flow(id);
        let Some(((lane, _), _)) = flow.queue.first_key_value() else { return };
        let weight = weights[*lane as usize].max(1);
        let (ports, bound) = (flow.ports, flow.bound);
        if flow.runs || self.held[ports[0] / 2] {
            return;
        }
        if self.flow(id).opens > now {
            let opens = self.flow(id).opens;
            return self.alarm(id, opens);
        }
        let flow = self.flow(id);
        (flow.runs, flow.weight, flow.rate, flow.since) = (true, weight, 0, now);
        let bound_before = ports.map(|port| self.ports[port].binds());
        let mut places = [0; 2];
        for (place, at) in places.iter_mut().zip(ports) {
            let port = &mut self.ports[at];
            *place = port.flows.len();
            port.flows.push(id);
            port.weight += u64::from(weight);
            port.demand += bound;
            if port.flows.len() == 1 {
                self.turned.push(at / 2);
            }
        }
        self.flow(id).places = places;
        self.running += 1;
        self.share(now, ports, bound_before, Some(id));
    }

    /// A flow leaves its share to others.
    fn rest(&mut self, now: Time, id: u32) {
        self.settle(id, now);
        self.next += 1;
        let stamp = self.next;
        let flow = self.flow(id);
        if !flow.runs {
            return;
        }
        // Its alarm does not count any more.
        flow.stamp = stamp;
        flow.runs = false;
        let (ports, places, weight, bound) = (flow.ports, flow.places, flow.weight, flow.bound);
        let bound_before = ports.map(|port| self.ports[port].binds());
        for side in 0..2 {
            let port = &mut self.ports[ports[side]];
            port.flows.swap_remove(places[side]);
            port.weight -= u64::from(weight);
            port.demand -= bound;
            if port.flows.is_empty() {
                self.turned.push(ports[side] / 2);
            }
            if let Some(moved) = port.flows.get(places[side]).copied() {
                self.flow(moved).places[side] = places[side];
            }
        }
        self.running -= 1;
        self.set_bound(id, BoundBy::Neither);
        self.share(now, ports, bound_before, None);
        self.forget_old_alarms();
    }

    /// Another body goes first now: its lane may weigh more or less.
    fn change_weight(&mut self, now: Time, id: u32) {
        let weights = self.weights;
        let flow = self.flow(id);
        let Some(((lane, _), _)) = flow.queue.first_key_value() else { return };
        let weight = weights[*lane as usize].max(1);
        let before = std::mem::replace(&mut flow.weight, weight);
        if weight == before {
            return self.schedule(id);
        }
        let ports = flow.ports;
        for port in ports {
            let port = &mut self.ports[port];
            port.weight = port.weight + u64::from(weight) - u64::from(before);
        }
        self.share(now, ports, [true; 2], Some(id));
    }

    /// Finds the rates that a change at two ports changes. `new`: a flow that needs an alarm in any case.
    fn share(&mut self, now: Time, ports: [usize; 2], bound_before: [bool; 2], new: Option<u32>) {
        self.epoch += 1;
        self.rated.clear();
        self.reached.clear();
        for (port, bound_before) in ports.into_iter().zip(bound_before) {
            if !self.exact || bound_before || self.ports[port].binds() {
                self.reach(port);
            }
        }
        if let Some(new) = new
            && self.flow(new).seen != self.epoch
        {
            self.flow(new).seen = self.epoch;
            self.rated.push(new);
        }
        if self.exact {
            self.spread();
            self.fill(now, new);
        } else {
            let rated = std::mem::take(&mut self.rated);
            for id in &rated {
                let flow = self.flow(*id);
                let (ports, weight, bound) = (flow.ports, u64::from(flow.weight), flow.bound);
                let share = |port: &Port| {
                    (u128::from(port.capacity) * u128::from(weight) / u128::from(port.weight.max(1))) as u64
                };
                let [up, down] = ports.map(|port| share(&self.ports[port]));
                let by = match up.min(down) {
                    least if bound < least => self.narrower(*id),
                    _ if down < up => BoundBy::Downlink,
                    _ => BoundBy::Uplink,
                };
                self.set_bound(*id, by);
                self.set_rate(now, *id, up.min(down).min(bound), new);
            }
            self.rated = rated;
        }
    }

    /// Adds a port, and the flows that run over it, to those whose rates are found anew.
    fn reach(&mut self, at: usize) {
        let epoch = self.epoch;
        let port = &mut self.ports[at];
        if std::mem::replace(&mut port.seen, epoch) == epoch {
            return;
        }
        (port.rest, port.open) = (port.capacity, port.weight);
        self.reached.push(at);
        for id in &self.ports[at].flows {
            let flow = self.flows[*id as usize].as_mut().expect("a port lists flows that run");
            if std::mem::replace(&mut flow.seen, epoch) != epoch {
                self.rated.push(*id);
            }
        }
    }

    /// Follows flows over ports that bind: rates beyond a port that binds nobody do not depend on each other.
    fn spread(&mut self) {
        let mut at = 0;
        while let Some(id) = self.rated.get(at).copied() {
            at += 1;
            for port in self.flow(id).ports {
                if self.ports[port].binds() {
                    self.reach(port);
                }
            }
        }
    }

    /// Raises all rates together, and fixes those of the port or the flow that is at its end first.
    fn fill(&mut self, now: Time, new: Option<u32>) {
        let epoch = self.epoch;
        let mut limits = std::mem::take(&mut self.limits);
        let (rated, reached) = (std::mem::take(&mut self.rated), std::mem::take(&mut self.reached));
        limits.clear();
        limits.extend(reached.iter().map(|port| Reverse((self.ports[*port].share(), Limit::Port(*port)))));
        for id in &rated {
            let flow = self.flow(*id);
            limits.push(Reverse(((flow.bound << SCALE) / u64::from(flow.weight), Limit::Flow(*id))));
        }
        while let Some(Reverse((share, limit))) = limits.pop() {
            match limit {
                Limit::Flow(id) => {
                    let (bound, by) = (self.flow(id).bound, self.narrower(id));
                    self.fix(now, id, bound, by, new);
                }
                Limit::Port(port) if self.ports[port].open == 0 => {}
                Limit::Port(port) => {
                    let is = self.ports[port].share();
                    if is > share {
                        limits.push(Reverse((is, limit)));
                        continue;
                    }
                    let by = if port % 2 == 0 { BoundBy::Uplink } else { BoundBy::Downlink };
                    for place in 0..self.ports[port].flows.len() {
                        // Of what is left, so that what rounding takes from one the next one gets.
                        let Port { rest, open, ref flows, .. } = self.ports[port];
                        let id = flows[place];
                        let flow = self.flow(id);
                        let rate = u128::from(rest) * u128::from(flow.weight) / u128::from(open.max(1));
                        let rate = flow.bound.min(u64::try_from(rate).unwrap_or(u64::MAX));
                        self.fix(now, id, rate, by, new);
                    }
                }
            }
        }
        debug_assert!(rated.iter().all(|id| self.flows[*id as usize].as_ref().is_some_and(|f| f.seen == epoch + 1)));
        // The marks of this round end above it.
        self.epoch += 1;
        (self.limits, self.rated, self.reached) = (limits, rated, reached);
    }

    fn fix(&mut self, now: Time, id: u32, rate: u64, by: BoundBy, new: Option<u32>) {
        let epoch = self.epoch;
        let flow = self.flow(id);
        if flow.seen != epoch {
            return;
        }
        flow.seen = epoch + 1;
        let (ports, weight) = (flow.ports, u64::from(flow.weight));
        for port in ports {
            let port = &mut self.ports[port];
            if port.seen == epoch {
                port.rest = port.rest.saturating_sub(rate);
                port.open -= weight;
            }
        }
        self.set_bound(id, by);
        self.set_rate(now, id, rate, new);
    }

    /// Which of its two links is as narrow as the most that a flow ever gets; the uplink where both are.
    fn narrower(&self, id: u32) -> BoundBy {
        let Some(flow) = &self.flows[id as usize] else { return BoundBy::Neither };
        match flow.ports.map(|port| self.ports[port].capacity) {
            [up, _] if up == flow.bound => BoundBy::Uplink,
            [_, down] if down == flow.bound => BoundBy::Downlink,
            _ => BoundBy::Neither,
        }
    }

    fn set_bound(&mut self, id: u32, by: BoundBy) {
        let flow = self.flow(id);
        let before = std::mem::replace(&mut flow.bound_by, by);
        if before == by {
            return;
        }
        let ports = flow.ports;
        for (by, begins) in [(before, false), (by, true)] {
            let (at, beyond) = match by {
                BoundBy::Neither => continue,
                BoundBy::Uplink => (ports[0], ports[1]),
                BoundBy::Downlink => (ports[1], ports[0]),
            };
            let count = |count: &mut u32| {
                *count = if begins { *count + 1 } else { *count - 1 };
                // The first and the last are what a watcher sees.
                *count == u32::from(begins)
            };
            if count(&mut self.ports[at].bounds) {
                self.turned.push(at / 2);
            }
            if count(&mut self.ports[beyond].bound_beyond) {
                self.turned.push(beyond / 2);
            }
        }
    }

    fn set_rate(&mut self, now: Time, id: u32, rate: u64, new: Option<u32>) {
        // A link with more flows than bytes a second lets each have one: nothing waits for ever.
        let rate = rate.max(1);
        if self.flow(id).rate != rate || new == Some(id) {
            self.settle(id, now);
            self.flow(id).rate = rate;
            self.schedule(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MB: u64 = 1_000_000;

    fn flows(access: &[(u64, u64)]) -> Flows<u32> {
        Flows::new(Sharing::Exact, EQUAL, access)
    }

    fn begin(flows: &mut Flows<u32>, now: Time, from: usize, to: usize, size: u64, body: u32) {
        flows.begin(now, from, to, Lane::Activation, size, body, u64::MAX, 0);
    }

    /// When each body has left, in order.
    fn run(flows: &mut Flows<u32>) -> Vec<(Time, u32)> {
        let mut left = Vec::new();
        while let Some(at) = flows.next_at() {
            left.extend(flows.step(at).map(|done| (at, done.body)));
        }
        left
    }

    #[test]
    fn a_lone_flow_has_the_narrower_of_its_two_links() {
        for (access, rate) in [([(MB, 9 * MB), (MB, 9 * MB)], MB), ([(9 * MB, MB), (9 * MB, 2 * MB)], 2 * MB)] {
            let mut flows = flows(&access);
            begin(&mut flows, 5, 0, 1, 6 * MB, 1);
            assert_eq!(flows.rate(0, 1), rate);
            assert_eq!(run(&mut flows), [(5 + 6 * MB * SECOND / rate, 1)]);
        }
    }

    #[test]
    fn two_flows_share_an_uplink_and_the_rest_of_one_goes_alone() {
        let mut flows = flows(&[(2 * MB, MB), (MB, 9 * MB), (MB, 9 * MB)]);
        begin(&mut flows, 0, 0, 1, 2 * MB, 1);
        begin(&mut flows, 0, 0, 2, 4 * MB, 2);
        assert_eq!((flows.rate(0, 1), flows.rate(0, 2)), (MB, MB));
        // After 2 s the first is done, and the other has 2 MB left at 2 MB/s.
        assert_eq!(run(&mut flows), [(2 * SECOND, 1), (3 * SECOND, 2)]);
    }

    #[test]
    fn weights_hold_between_flows_and_lanes_are_in_order_within_one() {
        let weights = [1, 3, 3, 1, 1, 1];
        let mut flows = Flows::new(Sharing::Exact, weights, &[(4 * MB, MB), (MB, 9 * MB), (MB, 9 * MB)]);
        flows.begin(0, 0, 1, Lane::Bulk, 8 * MB, 1, u64::MAX, 0);
        flows.begin(0, 0, 2, Lane::Gradient, 3 * MB, 2, u64::MAX, 0);
        assert_eq!((flows.rate(0, 1), flows.rate(0, 2)), (MB, 3 * MB));
        // A gradient passes the bulk of its own connection.
        flows.begin(SECOND / 2, 0, 1, Lane::Gradient, MB, 3, u64::MAX, 0);
        assert_eq!((flows.rate(0, 1), flows.rate(0, 2)), (2 * MB, 2 * MB));
        let left = run(&mut flows);
        assert_eq!(left.iter().map(|(_, body)| *body).collect::<Vec<_>>(), [3, 2, 1]);
        assert_eq!(left[0].0, SECOND, "1 MB at 2 MB/s from 0.5 s");
    }

    #[test]
    fn three_flows_over_two_links_have_the_rates_found_by_hand() {
        // A and B leave peer 0 (3 MB/s); B and C arrive at peer 2 (1 MB/s): B and C have 0.5, A the other 2.5.
        let mut flows = flows(&[(3 * MB, MB), (9 * MB, 9 * MB), (9 * MB, MB)]);
        begin(&mut flows, 0, 0, 1, MB, 1);
        begin(&mut flows, 0, 0, 2, MB, 2);
        begin(&mut flows, 0, 1, 2, MB, 3);
        assert_eq!([flows.rate(0, 1), flows.rate(0, 2), flows.rate(1, 2)], [5 * MB / 2, MB / 2, MB / 2]);
    }

    #[test]
    fn a_flow_that_is_bound_elsewhere_leaves_room_only_where_sharing_is_exact() {
        for (sharing, rate) in [(Sharing::Exact, 3 * MB), (Sharing::Local, 2 * MB)] {
            let mut flows = Flows::new(sharing, EQUAL, &[(4 * MB, MB), (MB, 9 * MB), (MB, MB)]);
            begin(&mut flows, 0, 0, 1, 9 * MB, 1);
            begin(&mut flows, 0, 0, 2, 9 * MB, 2);
            assert_eq!((flows.rate(0, 1), flows.rate(0, 2)), (rate, MB), "{sharing:?}");
        }
    }

    /// What keeps each of these peers' flows: own uplink, own downlink, a sender's uplink, a receiver's downlink.
    fn full(flows: &Flows<u32>, peer: usize) -> [bool; 4] {
        let InUse { up_full, down_full, sender_full, receiver_full, .. } = flows.in_use(peer);
        [up_full, down_full, sender_full, receiver_full]
    }

    #[test]
    fn who_receives_slowly_is_not_full_where_the_sender_is() {
        for sharing in [Sharing::Exact, Sharing::Local] {
            let mut slow_up = Flows::new(sharing, EQUAL, &[(MB, 9 * MB), (MB, 9 * MB)]);
            begin(&mut slow_up, 0, 0, 1, MB, 1);
            assert_eq!(full(&slow_up, 0), [true, false, false, false], "{sharing:?}");
            assert_eq!(full(&slow_up, 1), [false, false, true, false], "{sharing:?}");
            let mut slow_down = Flows::new(sharing, EQUAL, &[(9 * MB, MB), (9 * MB, MB)]);
            begin(&mut slow_down, 0, 0, 1, MB, 1);
            assert_eq!(full(&slow_down, 0), [false, false, false, true], "{sharing:?}");
            assert_eq!(full(&slow_down, 1), [false, true, false, false], "{sharing:?}");
            run(&mut slow_down);
            assert_eq!(slow_down.in_use(0), InUse::default());
            assert_eq!(slow_down.in_use(1), InUse::default());
        }
    }

    #[test]
    fn many_slow_senders_fill_a_downlink_and_one_controller_fills_nothing() {
        // Three uplinks of 1 MB/s for a downlink of 2: the downlink is what binds.
        let mut many = flows(&[(MB, MB), (MB, MB), (MB, MB), (MB, 2 * MB)]);
        (0..3).for_each(|from| begin(&mut many, 0, from, 3, MB, from as u32));
        assert_eq!((full(&many, 3), full(&many, 0)), ([false, true, false, false], [false, false, false, true]));
        let mut capped = flows(&[(4 * MB, MB), (MB, 9 * MB)]);
        capped.begin(0, 0, 1, Lane::Bulk, MB, 1, MB, 0);
        assert_eq!((full(&capped, 0), full(&capped, 1)), ([false; 4], [false; 4]));
        assert!(capped.in_use(0).sends && capped.in_use(1).receives);
    }

    #[test]
    fn a_cap_holds_and_a_wait_delays_only_the_beginning() {
        let mut flows = flows(&[(4 * MB, MB), (MB, 9 * MB)]);
        flows.begin(0, 0, 1, Lane::Bulk, 2 * MB, 1, MB, SECOND);
        assert!(!flows.sends(0));
        flows.begin(0, 0, 1, Lane::Bulk, MB, 2, u64::MAX, SECOND);
        assert_eq!(run(&mut flows), [(3 * SECOND, 1), (4 * SECOND, 2)]);
        assert!(!flows.is_cold(0, 1) && flows.is_cold(1, 0));
    }

    #[test]
    fn what_a_suspended_peer_sends_waits_and_leaves_its_share_to_others() {
        let mut flows = flows(&[(2 * MB, MB), (2 * MB, MB), (MB, 2 * MB)]);
        begin(&mut flows, 0, 0, 2, 2 * MB, 1);
        begin(&mut flows, 0, 1, 2, 4 * MB, 2);
        flows.hold(SECOND, 0, true);
        assert_eq!((flows.rate(0, 2), flows.rate(1, 2)), (0, 2 * MB));
        flows.hold(2 * SECOND, 0, false);
        assert_eq!(run(&mut flows), [(3 * SECOND, 1), (3 * SECOND, 2)]);
    }

    #[test]
    fn a_closed_flow_gives_back_its_bodies_and_its_share() {
        let mut flows = flows(&[(2 * MB, MB), (MB, 9 * MB), (MB, 9 * MB)]);
        begin(&mut flows, 0, 0, 1, 9 * MB, 1);
        begin(&mut flows, 0, 0, 1, 9 * MB, 2);
        begin(&mut flows, 0, 0, 2, 3 * MB, 3);
        assert_eq!(flows.close(SECOND, 0, 1), [1, 2]);
        assert_eq!(run(&mut flows), [(2 * SECOND, 3)]);
        assert!(flows.stop(2 * SECOND, 0).is_empty());
    }

    /// A body: sender, receiver, lane, size, and how long after the one before.
    fn bodies() -> impl Strategy<Value = Vec<(usize, usize, usize, u64, u64)>> {
        prop::collection::vec((0..6usize, 0..6usize, 1..6usize, 1..40_000u64, 0..8_000_000u64), 1..60)
    }

    proptest! {
        #[test]
        fn no_link_carries_more_than_it_can_and_every_byte_arrives(
            access in prop::collection::vec((1_000..1_000_000u64, 1_000..1_000_000u64), 6),
            bodies in bodies(),
            exact: bool,
        ) {
            let sharing = if exact { Sharing::Exact } else { Sharing::Local };
            let mut flows: Flows<u64> = Flows::new(sharing, [1, 4, 2, 1, 1, 1], &access);
            let (mut now, mut sent, mut arrived) = (0, 0, 0);
            for (from, to, lane, size, pause) in bodies {
                if from == to { continue }
                now += pause;
                while let Some(at) = flows.next_at().filter(|at| *at <= now) {
                    arrived += flows.step(at).map_or(0, |left| left.body);
                }
                flows.begin(now, from, to, Lane::ALL[lane], size, size, u64::MAX, 0);
                sent += size;
                for (peer, most) in access.iter().enumerate() {
                    let up: u64 = (0..6).map(|to| flows.rate(peer, to)).sum();
                    let down: u64 = (0..6).map(|from| flows.rate(from, peer)).sum();
                    prop_assert!(up <= most.0 && down <= most.1, "{up} {down} of {most:?}");
                }
                if exact {
                    prop_assert!(is_max_min(&flows, &access), "a flow could have more");
                }
            }
            while let Some(at) = flows.next_at() {
                arrived += flows.step(at).map_or(0, |left| left.body);
            }
            prop_assert_eq!(sent, arrived);
            prop_assert!((0..6).all(|peer| flows.in_use(peer) == InUse::default()));
        }
    }

    /// Every flow has a full link on which nobody of its weight has more, but for what rounding takes.
    fn is_max_min(flows: &Flows<u64>, access: &[(u64, u64)]) -> bool {
        let running: Vec<&Flow<u64>> = flows.flows.iter().flatten().filter(|flow| flow.runs).collect();
        running.iter().all(|flow| {
            flow.ports.iter().any(|at| {
                let capacity = if at % 2 == 0 { access[at / 2].0 } else { access[at / 2].1 };
                let here: Vec<_> = running.iter().filter(|other| other.ports.contains(at)).collect();
                let full = here.iter().map(|other| other.rate).sum::<u64>() + here.len() as u64 >= capacity;
                let share = |flow: &Flow<u64>| flow.rate / u64::from(flow.weight);
                full && here.iter().all(|other| share(other) <= share(flow) + 2)
            })
        })
    }
}
