//! GGUF files, as llama.cpp reads and writes them: a model out for it, and one of its models in. In: stages, their weights and the text
//! files beside them, or a file. Out: one file, or a checkpoint of our families.
//!
//! A file is a table of values, a table of tensors, and the tensors. It is strange data: every length is held against what is left of
//! the file before anything is reserved for it.

mod container;
mod facts;
mod names;
mod read;
mod words;
mod write;

pub use self::{read::Gguf, write::write_gguf};

/// How the matrices of a file are kept. Vectors, which are few, are always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kept {
    F32,
    F16,
    #[default]
    Bf16,
    /// Blocks of 32 values in 8 bits each, with one f16 beside them; f16 where rows do not come out even.
    Q8,
}

/// Types of tensors as the format numbers them.
mod kind {
    pub const F32: u32 = 0;
    pub const F16: u32 = 1;
    pub const Q8_0: u32 = 8;
    pub const BF16: u32 = 30;
}

/// Values of a block of [`Kept::Q8`], and the bytes that it takes.
const Q8_BLOCK: usize = 32;
const Q8_BYTES: usize = 34;

#[cfg(test)]
mod tests;
