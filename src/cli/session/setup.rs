//! What a node is started with. In: the configuration of this machine, and a plan. Out: its [`Setup`], and the device to compute on.

use std::path::PathBuf;

use skein_pipeline::compute::{self, Device};
use skein_protocol::{Manifest, run::Arithmetic, unit};

use super::Plan;
use crate::{
    cli::{
        bug,
        context::Context,
        failure::{Failure, Report},
        show::Bytes,
    },
    config::{self, Lacking, Origin},
    home::file,
    net::Limits,
    node::{Give, NetSetup, Setup, worker::Niceness},
};

/// Event log of one peer.
const EVENTS_KEEP: u64 = 200_000_000;
/// Bodies of others that may lie in memory, as a share of the memory given: at least this.
const BLOBS_MIN: u64 = 256 << 20;

/// Where to compute, and where instead if the run's arithmetic is not that of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    first: Device,
    otherwise: Device,
}

impl Chosen {
    /// The device that the configuration names, if this build has it. Only `auto` may take another one, and says why.
    ///
    /// # Errors
    /// SK123: a device was asked for by name that this build has not. SK124: it is here, and does not compute.
    pub fn look(context: &Context) -> Result<Chosen, Report> {
        let cpu = Device::Cpu { threads: usize::from(context.node.give.thread_count(&context.machine)) };
        match context.node.give.device {
            config::Device::Auto => {
                let (first, broken) = compute::best(cpu);
                for (device, why) in broken {
                    context.out.warn(&format!("computing on the CPU: {device} did not pass its test: {why}"));
                }
                Ok(Chosen { first, otherwise: cpu })
            }
            named => named_device(named, cpu).map(|device| Chosen { first: device, otherwise: device }),
        }
    }

    /// The first device where it has one of the run's arithmetics.
    pub fn of(self, manifest: &Manifest) -> Device {
        let computes = |arithmetic: &Arithmetic| self.first.computes(*arithmetic);
        if manifest.train.arithmetic.iter().any(computes) { self.first } else { self.otherwise }
    }
}

/// The device of that name, if this build has it and it computes; for `auto` the processor `cpu`.
///
/// # Errors
/// SK123 and SK124.
pub fn named_device(named: config::Device, cpu: Device) -> Result<Device, Report> {
    let (device, name, built) = match named {
        config::Device::Cpu | config::Device::Auto => return Ok(cpu),
        config::Device::Cuda(number) => (Device::Cuda(number as usize), "CUDA", cfg!(feature = "cuda")),
        config::Device::Metal => (Device::Metal(0), "Metal", cfg!(feature = "metal")),
    };
    if !built {
        return Err(Failure::NoDevice { device: name.into(), features: bug::features().into() }.into());
    }
    match compute::candle::test(device) {
        Ok(()) => Ok(device),
        Err(error) => Err(Failure::DeviceFails { device: device.to_string(), why: error.to_string() }.into()),
    }
}

/// What was set by hand and this machine cannot give is refused before anything is begun.
///
/// # Errors
/// SK122, SK128, with the most that it could.
pub fn check(context: &Context, command: &str) -> Result<(), Report> {
    let origin = |key| {
        context.settings.get(key).map_or(String::new(), |setting| config::Place(setting.origin.clone()).to_string())
    };
    let lacking = context.node.give.check(&context.machine);
    let failure = lacking.map_err(|lacking| match lacking {
        Lacking::Threads { given, most } => {
            Failure::TooManyThreads { given, most, place: origin("give.threads"), command: command.into() }
        }
        Lacking::Memory { given, most } => Failure::TooMuchMemory {
            given: Bytes(given),
            total: Bytes(most),
            place: origin("give.memory"),
            command: command.into(),
            most: unit::bytes(most >> 20 << 20),
        },
    });
    Ok(failure?)
}

