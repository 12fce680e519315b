//! One peer of a run: its machines, and the one table that wires them.
//!
//! In: facts from the driver. Out: requests to it. It knows no clock, socket, thread, disk or tensor.

pub mod io;
