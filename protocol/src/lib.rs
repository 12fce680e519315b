//! What Skein peers say and can prove: identities, time, the signed manifest, events, frames and codecs.
//!
//! Pure: this crate knows no clock, socket, thread, disk or random device. Everything here is a value, a function
//! over values, or a contract ([`machine::Machine`]) that a driver fulfils.

pub mod blob;
pub mod codec;
pub mod event;
pub mod hash;
pub mod id;
pub mod invite;
pub mod key;
pub mod machine;
pub mod rng;
pub mod run;
pub mod slip;
pub mod table;
pub mod time;
pub mod unit;
mod unset;
pub mod wire;

pub use blob::Blob;
pub use id::{Attempt, Incarnation, JobId, Lane, MicroBatchId, PeerId, RunId, Stage, Version};
pub use invite::Invite;
pub use machine::{Machine, Outbox};
pub use run::Manifest;
pub use time::{Instant, Utc};
