//! What a person types and sees.

pub mod bug;
pub mod catalogue;
pub mod failure;
pub mod glossary;
pub mod logs;
pub mod out;
pub mod petname;
pub mod progress;
pub mod show;
pub mod table;
