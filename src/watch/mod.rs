//! How people and programs of this machine look at a running peer and ask things of it: a small web server on loopback.
//!
//! In: pictures of the peer ([`State`], through a watch channel). Out: [`Order`]s to the peer, and answers to those who asked.
//! It reads the peer and never decides for it. [`Client`] is the other side, for the commands of another process.

mod client;
mod order;
mod server;
mod state;

pub use self::{
    client::{Client, ClientError},
    order::{ExportForm, ExportNote, ExportRequest, Finish, GenerateRequest, Made, Order, Piece, Refusal},
    server::{ServeError, Server, ServerConfig},
    state::{
        Feeding, Given, Me, MyStage, MyStageState, Pace, PeerStage, PeerState, Phase, RunState, StageState, State,
        Waiting,
    },
};
