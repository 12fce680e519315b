//! Passes signed items on until everybody has them, and repairs what was missed.
//!
//! In: items of mine, frames, neighbours. Out: frames, and the items that are new to me, verified. A new item goes to at most six
//! neighbours at once; another's that says again what was known, with other numbers, waits for others that leave with it. Among many
//! so do one's own, and what follows another closely.
//! Every second (every fourth, where there are many items) one neighbour gets a digest of what I have, and
//! sends or asks for the difference. A digest that would be too long tells of a stretch of keys, the next one of the stretch
//! behind it.
//! It keeps at most [`ITEMS`] items of others, and of what they say it knows only whether the run has such a stage.

use std::{
    collections::BTreeMap,
    ops::{Bound, Range},
    sync::Arc,
    time::Duration,
};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use skein_protocol::{
    Incarnation, Instant, Outbox, PeerId, RunId, Stage, Utc,
    event::Severity,
    hash::scatter,
    key::Signed,
    rng::{Purpose, Streams},
    wire::{
        membership::{Heard, ITEM, Item, ItemKey, Seals, Stamp, What},
        spread::{Digest, Entry, Frame, ITEMS_MAX, Items, KEYS_MAX, Want},
    },
};

use crate::{
    membership::states,
    shelf::{Kept, Kind, Number, SaidBy, Shelf, Waits},
};

/// Items of others that are kept, and stamps of forgotten ones.
pub const ITEMS: usize = 4096;
/// Neighbours that get a new item at once. Of random neighbours e^-6, one peer in four hundred, is missed; digests mend that.
const FANOUT: usize = 6;
/// The same for items that leave together, where there is much to say: one peer in twenty misses each, for as long as it takes to
/// be said again or a digest to come.
const FANOUT_OF_MANY: usize = 3;
/// Among few, who has other numbers tells six of them itself, and others hardly pass them on.
const FANOUT_OF_FEW: usize = 2;
/// More neighbours than these are a crowd, and so are four times as many items.
const CROWD: usize = 16;
/// Numbers wait for each other, so long or longer by the number of neighbours.
const NUMBERS_EVERY: Duration = Duration::from_millis(500);
const NUMBERS_SLOWEST: Duration = Duration::from_secs(2);
/// In a crowd news that comes this soon after other news waits to leave with more: in the rush of a beginning each peer tells of
/// all others.
const RUSH: Duration = Duration::from_millis(100);
const DIGEST_EVERY: Duration = Duration::from_secs(1);
/// In a crowd one newcomer in so long is greeted with a digest.
const GREET_EVERY: Duration = Duration::from_millis(250);
/// Digests are rarer by one second for each of so many items, down to one in [`DIGEST_SLOWEST`] seconds: they are as long as
/// the swarm is large.
const DIGEST_ITEMS: usize = 128;
const DIGEST_SLOWEST: usize = 4;
/// An item that is further from my clock than this is not taken.
pub const SKEW_MAX: Duration = Duration::from_secs(90);
/// No item lives longer.
pub const LIFE_MAX: Duration = Duration::from_secs(120);
const OFFER: u8 = 0;
/// Kind of items that outlive the connection to their author: what is over stays over.
const PROGRESS: u8 = 1;
const KINDS: Range<u8> = 0..3;
/// How long the newest stamp of an expired item is remembered, so that an old one cannot come back.
const REMEMBER: Duration = Duration::from_secs(600);
/// What is remembered is looked through this often.
const FORGET_EVERY: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    Send {
        to: PeerId,
        frame: Frame,
    },
    /// An item that I did not have, or a newer one; its author signed it.
    New {
        heard: Arc<Heard>,
    },
    /// The life of an item is over.
    Expired {
        key: ItemKey,
    },
    Blame {
        peer: PeerId,
        severity: Severity,
        why: &'static str,
    },
}

/// Whether an item tells what others wait to hear as another does: the part of it that changes what they do at once.
fn is_no_news(what: &What, known: &What) -> bool {
    match (what, known) {
        (What::Offer(offer), What::Offer(known)) => {
            states(offer).eq(states(known)) && offer.addresses == known.addresses
        }
        (What::Progress(_), What::Progress(_)) => true,
        (What::Held(held), What::Held(known)) => held.version == known.version,
        _ => false,
    }
}

#[derive(Debug)]
pub struct Spread {
    me: PeerId,
    run: RunId,
    stages: Stage,
    items: Shelf,
    remembered: BTreeMap<ItemKey, (Stamp, Instant)>,
    neighbours: Vec<PeerId>,
    /// Nobody else knows which names have one number.
    salt: u64,
    /// When items that wait may leave: news, and those whose numbers alone are new.
    news_at: Instant,
    numbers_at: Instant,
    /// No item expires before.
    expires_at: Instant,
    digest_at: Instant,
    /// Among many no newcomer is greeted with a digest before.
    greet_at: Instant,
    /// The last key that the last digest told of; nothing: it told of all to the end.
    told_until: Option<ItemKey>,
    rng: ChaCha8Rng,
    seals: Seals,
}

