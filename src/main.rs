//! `skein`: train a language model together, over the open internet.

mod memory;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: memory::Large = memory::Large;

fn main() -> ExitCode {
    ExitCode::from(skein::cli::main())
}
