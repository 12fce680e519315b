//! `skein`: train a language model together, over the open internet.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(skein::cli::main())
}
