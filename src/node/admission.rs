//! Who may take part: asked at a peer's first words. In: who comes from where, whose offers are known. Out: come in, or what it is
//! told. It knows what the manifest says of admission, and no connection.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use skein_protocol::{Manifest, PeerId};

/// What a peer is told that finds no place in the run, or none for its network.
pub const FULL: &str = "the run is full";
pub const CROWDED: &str = "too many peers of one network are in the run";

/// How many others may take part, as the manifest says. Each peer counts whom it knows, so in the moment in which several come
/// at once a few more may slip in at different doors. The owner, its delegates and listed members always find a place.
pub struct Admission {
    manifest: Arc<Manifest>,
    /// Connected peers and the network that each comes from: nothing for private addresses, and behind a relay, which hides it.
    networks: BTreeMap<PeerId, Option<IpAddr>>,
    /// Those of them that were admitted on their present connection.
    admitted: BTreeSet<PeerId>,
}

impl Admission {
    pub fn new(manifest: Arc<Manifest>) -> Self {
        Admission { manifest, networks: BTreeMap::new(), admitted: BTreeSet::new() }
    }

    /// A peer is connected, from this network now.
    pub fn up(&mut self, peer: PeerId, network: Option<IpAddr>) {
        self.networks.insert(peer, network);
    }

    pub fn lost(&mut self, peer: PeerId) {
        self.networks.remove(&peer);
        self.admitted.remove(&peer);
    }

    /// A peer wants to take part. `members` are those whose offers are known: they have their places.
    ///
    /// # Errors
    /// What it is told.
    pub fn admit(&mut self, peer: PeerId, members: impl Iterator<Item = PeerId>) -> Result<(), &'static str> {
        if !self.has_a_place(&peer) && !self.admitted.contains(&peer) {
            self.judge(peer, members)?;
        }
        self.admitted.insert(peer);
        Ok(())
    }

    fn judge(&self, peer: PeerId, members: impl Iterator<Item = PeerId>) -> Result<(), &'static str> {
        let limits = &self.manifest.admission;
        if let Some(network) = self.network(&peer) {
            let same = |other: &&PeerId| self.network(other) == Some(network) && !self.has_a_place(other);
            if self.admitted.iter().filter(same).count() >= limits.per_subnet_max as usize {
                return Err(CROWDED);
            }
        }
        let known: BTreeSet<PeerId> = members.chain(self.admitted.iter().copied()).collect();
        // This peer is one, too.
        if !known.contains(&peer) && known.len() + 1 >= limits.peers_max as usize {
            return Err(FULL);
        }
        Ok(())
    }

    fn network(&self, peer: &PeerId) -> Option<IpAddr> {
        self.networks.get(peer).copied().flatten()
    }

    fn has_a_place(&self, peer: &PeerId) -> bool {
        let Manifest { run, admission, .. } = &*self.manifest;
        run.owner == *peer || run.delegates.contains(peer) || admission.members.contains(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(peers_max: u32, per_subnet_max: u32) -> Admission {
        let mut manifest = super::super::sample_manifest(1);
        (manifest.admission.peers_max, manifest.admission.per_subnet_max) = (peers_max, per_subnet_max);
        Admission::new(Arc::new(manifest))
    }

    fn peer(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    #[test]
    fn a_full_run_admits_its_members_and_its_owner_and_nobody_else() {
        let mut admission = admission(3, 16);
        let owner = super::super::sample_manifest(1).run.owner;
        // I am the first, and two are known by their offers.
        let members = [peer(10), peer(11)];
        for newcomer in [peer(12), peer(13)] {
            assert_eq!(admission.admit(newcomer, members.into_iter()), Err(FULL));
        }
        for known in [peer(10), peer(11), owner] {
            assert_eq!(admission.admit(known, members.into_iter()), Ok(()));
        }
        // One left, and its offer is forgotten: its place is free.
        admission.lost(peer(10));
        admission.lost(owner);
        assert_eq!(admission.admit(peer(12), [peer(11)].into_iter()), Ok(()));
        assert_eq!(admission.admit(peer(12), members.into_iter()), Ok(()), "it said hello again");
        assert_eq!(admission.admit(peer(13), [peer(11)].into_iter()), Err(FULL));
    }

    #[test]
    fn one_network_gets_only_so_many_places_and_private_ones_are_no_network() {
        let mut admission = admission(1000, 2);
        let network = Some(IpAddr::from([203, 0, 113, 0]));
        for n in 10..20 {
            admission.up(peer(n), network);
            admission.up(peer(n + 10), None);
        }
        let mut come = |n| admission.admit(peer(n), [].into_iter());
        assert_eq!([come(10), come(11), come(12)], [Ok(()), Ok(()), Err(CROWDED)]);
        assert!((20..30).all(|n| come(n).is_ok()));
        admission.lost(peer(10));
        assert_eq!(admission.admit(peer(13), [].into_iter()), Ok(()));
        // Who moved to the network counts there.
        admission.up(peer(20), network);
        admission.lost(peer(11));
        assert_eq!(admission.admit(peer(14), [].into_iter()), Err(CROWDED));
    }
}
