//! `skein`: train a language model together, over the open internet.
fn main() {}