impl Spread {
    /// `stages`: how many the run has. An author has one item for each at most, and two besides.
    pub fn new(me: PeerId, run: RunId, stages: Stage, streams: &Streams, now: Instant) -> Self {
        Spread {
            me,
            run,
            stages,
            items: Shelf::default(),
            remembered: BTreeMap::new(),
            neighbours: Vec::new(),
            salt: streams.stream(Purpose::Spread).random(),
            news_at: now,
            numbers_at: now,
            expires_at: now,
            digest_at: now,
            greet_at: now,
            told_until: None,
            rng: streams.stream(Purpose::Spread),
            seals: Seals::default(),
        }
    }

    /// Trusts what other peers of this process found of signatures.
    pub fn share_seals(&mut self, seals: Seals) {
        self.seals = seals;
    }

    /// A neighbour has come. It is told what I have, and among few so is everybody; in a crowd that comes at once each would
    /// send nearly all to all.
    pub fn on_up(&mut self, now: Instant, peer: PeerId, out: &mut Outbox<Act>) {
        if !self.neighbours.contains(&peer) {
            self.neighbours.push(peer);
        }
        if !self.is_crowd() || now >= self.greet_at {
            self.greet_at = now + GREET_EVERY;
            out.push(Act::Send { to: peer, frame: self.digest() });
        }
    }

    /// A neighbour is one no longer.
    pub fn on_away(&mut self, peer: PeerId) {
        self.neighbours.retain(|neighbour| *neighbour != peer);
    }

    /// The connection to a neighbour is gone; `lost`: the incarnation that was behind it. What it offered and held is not told
    /// to newcomers any more, and comes back only newer: the dead would be waited for until their items expire.
    pub fn on_lost(&mut self, now: Instant, peer: PeerId, lost: Option<Incarnation>) {
        self.on_away(peer);
        let gone = |kept: &&Kept| lost.is_none_or(|lost| kept.heard.item.stamp.incarnation <= lost);
        let of_peer = self.items.of(peer, KINDS.filter(|kind| *kind != PROGRESS));
        let keys: Vec<ItemKey> = of_peer.filter(gone).map(|kept| kept.heard.key()).collect();
        for key in keys {
            self.forget(key, now + REMEMBER);
        }
    }

    /// Spreads an item of mine. It comes back as `New`, like everybody else's.
    pub fn publish(&mut self, now: Instant, signed: Signed, item: Item, out: &mut Outbox<Act>) {
        let heard = Arc::new(Heard { signed: Arc::new(signed), item });
        self.seals.remember(&heard);
        let place = self.items.find(&heard.key());
        self.take(now, &heard, place, None);
        self.tell_when_due(now, out);
        out.push(Act::New { heard });
    }

    pub fn on_frame(&mut self, now: Instant, utc: Utc, from: PeerId, frame: Frame, out: &mut Outbox<Act>) {
        match frame {
            Frame::Items(items) => {
                let number = number_of(from, self.salt);
                for signed in items.items {
                    self.on_item(now, utc, (from, number), signed, out);
                }
                self.tell_when_due(now, out);
            }
            Frame::Digest(digest) => self.on_digest(from, digest, out),
            Frame::Want(want) => {
                let items = want.keys.iter().filter_map(|key| self.items.get(key));
                send_items(from, items, out);
            }
        }
    }

    fn on_item(
        &mut self,
        now: Instant,
        utc: Utc,
        (from, number): (PeerId, Number),
        signed: Arc<Signed>,
        out: &mut Outbox<Act>,
    ) {
        // Most items are offers: that one is known shows before it is read.
        let offer = ItemKey { kind: OFFER, author: signed.by, subject: 0 };
        let place = self.items.find(&offer);
        if let Some(place) = self.is_at(place, &signed) {
            return self.items.heard_again(place, number);
        }
        let checked = self.seals.known(&signed);
        let holds = checked.is_some();
        let Some(heard) = checked.or_else(|| Heard::peek(signed).map(Arc::new)) else {
            return out.push(Act::Blame { peer: from, severity: Severity::Hostile, why: "an item that is none" });
        };
        let key = heard.key();
        let place = if key == offer { place } else { self.items.find(&key) };
        if key != offer
            && let Some(place) = self.is_at(place, &heard.signed)
        {
            return self.items.heard_again(place, number);
        }
        let (author, item) = (heard.author(), &heard.item);
        if item.run != self.run || Duration::from_millis(item.life_ms.into()) > LIFE_MAX {
            return out.push(Act::Blame {
                peer: from,
                severity: Severity::Wrong,
                why: "an item that is not of this run",
            });
        }
        if !self.is_of_a_stage(item) {
            let why = "an item of a stage that the run does not have";
            return out.push(Act::Blame { peer: from, severity: Severity::Wrong, why });
        }
        // Mine comes back to me: what I publish next is newer.
        if author == self.me || item.made_at.distance(utc) > SKEW_MAX {
            return;
        }
        let known = place.ok().map(|place| self.items.at(place).heard.item.stamp);
        let newest = known.max(self.remembered.get(&key).map(|(stamp, _)| *stamp));
        if newest.is_some_and(|newest| item.stamp <= newest) {
            return;
        }
        if !holds {
            if !heard.signed.verify(ITEM) {
                let why = "an item that nobody signed";
                return out.push(Act::Blame { peer: from, severity: Severity::Hostile, why });
            }
            self.seals.remember(&heard);
        }
        if self.take(now, &heard, place, Some(number)) {
            out.push(Act::New { heard });
        }
    }

