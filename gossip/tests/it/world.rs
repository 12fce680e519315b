//! Replicas of one stage with real averaging machines and the real kernel, under virtual time. What a worker would do happens
//! at once; frames take as long, and fare as badly, as the test says.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use skein_gossip::{
    average::{Act, Average, Ended},
    kernel::noloco::{self, Rule, Side},
};
use skein_protocol::{Blob, Instant, Outbox, PeerId, event::RoundOutcome, hash::Digest, wire::average::Frame};

pub const RULE: Rule = Rule { alpha: 0.5, beta: 0.7, gamma: 0.7 };
/// Own steps between rounds.
pub const EVERY: u32 = 5;
/// Bytes of a round that the machines are told of: two minutes on the slowest link that still averages.
const BODY: u64 = 30_000_000;
const SAMPLES_A_STEP: u64 = 8;

/// What the network does to frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trouble {
    /// Shares of frames, 0 to 1.
    pub lost: f64,
    pub doubled: f64,
    /// The longest delay; frames overtake each other within it.
    pub late: Duration,
    /// How long tensors take beyond that.
    pub tensors: Duration,
}

/// d and phi of a partner, as they lie in a blob.
type Tensors = (Vec<f32>, Vec<f32>);

pub struct Replica {
    pub id: PeerId,
    pub alive: bool,
    pub machine: Average,
    pub theta: Vec<f32>,
    pub phi: Vec<f32>,
    momentum: Vec<f32>,
    /// theta and d at the beginning of the round in the air.
    frozen: Option<Tensors>,
    prepared: Option<(Vec<f32>, Vec<f32>)>,
    /// Blobs that the machine owes a release for.
    held: BTreeMap<u64, Tensors>,
    pub ended: Vec<Ended>,
    /// Rounds that were adopted, and that were rolled back, by number: each session ends one way.
    pub adopted: u32,
    pub rolled_back: u32,
}

struct Flight {
    from: usize,
    to: usize,
    frame: Frame,
    body: Option<Tensors>,
}

pub struct World {
    pub now: Instant,
    pub replicas: Vec<Replica>,
    pub trouble: Trouble,
    /// Frames sent so far; the frame of this number kills its sender or its receiver instead of arriving.
    pub sent: usize,
    pub kill_at: Option<(usize, Victim)>,
    rng: ChaCha8Rng,
    flights: BTreeMap<(Instant, u64), Flight>,
    serial: u64,
    blobs: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    Sender,
    Receiver,
}

pub fn peer(n: usize) -> PeerId {
    PeerId([n as u8 + 1; 32])
}

impl World {
    /// Replicas with different slow weights of `width` numbers, and no difference yet.
    pub fn new(seed: u64, replicas: usize, width: usize) -> World {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let make = |n: usize| {
            let phi: Vec<f32> = (0..width).map(|_| rng.random_range(-1.0f32..1.0)).collect();
            let mut machine = Average::new(peer(n), Digest([seed as u8; 32]), 0, EVERY, BODY);
            machine.set_members((0..replicas).filter(|other| *other != n).map(peer).collect(), Vec::new());
            Replica {
                id: peer(n),
                alive: true,
                machine,
                theta: phi.clone(),
                momentum: vec![0.0; width],
                phi,
                frozen: None,
                prepared: None,
                held: BTreeMap::new(),
                ended: Vec::new(),
                adopted: 0,
                rolled_back: 0,
            }
        };
        World {
            now: Instant::ZERO,
            replicas: (0..replicas).map(make).collect(),
            trouble: Trouble::default(),
            sent: 0,
            kill_at: None,
            rng: ChaCha8Rng::seed_from_u64(seed ^ 0x5eed),
            flights: BTreeMap::new(),
            serial: 0,
            blobs: 0,
        }
    }

    /// An order that the seed chooses.
    pub fn shuffle(&mut self, order: &mut [usize]) {
        order.shuffle(&mut self.rng);
    }

