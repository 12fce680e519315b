//! Writes the reference models as Hugging Face folders: `cargo run -p skein-pipeline --features compute --example reference DIR`.
//! `pipeline/tests/reference/logits.py` reads them.

#[path = "../tests/reference/models.rs"]
mod models;

use std::{env, error::Error, fs, path::PathBuf};

use skein_pipeline::compute::hf;

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::args_os().nth(1).ok_or("which folder?")?);
    for name in ["untied", "tied", "split"] {
        let folder = out.join(name);
        fs::create_dir_all(&folder)?;
        hf::write(&folder, skein_protocol::run::Family::Llama, &models::stages(name))?;
    }
    let tokens: Vec<String> = models::TOKENS.iter().map(u32::to_string).collect();
    fs::write(out.join("tokens"), tokens.join(" "))?;
    Ok(())
}