pub fn setup(context: &Context, plan: &Plan) -> Setup {
    let node = &context.node;
    let memory = node.give.memory_bytes(&context.machine);
    let fixed = context.settings.get("net.port").is_some_and(|setting| setting.origin != Origin::Default);
    let listen = node.net.listen.clone();
    let blob_bytes = (memory / 4).max(BLOBS_MIN);
    let loopback = !listen.is_empty() && listen.iter().all(|ip| ip.is_loopback());
    Setup {
        home: context.home.clone(),
        way: plan.way.clone(),
        role: plan.role.clone(),
        net: NetSetup {
            port: node.net.port,
            port_fixed: fixed && node.net.port != 0,
            listen,
            lan: node.net.lan,
            port_mapping: node.net.port_mapping,
            relay_use: node.net.relay_use,
            relay_server: node.net.relay_serve,
            offline_loopback: loopback,
            bootstrap: node.net.bootstrap.clone(),
            announce: node.net.announce.clone(),
            limits: limits(blob_bytes),
        },
        give: Give {
            memory,
            // What stages others ask to be held lies on the disk, which the person has not given whole.
            disk: file::free(context.home.data()).map_or(memory, |free| memory.min(free / 2)),
            blob_bytes,
            niceness: Niceness::Low,
            checkpoints: Some(PathBuf::from(&node.store.path)).filter(|path| !path.as_os_str().is_empty()),
            keep_versions: usize::from(node.store.keep_versions),
            save_every: node.store.checkpoint_every,
        },
        invite: plan.invite.clone(),
        events_keep: EVENTS_KEEP,
        patience: plan.patience,
        keep_trying: plan.keep_trying,
        seed: None,
    }
}

/// What is being read at one time must fit beside what lies in memory already: no more than that may be.
fn limits(blob_bytes: u64) -> Limits {
    let limits = Limits::default();
    let receiving_total = limits.receiving_total.min(blob_bytes);
    Limits { receiving_total, ..limits }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        cli::out::tests::{TERMINAL, on_paper},
        config::{Machine, Settings, Sources},
        home::Home,
        node::{Role, Way},
    };

    fn context(variables: &[(&str, &str)]) -> Context {
        let environment = variables.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
        let settings = Settings::load(&Sources { environment, ..Sources::default() }).unwrap();
        Context {
            out: on_paper(TERMINAL).0,
            home: Home::at("home".as_ref()),
            config_file: "config.toml".into(),
            node: settings.node(),
            settings,
            machine: Machine::look(),
            verbose: false,
        }
    }

    fn plan() -> Plan {
        Plan {
            command: "join",
            way: Way::Known { signed: Vec::new(), meet: Vec::new() },
            role: Role::join(),
            invite: None,
            run: "tiny".into(),
            patience: Duration::from_secs(1),
            keep_trying: true,
            save_to: None,
            owner: false,
            base: None,
            until_stdin_closes: false,
        }
    }

    #[test]
    fn settings_of_the_network_and_the_store_reach_the_node() {
        let usual = setup(&context(&[]), &plan());
        assert!(usual.net.relay_use && usual.net.announce.is_empty() && usual.net.bootstrap.is_empty());
        assert_eq!(usual.give.checkpoints, None);
        let set = context(&[
            ("SKEIN_NET__ANNOUNCE", "203.0.113.7:4747"),
            ("SKEIN_NET__BOOTSTRAP", "192.0.2.1:4747,/dns4/a.example/udp/4747/quic-v1"),
            ("SKEIN_NET__RELAY_USE", "false"),
            ("SKEIN_STORE__PATH", "/mnt/large"),
        ]);
        let setup = setup(&set, &plan());
        assert_eq!(setup.net.announce, ["/ip4/203.0.113.7/udp/4747/quic-v1".parse().unwrap()]);
        assert_eq!(setup.net.bootstrap.len(), 2);
        assert!(!setup.net.relay_use);
        assert_eq!(setup.give.checkpoints, Some("/mnt/large".into()));
    }

    #[test]
    fn no_more_is_read_at_one_time_than_may_lie_in_memory() {
        assert_eq!(limits(BLOBS_MIN / 4).receiving_total, BLOBS_MIN / 4);
        assert_eq!(limits(64 << 30).receiving_total, 1 << 30);
    }

    #[test]
    fn the_automatic_device_is_one_that_computes_the_runs_arithmetic() {
        let chosen = Chosen::look(&context(&[("SKEIN_GIVE__THREADS", "3")])).unwrap();
        let mut manifest = skein_protocol::run::preset("tiny").unwrap();
        if !cfg!(any(feature = "cuda", feature = "metal")) {
            assert_eq!(chosen.of(&manifest), Device::Cpu { threads: 3 });
        }
        manifest.train.arithmetic = vec![Arithmetic::Repeatable];
        assert_eq!(chosen.of(&manifest), Device::Cpu { threads: 3 });
        #[cfg(not(feature = "cuda"))]
        {
            let named = Chosen::look(&context(&[("SKEIN_GIVE__DEVICE", "cuda:1")])).unwrap_err();
            assert_eq!((named.failure.code(), named.exit()), ("SK123", 2));
        }
        // No machine has so many cards.
        #[cfg(feature = "cuda")]
        {
            let named = Chosen::look(&context(&[("SKEIN_GIVE__DEVICE", "cuda:4000")])).unwrap_err();
            assert_eq!((named.failure.code(), named.exit()), ("SK124", 4));
        }
    }
}