    /// One own step: the weights move by `by` in every place.
    pub fn step(&mut self, n: usize, by: f32) {
        if self.replicas[n].alive {
            self.replicas[n].theta.iter_mut().for_each(|v| *v += by);
            self.with(n, |machine, now, out| machine.on_step(now, SAMPLES_A_STEP, out));
        }
    }

    pub fn with(&mut self, n: usize, act: impl FnOnce(&mut Average, Instant, &mut Outbox<Act>)) {
        let mut out = Outbox::new();
        act(&mut self.replicas[n].machine, self.now, &mut out);
        while let Some(act) = out.pop() {
            self.perform(n, act, &mut out);
        }
    }

    fn perform(&mut self, n: usize, act: Act, out: &mut Outbox<Act>) {
        let now = self.now;
        match act {
            Act::Send { to, frame, body } => self.send(n, to, frame, body),
            Act::Snapshot { round } => {
                let replica = &mut self.replicas[n];
                let d: Vec<f32> = replica.theta.iter().zip(&replica.phi).map(|(theta, phi)| theta - phi).collect();
                replica.frozen = Some((replica.theta.clone(), d.clone()));
                let tensors = (d, replica.phi.clone());
                let blob = self.keep(n, tensors);
                self.replicas[n].machine.on_snapshot(round, Some(blob), out);
            }
            Act::Prepare { round, theirs, my_samples, their_samples, first, copy } => {
                let replica = &mut self.replicas[n];
                let (their_d, their_phi) = replica.held[&theirs.id].clone();
                let (_, d) = replica.frozen.as_ref().expect("frozen before it is prepared");
                let mut phi = their_phi.clone();
                let mut momentum = vec![0.0; phi.len()];
                if !copy {
                    phi.clone_from(&replica.phi);
                    momentum.clone_from(&replica.momentum);
                    let mine = Side { phi: &replica.phi, d, samples: my_samples };
                    let other = Side { phi: &their_phi, d: &their_d, samples: their_samples };
                    let (a, b) = if first { (mine, other) } else { (other, mine) };
                    noloco::step(RULE, a, b, first, &mut momentum, &mut phi);
                }
                let finite = phi.iter().all(|v| v.is_finite());
                replica.prepared = finite.then_some((phi, momentum));
                self.replicas[n].machine.on_prepared(now, round, finite.then_some(0.0), out);
            }
            Act::Adopt { .. } => {
                let replica = &mut self.replicas[n];
                let (phi, momentum) = replica.prepared.take().expect("prepared before it is adopted");
                let (then, _) = replica.frozen.take().expect("frozen before it is adopted");
                let since = replica.theta.iter().zip(&then).map(|(now, then)| now - then);
                replica.theta = phi.iter().zip(since).map(|(phi, since)| phi + since).collect();
                (replica.phi, replica.momentum) = (phi, momentum);
                replica.adopted += 1;
            }
            Act::RollBack { .. } => {
                let replica = &mut self.replicas[n];
                (replica.frozen, replica.prepared) = (None, None);
                replica.rolled_back += 1;
            }
            Act::Alone => {
                let replica = &mut self.replicas[n];
                replica.phi.clone_from(&replica.theta);
                replica.momentum.fill(0.0);
            }
            Act::Release(blob) => {
                let released = self.replicas[n].held.remove(&blob.id);
                assert!(released.is_some(), "{blob:?} is released twice, or was never held");
            }
            Act::Ended(ended) => self.replicas[n].ended.push(ended),
        }
    }

    fn keep(&mut self, n: usize, tensors: Tensors) -> Blob {
        self.blobs += 1;
        let len = 8 * tensors.0.len() as u64;
        self.replicas[n].held.insert(self.blobs, tensors);
        Blob { id: self.blobs, len }
    }

