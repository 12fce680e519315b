//! What other peers may say, whoever they are: the wire as SPEC.md describes it, and decoders that survive anything.

mod allocation;
mod corpus;
mod decoders;
mod hostile;
mod samples;
mod spec;
