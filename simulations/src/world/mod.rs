//! What surrounds the peers: links, connections, a directory, disks, stores of bytes, data; and the tables of what machines,
//! accesses, regions and courses of churn there are. It knows nothing of training.

pub mod access;
pub mod adversary;
pub mod churn;
pub mod data;
pub mod devices;
pub mod directory;
pub mod disk;
pub mod draw;
pub mod network;
pub mod payload;
pub mod prices;
pub mod regions;
pub mod store;
pub mod trace;
pub mod unit;

pub use data::Corpus;
pub use disk::Disk;
pub use network::{Access, Fill, Network, Relay, Sharing};
pub use payload::{Content, Payload};
pub use store::Store;

/// A table that comes with the program.
pub(crate) fn table<T: serde::de::DeserializeOwned>(text: &'static str) -> T {
    toml::from_str(text).expect("the program's own tables are clean: their tests read them")
}
