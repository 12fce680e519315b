//! What peers send to a worker, whoever they are: states of stages and bodies of rounds, decoded from anything.

#![allow(clippy::disallowed_methods, reason = "INSTA_UPDATE asks these tests to write what they compare with")]

#[path = "../../../protocol/tests/it/allocation.rs"]
mod allocation;
mod corpus;
mod decoders;
mod hostile;
#[path = "../../../fuzz/replay.rs"]
mod replay;
