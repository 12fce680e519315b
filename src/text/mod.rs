//! Text and token ids: the tokenizer and the chat template that belong to a model, and examples to learn from.
//!
//! In: the text files beside a model's weights, messages, strings. Out: token ids, which of them are learned, and text again.
//! Knows no run, no peer and no data set.

pub mod chat;
mod decoder;
mod example;
mod files;
mod generation;
mod guard;
mod json;
mod template;
mod tokenizer;

pub use chat::{ChatError, Learn};
pub use decoder::Decoder;
pub use example::{Example, Piece};
pub use files::{Files, TextError};
pub use guard::is_guarded;
pub use template::{ChatTemplate, Message, TemplateError};
pub use tokenizer::{Special, Tokenizer};

#[cfg(test)]
mod golden;