    /// The place, if what is on the shelf there is this item to the letter.
    fn is_at(&self, place: Result<usize, usize>, signed: &Arc<Signed>) -> Option<usize> {
        let place = place.ok()?;
        let known = &self.items.at(place).heard.signed;
        let is_it = Arc::ptr_eq(known, signed) || known.signature == signed.signature && known == signed;
        is_it.then_some(place)
    }

    fn is_of_a_stage(&self, item: &Item) -> bool {
        match &item.what {
            What::Offer(offer) => offer.stages.iter().all(|offer| offer.stage < self.stages),
            What::Progress(_) => true,
            What::Held(held) => held.version.stage < self.stages,
        }
    }

    /// Stores, to be told: `place` is where its key is on the shelf. False when there is no room; what is mine always fits,
    /// whoever filled the rest.
    fn take(&mut self, now: Instant, heard: &Arc<Heard>, place: Result<usize, usize>, from: Option<Number>) -> bool {
        let (key, item) = (heard.key(), &heard.item);
        let known = place.ok().map(|place| self.items.at(place));
        if key.author != self.me && self.items.len() >= ITEMS && known.is_none() {
            return false;
        }
        let expires = now + Duration::from_millis(item.life_ms.into());
        self.expires_at = self.expires_at.min(expires);
        let says_again =
            |known: &Item| is_no_news(&item.what, &known.what) && known.stamp.incarnation == item.stamp.incarnation;
        // Among few whoever made it tells it itself. What progress says lets others go on.
        let may_wait = self.is_crowd() || key.author != self.me && !matches!(item.what, What::Progress(_));
        let only_numbers = may_wait && known.is_some_and(|known| says_again(&known.heard.item));
        let is_news = known.and_then(|known| known.waits).is_some_and(|waits| waits.kind == Kind::News);
        let kind = if only_numbers && !is_news { Kind::Numbers } else { Kind::News };
        let mut said_by = SaidBy::default();
        from.into_iter().for_each(|from| said_by.add(from));
        self.items.put(place, Kept { heard: heard.clone(), expires, waits: Some(Waits { kind, said_by }) });
        true
    }

    fn is_crowd(&self) -> bool {
        self.neighbours.len() > CROWD || self.items.len() > 4 * CROWD
    }

    fn forget(&mut self, key: ItemKey, until: Instant) -> bool {
        let Some(kept) = self.items.remove(&key) else { return false };
        self.remembered.insert(key, (kept.heard.item.stamp, until));
        true
    }

    /// All that waited goes to the same neighbours, in as few frames as it needs. What I heard so often meanwhile is known
    /// everywhere around me, and goes to nobody (rumours that stop by a counter: Demers and others, 1987).
    fn tell(&mut self, kind: Kind, out: &mut Outbox<Act>) {
        let mut waited = self.items.take_waiting(kind);
        let items = &self.items;
        let salt = self.salt;
        let knows = |to: PeerId, (place, said_by): (usize, SaidBy)| {
            said_by.has(number_of(to, salt)) || items.at(place).heard.author() == to
        };
        let only = if let [only] = waited[..] { Some(only) } else { None };
        let many = match only {
            _ if kind == Kind::Numbers && !self.is_crowd() => FANOUT_OF_FEW,
            Some(_) => FANOUT,
            None => FANOUT_OF_MANY,
        };
        let may_hear = |to| waited.iter().any(|one| !knows(to, *one));
        let chosen = some_of(&mut self.neighbours, &mut self.rng, many, may_hear);
        waited.retain(|(place, said_by)| !said_by.is_everywhere() || items.at(*place).heard.author() == self.me);
        for to in chosen {
            let news = waited.iter().filter(|one| !knows(to, **one));
            send_items(to, news.map(|(place, _)| items.at(*place)), out);
        }
    }