    fn send(&mut self, from: usize, to: PeerId, frame: Frame, body: Option<Blob>) {
        let to = self.replicas.iter().position(|replica| replica.id == to).expect("a replica");
        let body = body.map(|blob| self.replicas[from].held[&blob.id].clone());
        self.sent += 1;
        if let Some((_, victim)) = self.kill_at.filter(|(at, _)| *at == self.sent) {
            return self.kill(if victim == Victim::Sender { from } else { to });
        }
        if self.rng.random_bool(self.trouble.lost) {
            return;
        }
        let copies = 1 + usize::from(self.rng.random_bool(self.trouble.doubled));
        for _ in 0..copies {
            let late = self.trouble.late.as_micros() as u64;
            let delay = Duration::from_micros(1000 + if late > 0 { self.rng.random_range(0..late) } else { 0 });
            let delay = delay + if body.is_some() { self.trouble.tensors } else { Duration::ZERO };
            self.serial += 1;
            let flight = Flight { from, to, frame: frame.clone(), body: body.clone() };
            self.flights.insert((self.now + delay, self.serial), flight);
        }
    }

    /// It says no more; the others hear that it is lost.
    pub fn kill(&mut self, n: usize) {
        self.replicas[n].alive = false;
        let id = self.replicas[n].id;
        for other in (0..self.replicas.len()).filter(|other| *other != n) {
            if self.replicas[other].alive {
                self.with(other, |machine, now, out| machine.on_lost(now, id, out));
            }
        }
    }

    /// Time goes on; frames arrive, and machines are told the time every 100 ms.
    pub fn run_for(&mut self, length: Duration) {
        let end = self.now + length;
        let mut tick = self.now + Duration::from_millis(100);
        loop {
            let next = self.flights.first_key_value().map(|(key, _)| *key).filter(|(at, _)| *at <= tick);
            match next {
                Some(key) if key.0 <= end => {
                    self.now = self.now.max(key.0);
                    let flight = self.flights.remove(&key).expect("it was there");
                    self.arrive(flight);
                }
                _ if tick > end => break,
                _ => {
                    self.now = tick;
                    for n in 0..self.replicas.len() {
                        if self.replicas[n].alive {
                            self.with(n, |machine, now, out| machine.on_tick(now, out));
                        }
                    }
                    tick += Duration::from_millis(100);
                }
            }
        }
        self.now = end;
    }

    fn arrive(&mut self, Flight { from, to, frame, body }: Flight) {
        if !self.replicas[to].alive || !self.replicas[from].alive {
            return;
        }
        let body = body.map(|tensors| self.keep(to, tensors));
        let from = self.replicas[from].id;
        self.with(to, |machine, now, out| machine.on_frame(now, from, frame, body, out));
    }

    /// Every replica that lives: finite, and nothing left over from rounds.
    pub fn assert_settled(&self, about: &str) {
        for replica in self.replicas.iter().filter(|replica| replica.alive) {
            let finite = [&replica.theta, &replica.phi].into_iter().flatten().all(|v| v.is_finite());
            assert!(finite, "{about}: a weight is not finite");
            assert!(replica.machine.is_idle(), "{about}: a round does not end: {:?}", replica.machine);
            assert!(replica.held.is_empty(), "{about}: {} blobs are never released", replica.held.len());
            let rounds = replica.ended.iter().filter(|ended| ended.partner.is_some());
            let over: BTreeSet<_> = rounds.map(|ended| ended.outcome as u8).collect();
            assert!(!over.contains(&(RoundOutcome::Skipped as u8)), "{about}: a skipped round has no partner");
        }
    }

    /// Sum over the replicas that live of the squared distance of their slow weights to the mean.
    pub fn variance(&self) -> f64 {
        let living: Vec<&Replica> = self.replicas.iter().filter(|replica| replica.alive).collect();
        let width = living[0].phi.len();
        let at = |i: usize| {
            let values = living.iter().map(|replica| f64::from(replica.phi[i]));
            let mean = values.clone().sum::<f64>() / living.len() as f64;
            values.map(|v| (v - mean) * (v - mean)).sum::<f64>()
        };
        (0..width).map(at).sum()
    }
}
