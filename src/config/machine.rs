//! What this computer has, and what `auto` means on it. In: the operating system's figures. Out: bytes and threads, with the reason.

use super::{Give, Memory};

const GIB: u64 = 1 << 30;
const MEMORY_MIN: u64 = 512 << 20;

/// Figures at the start of the process. Limits of a container count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    pub memory_total: u64,
    pub memory_free: u64,
    /// Cores that exist and that this process may use.
    pub cores: u16,
    /// Threads that can run at one time: what the affinity of this process and the limit of its container leave.
    pub threads: u16,
}

/// What was asked for and this machine has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacking {
    Threads { given: u16, most: u16 },
    Memory { given: u64, most: u64 },
}

impl Machine {
    pub fn look() -> Machine {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        let (mut total, mut free) = (system.total_memory(), system.available_memory());
        if let Some(limits) = system.cgroup_limits() {
            total = total.min(limits.total_memory);
            // What a container's files take in the cache of the system is given back when somebody needs it.
            free = free.min(limits.free_memory.max(total.saturating_sub(limits.rss)));
        }
        let allowed = std::thread::available_parallelism().map_or(1, usize::from);
        let physical = sysinfo::System::physical_core_count().unwrap_or(allowed);
        let count = |n: usize| u16::try_from(n.max(1)).unwrap_or(u16::MAX);
        let (cores, threads) = (count(allowed.min(physical)), count(allowed));
        Machine { memory_total: total, memory_free: free, cores, threads }
    }
}

impl Give {
    /// Bytes for stages.
    pub fn memory_bytes(&self, machine: &Machine) -> u64 {
        match self.memory {
            Memory::Bytes(bytes) => bytes,
            Memory::Auto => (machine.memory_total / 2).min(machine.memory_free.saturating_sub(2 * GIB)).max(MEMORY_MIN),
        }
    }

    /// Whether this machine has what was set by hand.
    ///
    /// # Errors
    /// What it lacks, and the most that it has.
    pub fn check(&self, machine: &Machine) -> Result<(), Lacking> {
        if self.threads > machine.threads {
            return Err(Lacking::Threads { given: self.threads, most: machine.threads });
        }
        match self.memory {
            Memory::Bytes(given) if given > machine.memory_total => {
                Err(Lacking::Memory { given, most: machine.memory_total })
            }
            Memory::Bytes(_) | Memory::Auto => Ok(()),
        }
    }

    /// Threads for computing.
    pub fn thread_count(&self, machine: &Machine) -> u16 {
        match self.threads {
            0 => (machine.cores - 1).max(1),
            threads => threads,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, Sources};

    fn machine(total: u64, free: u64, cores: u16, threads: u16) -> Machine {
        Machine { memory_total: total * GIB, memory_free: free * GIB, cores, threads }
    }

    #[test]
    fn what_the_machine_has_is_the_most_that_can_be_given() {
        let give =
            |memory, threads| Give { memory, threads, ..Settings::load(&Sources::default()).unwrap().node().give };
        let machine = machine(16, 1, 4, 8);
        for fits in [give(Memory::Auto, 0), give(Memory::Bytes(16 * GIB), 8)] {
            assert_eq!(fits.check(&machine), Ok(()));
        }
        let lacks = |memory, threads| give(memory, threads).check(&machine).unwrap_err();
        assert_eq!(lacks(Memory::Auto, 9), Lacking::Threads { given: 9, most: 8 });
        let given = 16 * GIB + 1;
        assert_eq!(lacks(Memory::Bytes(given), 1), Lacking::Memory { given, most: 16 * GIB });
    }

    #[test]
    fn auto_leaves_room_for_the_owner() {
        let give = Settings::load(&Sources::default()).unwrap().node().give;
        let machine = |total, free, cores| machine(total, free, cores, cores);
        assert_eq!(give.memory_bytes(&machine(16, 9, 8)), 7 * GIB);
        assert_eq!(give.memory_bytes(&machine(16, 14, 8)), 8 * GIB);
        assert_eq!(give.memory_bytes(&machine(2, 1, 8)), MEMORY_MIN);
        assert_eq!(give.thread_count(&machine(16, 9, 8)), 7);
        assert_eq!(give.thread_count(&machine(16, 9, 1)), 1);
    }

    #[test]
    fn this_machine_has_something() {
        let machine = Machine::look();
        assert!(machine.memory_total > 0 && machine.memory_free <= machine.memory_total);
        assert!(machine.cores > 0 && machine.threads >= machine.cores);
    }
}
