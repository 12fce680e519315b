//! Talking with a model: one engine under the terminal and the HTTP API, which knows neither.
//!
//! In: a conversation or a text, and how to choose. Out: pieces of text as they become certain, and why they end. A [`Model`] is
//! asked through one of two backends: a `folder` whose weights are in this process, or the `swarm` of the peer that runs
//! here.

mod ask;
mod batch;
mod folder;
mod model;
pub(crate) mod sampler;
mod session;
mod stops;
mod swarm;

pub use ask::{Ask, Backend, End, Likely, Piece, Prompt, Said, Token, Trouble, Why};
pub use batch::Limits;
pub use folder::OpenError;
pub use model::{Model, Template};
pub use sampler::{Sampler, Sampling, Taste};

#[cfg(test)]
mod tests;
