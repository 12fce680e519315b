//! `skein`: train a language model together, over the open internet.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: skein::memory::Large = skein::memory::Large;

fn main() -> ExitCode {
    skein::memory::give_back_large_blocks();
    ExitCode::from(skein::cli::main())
}
