//! What surrounds the peers: links, connections, a directory, disks, stores of bytes, data. It knows nothing of training.

pub mod data;
pub mod directory;
pub mod disk;
pub mod network;
pub mod payload;
pub mod store;

pub use data::Corpus;
pub use disk::Disk;
pub use network::{Access, Network};
pub use payload::{Content, Payload};
pub use store::Store;
