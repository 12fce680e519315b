//! The libp2p protocols that run, and their settings. In: the configuration. Out: one behaviour for the swarm.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use libp2p::{
    StreamProtocol, allow_block_list, autonat, connection_limits, dcutr, identify,
    identity::Keypair,
    kad, mdns, memory_connection_limits, ping, relay,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
    upnp,
};
use rand::{SeedableRng, rngs::StdRng};

use super::{observed::Observed, plane::Plane, providers::Providers};
use crate::net::{NetConfig, data::Shared, gate::Limits};

/// Peers that speak it are candidates for our routing table.
pub const KADEMLIA: StreamProtocol = StreamProtocol::new("/skein/kad/1");
const IDENTIFY: &str = "/skein/1";
/// Provider records of peers that vanished are gone after this; ours are said again three times within it.
const RECORD_TTL: Duration = Duration::from_secs(30 * 60);
const RECORD_REFRESH: Duration = Duration::from_secs(10 * 60);
const QUERY_TIMEOUT: Duration = Duration::from_secs(20);
const TABLE_REFRESH: Duration = Duration::from_secs(5 * 60);
/// A probe costs the prober up to 100 KB, so there are few.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);

/// Limits stand first: what they refuse costs the others nothing.
#[derive(NetworkBehaviour)]
pub struct Behaviour {
    pub limits: connection_limits::Behaviour,
    pub memory: memory_connection_limits::Behaviour,
    pub blocked: allow_block_list::Behaviour<allow_block_list::BlockedPeers>,
    pub plane: Plane,
    pub identify: identify::Behaviour,
    pub kad: kad::Behaviour<Providers>,
    pub ping: ping::Behaviour,
    pub observed: Observed,
    pub autonat_client: Toggle<autonat::v2::client::Behaviour<StdRng>>,
    pub autonat_server: Toggle<autonat::v2::server::Behaviour<StdRng>>,
    pub relay_client: relay::client::Behaviour,
    pub relay_server: Toggle<relay::Behaviour>,
    pub dcutr: dcutr::Behaviour,
    pub upnp: Toggle<upnp::tokio::Behaviour>,
    pub mdns: Toggle<mdns::tokio::Behaviour>,
}

impl Behaviour {
    pub fn new(key: &Keypair, config: &NetConfig, shared: Arc<Shared>, relay_client: relay::client::Behaviour) -> Self {
        let me = key.public().to_peer_id();
        let limits = &config.limits;
        let outside = !config.offline_loopback;
        let forwarded = config.is_forwarded();
        Behaviour {
            limits: connection_limits::Behaviour::new(connection_counts(limits)),
            memory: memory_connection_limits::Behaviour::with_max_percentage(limits.memory_share),
            blocked: allow_block_list::Behaviour::default(),
            plane: Plane::new(shared),
            identify: identify::Behaviour::new(
                identify::Config::new(IDENTIFY.to_string(), key.public())
                    .with_agent_version(concat!("skein/", env!("CARGO_PKG_VERSION")).to_string())
                    .with_hide_listen_addrs(forwarded)
                    .with_push_listen_addr_updates(true),
            ),
            kad: kademlia(me, limits),
            ping: ping::Behaviour::default(),
            observed: Observed::default(),
            autonat_client: toggle(outside, || {
                let config = autonat::v2::client::Config::default().with_probe_interval(PROBE_INTERVAL);
                autonat::v2::client::Behaviour::new(StdRng::from_rng(&mut rand::rng()), config)
            }),
            autonat_server: toggle(outside, || autonat::v2::server::Behaviour::new(StdRng::from_rng(&mut rand::rng()))),
            relay_client,
            relay_server: toggle(config.relay_server, || relay_server(me, config)),
            dcutr: dcutr::Behaviour::new(me),
            upnp: toggle(outside && config.port_mapping, upnp::tokio::Behaviour::default),
            mdns: Toggle::from(if outside && config.lan { multicast(me) } else { None }),
        }
    }
}

fn toggle<B>(on: bool, behaviour: impl FnOnce() -> B) -> Toggle<B> {
    Toggle::from(on.then(behaviour))
}

fn connection_counts(limits: &Limits) -> connection_limits::ConnectionLimits {
    connection_limits::ConnectionLimits::default()
        .with_max_pending_incoming(Some(limits.connections_pending))
        .with_max_pending_outgoing(Some(limits.connections_pending))
        .with_max_established_incoming(Some(limits.connections_incoming))
        .with_max_established(Some(limits.connections))
        .with_max_established_per_peer(Some(limits.connections_peer))
}

fn kademlia(me: libp2p::PeerId, limits: &Limits) -> kad::Behaviour<Providers> {
    let mut config = kad::Config::new(KADEMLIA);
    config
        .set_query_timeout(QUERY_TIMEOUT)
        .set_replication_factor(NonZeroUsize::new(20).expect("twenty is not zero"))
        .set_provider_record_ttl(Some(RECORD_TTL))
        .set_provider_publication_interval(Some(RECORD_REFRESH))
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_periodic_bootstrap_interval(Some(TABLE_REFRESH))
        // We insert by hand: only peers that speak our protocol, at addresses that are of use.
        .set_kbucket_inserts(kad::BucketInserts::Manual);
    let mut kad =
        kad::Behaviour::with_config(me, Providers::new(me, limits.provided_keys, limits.providers_per_key), config);
    // The automatic mode takes a relay's address for reachability; we decide.
    kad.set_mode(Some(kad::Mode::Client));
    kad
}

fn relay_server(me: libp2p::PeerId, config: &NetConfig) -> relay::Behaviour {
    let limits = &config.limits;
    let settings = relay::Config {
        max_circuit_bytes: limits.relay_bytes,
        max_circuit_duration: limits.relay_duration,
        max_circuits: limits.relay_circuits,
        ..relay::Config::default()
    };
    let mut relay = relay::Behaviour::new(me, settings);
    if config.offline_loopback {
        relay.set_status(Some(relay::Status::Enable));
    }
    relay
}

fn multicast(me: libp2p::PeerId) -> Option<mdns::tokio::Behaviour> {
    mdns::tokio::Behaviour::new(mdns::Config::default(), me)
        .inspect_err(|error| tracing::warn!(%error, "peers in the local network cannot be looked for"))
        .ok()
}
