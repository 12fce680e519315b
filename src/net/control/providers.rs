//! What we store of the distributed hash table: who provides a key. Full means that the expired and then the oldest go, so
//! that a stage whose replicas come and go is never filled with the dead, and a refresh is never refused.
//! Values are not stored: the table carries membership, never numbers. Knows no network.

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    time::Instant,
};

use libp2p::{
    PeerId,
    kad::{
        ProviderRecord, Record, RecordKey,
        store::{Error, RecordStore, Result},
    },
};

/// Addresses that are kept of one provider.
const ADDRESSES: usize = 8;
/// Keys under which one peer may stand: stages of a run and their shards, not a flood.
const KEYS_PER_PROVIDER: usize = 64;

pub struct Providers {
    me: PeerId,
    keys: HashMap<RecordKey, Vec<ProviderRecord>>,
    /// The keys of each provider but us, in the order in which they came.
    of: HashMap<PeerId, VecDeque<RecordKey>>,
    keys_max: usize,
    per_key_max: usize,
}

impl Providers {
    pub fn new(me: PeerId, keys_max: usize, per_key_max: usize) -> Providers {
        Providers { me, keys: HashMap::new(), of: HashMap::new(), keys_max, per_key_max }
    }

    /// The key whose newest record is the oldest, none of ours among them.
    fn oldest_key(&self) -> Option<RecordKey> {
        let newest = |records: &[ProviderRecord]| records.iter().map(|record| record.expires).max().flatten();
        let others = self.keys.iter().filter(|(_, records)| records.iter().all(|record| record.provider != self.me));
        others.min_by_key(|(_, records)| newest(records)).map(|(key, _)| key.clone())
    }

    fn make_room(&mut self, record: &ProviderRecord) {
        if self.of.get(&record.provider).is_some_and(|keys| keys.len() >= KEYS_PER_PROVIDER)
            && let Some(key) = self.of.get(&record.provider).and_then(|keys| keys.front().cloned())
        {
            self.remove_provider(&key, &record.provider);
        }
        match self.keys.get(&record.key) {
            None if self.keys.len() >= self.keys_max => {
                let Some(key) = self.oldest_key() else { return };
                for gone in self.keys.get(&key).into_iter().flatten().map(|record| record.provider).collect::<Vec<_>>()
                {
                    self.remove_provider(&key, &gone);
                }
            }
            Some(records) if records.len() >= self.per_key_max => {
                // Records expire in the order in which they were refreshed.
                let others = records.iter().filter(|known| known.provider != self.me);
                if let Some(oldest) = others.min_by_key(|known| known.expires).map(|known| known.provider) {
                    self.remove_provider(&record.key, &oldest);
                }
            }
            _ => {}
        }
    }
}

impl RecordStore for Providers {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = std::vec::IntoIter<Cow<'a, ProviderRecord>>;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, mut record: ProviderRecord) -> Result<()> {
        record.addresses.truncate(ADDRESSES);
        let known = self.keys.get_mut(&record.key).and_then(|r| r.iter_mut().find(|r| r.provider == record.provider));
        if let Some(known) = known {
            *known = record;
            return Ok(());
        }
        self.make_room(&record);
        if !self.keys.contains_key(&record.key) && self.keys.len() >= self.keys_max {
            return Err(Error::MaxProvidedKeys);
        }
        if record.provider != self.me {
            self.of.entry(record.provider).or_default().push_back(record.key.clone());
        }
        self.keys.entry(record.key.clone()).or_default().push(record);
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let now = Instant::now();
        let records = self.keys.get(key).into_iter().flatten();
        let mut living: Vec<_> = records.filter(|record| !record.is_expired(now)).cloned().collect();
        // An answer holds the first twenty: those refreshed last are the likeliest to live.
        living.sort_by_key(|record| (record.expires.is_some(), std::cmp::Reverse(record.expires)));
        living
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        let ours = self.keys.values().flatten().filter(|record| record.provider == self.me);
        ours.map(Cow::Borrowed).collect::<Vec<_>>().into_iter()
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        if let Some(records) = self.keys.get_mut(key) {
            records.retain(|record| record.provider != *provider);
            if records.is_empty() {
                self.keys.remove(key);
            }
        }
        if let Some(keys) = self.of.get_mut(provider) {
            keys.retain(|known| known != key);
            if keys.is_empty() {
                self.of.remove(provider);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn key(n: u32) -> RecordKey {
        RecordKey::new(&n.to_le_bytes())
    }

    fn record(n: u32, provider: PeerId, expires: Instant) -> ProviderRecord {
        ProviderRecord { key: key(n), provider, expires: Some(expires), addresses: Vec::new() }
    }

    #[test]
    fn a_full_key_forgets_the_oldest_and_never_refuses_a_refresh() {
        let now = Instant::now() + Duration::from_secs(100);
        let mut store = Providers::new(PeerId::random(), 8, 4);
        let peers: Vec<PeerId> = (0..6).map(|_| PeerId::random()).collect();
        for (age, peer) in peers[..4].iter().enumerate() {
            assert!(store.add_provider(record(1, *peer, now + Duration::from_secs(age as u64))).is_ok());
        }
        assert!(store.add_provider(record(1, peers[0], now + Duration::from_secs(50))).is_ok());
        assert!(store.add_provider(record(1, peers[4], now + Duration::from_secs(51))).is_ok());
        let known: Vec<PeerId> = store.providers(&key(1)).iter().map(|record| record.provider).collect();
        assert_eq!(known, [peers[4], peers[0], peers[3], peers[2]], "the newest first, the oldest gone");
    }

    #[test]
    fn a_full_store_forgets_the_oldest_key_but_never_ours() {
        let (now, me) = (Instant::now() + Duration::from_secs(100), PeerId::random());
        let mut store = Providers::new(me, 3, 4);
        let ours = ProviderRecord { key: key(0), provider: me, expires: None, addresses: Vec::new() };
        assert!(store.add_provider(ours).is_ok());
        for n in 1..10 {
            assert!(store.add_provider(record(n, PeerId::random(), now + Duration::from_secs(n.into()))).is_ok());
        }
        assert_eq!(store.provided().count(), 1);
        let left: Vec<u32> = (0..10).filter(|n| !store.providers(&key(*n)).is_empty()).collect();
        assert_eq!(left, [0, 8, 9]);
        assert_eq!(store.of.len(), 2);
    }

    #[test]
    fn one_provider_cannot_flood_the_store_and_the_expired_do_not_answer() {
        let now = Instant::now();
        let (one, other) = (PeerId::random(), PeerId::random());
        let mut store = Providers::new(PeerId::random(), 100, 4);
        assert!(store.add_provider(record(0, other, now + Duration::from_secs(1000))).is_ok());
        for n in 1..500 {
            assert!(store.add_provider(record(n, one, now + Duration::from_secs(2000))).is_ok());
        }
        assert_eq!(store.keys.len(), 1 + KEYS_PER_PROVIDER);
        assert!(store.add_provider(record(1000, other, now)).is_ok());
        assert!(store.providers(&key(1000)).is_empty());
    }
}
