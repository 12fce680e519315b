//! What other peers may say, whoever they are: the wire as SPEC.md describes it, and decoders that survive anything.

#![allow(clippy::disallowed_methods, reason = "INSTA_UPDATE asks these tests to write what they compare with")]

mod allocation;
mod corpus;
mod decoders;
mod hostile;
#[path = "../../../fuzz/replay.rs"]
mod replay;
mod samples;
mod spec;