    pub fn tell_when_due(&mut self, now: Instant, out: &mut Outbox<Act>) {
        if now >= self.numbers_at && self.items.waiting(Kind::Numbers) > 0 {
            self.numbers_at = now + self.numbers_every();
            self.tell(Kind::Numbers, out);
        }
        if (now >= self.news_at || !self.is_crowd()) && self.items.waiting(Kind::News) > 0 {
            self.news_at = now + RUSH;
            self.tell(Kind::News, out);
        }
    }

    /// When something that waits is to leave.
    pub fn deadline(&self) -> Option<Instant> {
        (self.items.waiting(Kind::News) > 0).then_some(self.news_at)
    }

    /// The more neighbours, the longer numbers wait.
    fn numbers_every(&self) -> Duration {
        (NUMBERS_EVERY * (self.neighbours.len() / CROWD).max(1) as u32).min(NUMBERS_SLOWEST)
    }

    /// What I have behind the stretch of keys that the last digest told of, as much as fits.
    fn digest(&mut self) -> Frame {
        let told = self.told_until.take().filter(|told| self.items.last_key().is_some_and(|last| *told < last));
        let begin = told.map_or(Bound::Unbounded, Bound::Excluded);
        let entry = |kept: &Kept| Entry { key: kept.heard.key(), stamp: kept.heard.item.stamp };
        let mut rest = self.items.behind(begin).map(entry);
        let entries: Vec<Entry> = rest.by_ref().take(KEYS_MAX).collect();
        let until = rest.next().and_then(|_| entries.last()).map(|entry| entry.key);
        self.told_until = until;
        Frame::Digest(Digest { entries, after: told, until })
    }

    fn on_digest(&mut self, from: PeerId, mut digest: Digest, out: &mut Outbox<Act>) {
        if !digest.entries.is_sorted_by(|a, b| a.key < b.key) {
            // Of what is said twice the last word counts.
            let last: BTreeMap<ItemKey, Entry> = digest.entries.iter().map(|entry| (entry.key, *entry)).collect();
            digest.entries = last.into_values().collect();
        }
        // Both are in the same order: one walk beside the other.
        let from_there = self.items.behind(digest.after.map_or(Bound::Unbounded, Bound::Excluded));
        let here = from_there.map(|kept| (kept.heard.key(), kept)).take_while(|(key, _)| digest.tells_of(key));
        let (mut newer_here, mut keys) = (Vec::new(), Vec::new());
        let mut wants = |their: &Entry| {
            let remembered = self.remembered.get(&their.key);
            if digest.tells_of(&their.key)
                && their.key.author != self.me
                && remembered.is_none_or(|(known, _)| *known < their.stamp)
            {
                keys.push(their.key);
            }
        };
        let mut theirs = digest.entries.iter().peekable();
        for (key, kept) in here {
            while let Some(their) = theirs.next_if(|their| their.key < key) {
                wants(their);
            }
            let their = theirs.next_if(|their| their.key == key);
            let stamp = kept.heard.item.stamp;
            match their {
                Some(their) if their.stamp == stamp => {}
                Some(their) if their.stamp > stamp => wants(their),
                _ => newer_here.push(kept),
            }
        }
        theirs.for_each(wants);
        send_items(from, newer_here.into_iter(), out);
        if !keys.is_empty() {
            out.push(Act::Send { to: from, frame: Frame::Want(Want { keys }) });
        }
    }

    pub fn on_tick(&mut self, now: Instant, out: &mut Outbox<Act>) {
        if now >= self.expires_at {
            self.expire(now, out);
        }
        self.tell_when_due(now, out);
        if now >= self.digest_at && !self.neighbours.is_empty() {
            self.digest_at = now + DIGEST_EVERY * (1 + self.items.len() / DIGEST_ITEMS).min(DIGEST_SLOWEST) as u32;
            let to = self.neighbours[self.rng.random_range(0..self.neighbours.len())];
            let frame = self.digest();
            out.push(Act::Send { to, frame });
        }
    }

    fn expire(&mut self, now: Instant, out: &mut Outbox<Act>) {
        let expired: Vec<ItemKey> =
            self.items.iter().filter(|kept| kept.expires <= now).map(|kept| kept.heard.key()).collect();
        for key in expired {
            if self.forget(key, now + REMEMBER) {
                out.push(Act::Expired { key });
            }
        }
        self.remembered.retain(|_, (_, until)| *until > now);
        while self.remembered.len() > ITEMS {
            self.remembered.pop_first();
        }
        let next = self.items.iter().map(|kept| kept.expires).min();
        self.expires_at = next.unwrap_or(now + FORGET_EVERY).min(now + FORGET_EVERY);
    }
}

fn number_of(peer: PeerId, salt: u64) -> Number {
    (scatter(&peer.0, salt) as Number).max(1)
}

