//! A handle to bytes that the driver holds. Machines move handles, drivers move bytes.

use serde::{Deserialize, Serialize};

/// Bytes in the driver's store: `id` is local to one peer, `len` is in bytes. The machine that holds a handle owes a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Blob {
    pub id: u64,
    pub len: u64,
}