/// Random ones of those who may hear it.
fn some_of(
    neighbours: &mut [PeerId],
    rng: &mut ChaCha8Rng,
    many: usize,
    may_hear: impl Fn(PeerId) -> bool,
) -> Vec<PeerId> {
    let mut some = Vec::with_capacity(many);
    for i in 0..neighbours.len() {
        let chosen = rng.random_range(i..neighbours.len());
        neighbours.swap(i, chosen);
        if may_hear(neighbours[i]) {
            some.push(neighbours[i]);
        }
        if some.len() == many {
            break;
        }
    }
    some
}

/// In as few frames as they fit into.
fn send_items<'a>(to: PeerId, items: impl Iterator<Item = &'a Kept>, out: &mut Outbox<Act>) {
    /// Bytes of items in a frame.
    const ROOM: usize = 40 << 10;
    let (mut frame, mut bytes) = (Vec::new(), 0);
    for item in items.map(|kept| kept.heard.signed.clone()) {
        if !frame.is_empty() && (frame.len() == ITEMS_MAX || bytes + item.body.len() > ROOM) {
            out.push(Act::Send { to, frame: Frame::Items(Items { items: std::mem::take(&mut frame) }) });
            bytes = 0;
        }
        bytes += item.body.len();
        frame.push(item);
    }
    if !frame.is_empty() {
        out.push(Act::Send { to, frame: Frame::Items(Items { items: frame }) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shelf::HEARD;
    use skein_protocol::{
        Version, hash,
        key::Key,
        wire::membership::{Held, Offer, StageOffer, State},
    };

    const RUN: RunId = hash::Digest([1; 32]);

    fn key(i: u8) -> Key {
        Key::from_secret([i; 32])
    }

    fn item(sequence: u32) -> Item {
        Item {
            run: RUN,
            stamp: Stamp { incarnation: 1, sequence },
            made_at: Utc(1_000_000),
            life_ms: 60_000,
            what: What::Offer(Offer::default()),
        }
    }

    fn spread(i: u8) -> Spread {
        let me = key(i).peer();
        Spread::new(me, RUN, 4, &Streams::new(1, me), Instant::ZERO)
    }

    /// One with more neighbours than few, and what it said to them.
    fn in_a_crowd() -> (Spread, Outbox<Act>) {
        let (mut spread, mut out) = (spread(0), Outbox::new());
        (100..100 + CROWD as u8 + 1).for_each(|i| spread.on_up(Instant::ZERO, key(i).peer(), &mut out));
        (spread, out)
    }

    /// Delivers until nobody has anything to say; returns how many items were new to somebody.
    fn settle(spreads: &mut BTreeMap<PeerId, Spread>, first: Vec<(PeerId, Act)>) -> usize {
        let mut queue = std::collections::VecDeque::from(first);
        let mut new = 0;
        while let Some((at, act)) = queue.pop_front() {
            match act {
                Act::Send { to, frame } => {
                    let mut out = Outbox::new();
                    if let Some(spread) = spreads.get_mut(&to) {
                        spread.on_frame(Instant::ZERO, Utc(1_000_000), at, frame, &mut out);
                    }
                    queue.extend(out.drain().map(|act| (to, act)));
                }
                Act::New { .. } => new += 1,
                Act::Blame { why, .. } => panic!("{why}"),
                Act::Expired { .. } => {}
            }
        }
        new
    }

    #[test]
    fn an_item_reaches_everybody_along_a_chain() {
        let mut spreads: BTreeMap<PeerId, Spread> = (0..9).map(|i| (key(i).peer(), spread(i))).collect();
        let mut acts = Vec::new();
        for i in 0..8 {
            for (a, b) in [(i, i + 1), (i + 1, i)] {
                let mut out = Outbox::new();
                let at = key(a).peer();
                spreads.get_mut(&at).expect("made above").on_up(Instant::ZERO, key(b).peer(), &mut out);
                acts.extend(out.drain().map(|act| (at, act)));
            }
        }
        assert_eq!(settle(&mut spreads, acts), 0);
        let mut out = Outbox::new();
        let at = key(0).peer();
        let signed = item(1).sign(&key(0));
        spreads.get_mut(&at).expect("made above").publish(Instant::ZERO, signed, item(1), &mut out);
        let acts = out.drain().map(|act| (at, act)).collect();
        assert_eq!(settle(&mut spreads, acts), 9);
    }

    #[test]
    fn among_many_numbers_leave_together_and_what_changes_things_at_once() {
        let (mut spread, mut out) = in_a_crowd();
        let offer = |sequence: u32, state: State, speed_milli: u64| {
            let stages = vec![StageOffer { stage: 1, state, round: 0, own_step: 0, speed_milli, carries_milli: 0 }];
            Item { what: What::Offer(Offer { stages, ..Offer::default() }), ..item(sequence) }
        };
        let mut hear = |spread: &mut Spread, author: u8, item: Item| {
            out.drain().for_each(drop);
            let items = vec![item.sign(&key(author)).into()];
            spread.on_frame(Instant::ZERO, Utc(1_000_000), key(100).peer(), Frame::Items(Items { items }), &mut out);
            out.drain().filter(|act| matches!(act, Act::Send { .. })).count()
        };
        assert_eq!(hear(&mut spread, 1, offer(1, State::Joining, 0)), FANOUT, "unknown");
        for author in 1..4 {
            assert_eq!(hear(&mut spread, author, offer(2, State::Serving, 5)), 0, "it follows closely");
            assert_eq!(hear(&mut spread, author, offer(3, State::Serving, 6)), 0, "it is a little faster");
            assert_eq!(hear(&mut spread, author, offer(4, State::Serving, 7)), 0);
        }
        // The newest word of each, in one frame for each of three.
        spread.digest_at = Instant::ZERO + Duration::from_secs(9);
        let mut out = Outbox::new();
        assert_eq!(spread.deadline(), Some(Instant::ZERO + RUSH));
        spread.on_tick(Instant::ZERO + RUSH, &mut out);
        let frames: Vec<Vec<u32>> = out
            .drain()
            .map(|act| match act {
                Act::Send { frame: Frame::Items(items), .. } => items.items,
                other => panic!("{other:?}"),
            })
            .map(|items| items.iter().map(|signed| Item::peek(signed).unwrap().stamp.sequence).collect())
            .collect();
        // Who told me of it hears nothing back.
        assert!((FANOUT_OF_MANY - 1..=FANOUT_OF_MANY).contains(&frames.len()));
        assert!(frames.iter().all(|sequences| *sequences == [4, 4, 4]), "{frames:?}");
        spread.on_tick(Instant::ZERO + 2 * RUSH, &mut out);
        assert!(out.is_empty());
        // Numbers wait longer than news.
        let later = Instant::ZERO + NUMBERS_EVERY;
        spread.numbers_at = later + NUMBERS_EVERY;
        let frame = |item: Item| Frame::Items(Items { items: vec![item.sign(&key(1)).into()] });
        spread.on_frame(later, Utc(1_000_000), key(100).peer(), frame(offer(5, State::Serving, 8)), &mut out);
        spread.on_frame(later, Utc(1_000_000), key(100).peer(), frame(offer(6, State::Draining, 8)), &mut out);
        spread.on_frame(later, Utc(1_000_000), key(100).peer(), frame(offer(7, State::Draining, 9)), &mut out);
        let sends = |out: &mut Outbox<Act>| out.drain().filter(|act| matches!(act, Act::Send { .. })).count();
        assert!(
            spread.items.waiting(Kind::Numbers) == 1 && sends(&mut out) == FANOUT,
            "the news leaves, later numbers do not"
        );
        spread.on_tick(later + RUSH, &mut out);
        assert_eq!(sends(&mut out), 0);
        spread.on_tick(later + NUMBERS_EVERY, &mut out);
        assert!(sends(&mut out) >= FANOUT - 1);
    }

    #[test]
    fn among_few_numbers_leave_together_too() {
        let (mut spread, mut out) = (spread(0), Outbox::new());
        (100..104).for_each(|i| spread.on_up(Instant::ZERO, key(i).peer(), &mut out));
        let mut told = |sequence: u32, draining: bool, out: &mut Outbox<Act>| {
            out.drain().for_each(drop);
            let state = if draining { State::Draining } else { State::Serving };
            for author in 1..4 {
                let stages = vec![StageOffer {
                    stage: 1,
                    state,
                    round: sequence,
                    own_step: 0,
                    speed_milli: 1,
                    carries_milli: 0,
                }];
                let item = Item { what: What::Offer(Offer { stages, ..Offer::default() }), ..item(sequence) };
                let items = vec![item.sign(&key(author)).into()];
                spread.on_frame(Instant::ZERO, Utc(1_000_000), key(100).peer(), Frame::Items(Items { items }), out);
            }
            let frames = out.drain().filter(|act| matches!(act, Act::Send { frame: Frame::Items(_), .. })).count();
            (frames, spread.items.waiting(Kind::Numbers))
        };
        // Each to the three that did not tell it.
        assert_eq!(told(1, false, &mut out), (9, 0));
        let (frames, waiting) = told(2, false, &mut out);
        assert_eq!((frames, waiting), (2, 2), "the first leaves and the others wait");
        assert_eq!(told(3, false, &mut out), (0, 3));
        assert_eq!(told(4, true, &mut out).0, 9, "news leaves at once");
    }

    #[test]
    fn what_all_neighbours_say_is_not_told_on() {
        let (mut spread, mut out) = in_a_crowd();
        spread.news_at = Instant::ZERO + RUSH;
        spread.digest_at = Instant::ZERO + Duration::from_secs(9);
        out.drain().for_each(drop);
        let frame = |author: u8| Frame::Items(Items { items: vec![item(1).sign(&key(author)).into()] });
        for from in 100..100 + HEARD as u8 {
            spread.on_frame(Instant::ZERO, Utc(1_000_000), key(from).peer(), frame(1), &mut out);
        }
        // One neighbour that says it again and again silences nobody, nor one that leaves and comes meanwhile.
        for _ in 0..10 * HEARD {
            spread.on_frame(Instant::ZERO, Utc(1_000_000), key(100).peer(), frame(2), &mut out);
            spread.on_lost(Instant::ZERO, key(100).peer(), None);
            spread.on_up(Instant::ZERO, key(100).peer(), &mut out);
        }
        out.drain().for_each(drop);
        spread.on_tick(Instant::ZERO + RUSH, &mut out);
        assert!(!out.is_empty());
        for act in out.drain() {
            let Act::Send { to, frame: Frame::Items(items) } = act else { panic!("{act:?}") };
            assert!(to != key(100).peer() && items.items.iter().all(|item| item.by == key(2).peer()), "{items:?}");
        }
    }

    #[test]
    fn what_is_forgotten_while_it_waits_wakes_nobody() {
        let (mut spread, mut out) = in_a_crowd();
        spread.news_at = Instant::ZERO + RUSH;
        let items = vec![item(1).sign(&key(100)).into()];
        spread.on_frame(Instant::ZERO, Utc(1_000_000), key(101).peer(), Frame::Items(Items { items }), &mut out);
        assert_eq!(spread.deadline(), Some(Instant::ZERO + RUSH));
        spread.on_lost(Instant::ZERO, key(100).peer(), None);
        assert_eq!(spread.deadline(), None);
    }

    #[test]
    fn forged_old_and_foreign_items_are_not_taken() {
        let mut spread = spread(0);
        let mut out = Outbox::new();
        let from = key(5).peer();
        let mut forged = item(1).sign(&key(1));
        forged.by = key(2).peer();
        let mut say = |spread: &mut Spread, signed: Signed| {
            out.drain().for_each(drop);
            spread.on_frame(
                Instant::ZERO,
                Utc(1_000_000),
                from,
                Frame::Items(Items { items: vec![signed.into()] }),
                &mut out,
            );
            out.drain().collect::<Vec<_>>()
        };
        assert!(matches!(say(&mut spread, forged)[..], [Act::Blame { severity: Severity::Hostile, .. }]));
        assert_eq!(say(&mut spread, item(2).sign(&key(1))).len(), 1, "taken");
        assert!(say(&mut spread, item(2).sign(&key(1))).is_empty(), "nothing new");
        assert!(say(&mut spread, item(1).sign(&key(1))).is_empty(), "older");
        let stale = Item { made_at: Utc(800_000), ..item(9) };
        assert!(say(&mut spread, stale.sign(&key(1))).is_empty(), "made too long ago");
        let foreign = Item { run: hash::Digest([9; 32]), ..item(9) };
        assert!(matches!(say(&mut spread, foreign.sign(&key(1)))[..], [Act::Blame { .. }]));
    }

    #[test]
    fn an_expired_item_does_not_come_back() {
        let mut spread = spread(0);
        let mut out = Outbox::new();
        let from = key(5).peer();
        let frame = || Frame::Items(Items { items: vec![item(3).sign(&key(1)).into()] });
        spread.on_frame(Instant::ZERO, Utc(1_000_000), from, frame(), &mut out);
        let later = Instant::ZERO + Duration::from_secs(61);
        spread.on_tick(later, &mut out);
        out.drain().for_each(drop);
        spread.on_frame(later, Utc(1_061_000), from, frame(), &mut out);
        assert!(out.is_empty());
    }

    fn held(stage: u16, sequence: u32) -> Item {
        let version = Version { stage, ..Version::default() };
        Item { what: What::Held(Held { version, root: hash::Digest([0; 32]), len: 1 }), ..item(sequence) }
    }

    /// `n` authors' items, one each, in `spread`, as if a neighbour had sent them.
    fn fill(spread: &mut Spread, authors: Range<u32>) {
        let mut out = Outbox::new();
        for n in authors {
            let mut secret = [0; 32];
            secret[..4].copy_from_slice(&n.to_le_bytes());
            let items = vec![item(1).sign(&Key::from_secret(secret)).into()];
            let from = key(9).peer();
            spread.on_frame(Instant::ZERO, Utc(1_000_000), from, Frame::Items(Items { items }), &mut out);
            out.drain().for_each(drop);
        }
        // Told to nobody, since nobody is there.
        spread.tell_when_due(Instant::ZERO + RUSH, &mut out);
        assert!(out.is_empty() && spread.items.waiting(Kind::News) == 0);
    }

    #[test]
    fn digests_of_many_items_bring_what_is_missing_and_nothing_else() {
        let (a, b) = (key(100).peer(), key(101).peer());
        let mut spreads = BTreeMap::from([(a, spread(100)), (b, spread(101))]);
        fill(spreads.get_mut(&a).expect("made above"), 0..2000);
        fill(spreads.get_mut(&b).expect("made above"), 30..2030);
        let mut out = Outbox::new();
        for (at, peer) in [(a, b), (b, a)] {
            let neighbour: &mut Spread = spreads.get_mut(&at).expect("made above");
            neighbour.neighbours.push(peer);
        }
        let (mut sent, mut asked) = (0, 0);
        for digest in 0..8 {
            let now = Instant::ZERO + DIGEST_EVERY * (digest * DIGEST_SLOWEST) as u32;
            for at in [a, b] {
                spreads.get_mut(&at).expect("made above").on_tick(now, &mut out);
                let mut queue: Vec<_> = out.drain().map(|act| (at, act)).collect();
                while let Some((at, act)) = queue.pop() {
                    let Act::Send { to, frame } = act else { continue };
                    match &frame {
                        Frame::Items(items) => sent += items.items.len(),
                        Frame::Want(want) => asked += want.keys.len(),
                        Frame::Digest(digest) => assert!(digest.entries.len() <= KEYS_MAX),
                    }
                    let spread = spreads.get_mut(&to).expect("one of the two");
                    spread.on_frame(now, Utc(1_000_000), at, frame, &mut out);
                    queue.extend(out.drain().map(|act| (to, act)));
                }
            }
        }
        assert!(spreads.values().all(|spread| spread.items.len() == 2030));
        assert!(sent <= 60, "thirty are missing on each side, and {sent} were sent");
        assert!(asked <= 60, "{asked}");
    }

    #[test]
    fn nobody_fills_the_store_with_stages_that_the_run_does_not_have() {
        let mut spread = spread(0);
        let mut out = Outbox::new();
        let from = key(5).peer();
        let mut say = |spread: &mut Spread, item: Item| {
            let frame = Frame::Items(Items { items: vec![item.sign(&key(1)).into()] });
            spread.on_frame(Instant::ZERO, Utc(1_000_000), from, frame, &mut out);
            out.drain().collect::<Vec<_>>()
        };
        for stage in [4, 77, u16::MAX] {
            assert!(matches!(say(&mut spread, held(stage, 1))[..], [Act::Blame { .. }]));
            let offer =
                StageOffer { stage, state: State::Serving, round: 0, own_step: 0, speed_milli: 0, carries_milli: 0 };
            let offer = Offer { stages: vec![offer], ..Offer::default() };
            assert!(matches!(say(&mut spread, Item { what: What::Offer(offer), ..item(1) })[..], [Act::Blame { .. }]));
        }
        assert!(spread.items.is_empty());
        for stage in 0..4 {
            assert!(matches!(say(&mut spread, held(stage, 1))[..], [Act::New { .. }]));
        }
    }

    #[test]
    fn what_is_mine_fits_when_others_filled_the_store() {
        let mut spread = spread(200);
        fill(&mut spread, 0..ITEMS as u32 + 5);
        assert_eq!(spread.items.len(), ITEMS);
        let mut out = Outbox::new();
        spread.on_up(Instant::ZERO, key(1).peer(), &mut out);
        out.drain().for_each(drop);
        spread.publish(Instant::ZERO + 2 * RUSH, held(3, 1).sign(&key(200)), held(3, 1), &mut out);
        let acts: Vec<Act> = out.drain().collect();
        assert!(matches!(acts[..], [Act::Send { .. }, Act::New { .. }]), "told to a neighbour, and known here");
        assert_eq!(spread.items.len(), ITEMS + 1);
    }

    #[test]
    fn what_a_lost_neighbour_offered_comes_back_only_newer() {
        let mut spread = spread(0);
        let mut out = Outbox::new();
        let from = key(5).peer();
        let mut say = |spread: &mut Spread, sequence: u32| {
            let frame = Frame::Items(Items { items: vec![item(sequence).sign(&key(1)).into()] });
            spread.on_frame(Instant::ZERO, Utc(1_000_000), from, frame, &mut out);
            out.drain().filter(|act| matches!(act, Act::New { .. })).count()
        };
        assert_eq!(say(&mut spread, 3), 1);
        spread.on_lost(Instant::ZERO, key(1).peer(), Some(1));
        assert_eq!(say(&mut spread, 3), 0);
        assert_eq!(say(&mut spread, 4), 1);
        spread.on_lost(Instant::ZERO, key(1).peer(), Some(0));
        assert!(!spread.items.is_empty(), "of a newer life");
    }
}
