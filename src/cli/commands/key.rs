//! `skein key`: who this peer is.

use serde_json::json;

use crate::cli::{args, context::Context, failure::Report, petname};

pub fn run(args: &args::KeyCommand, context: &Context) -> Result<u8, Report> {
    match args {
        args::KeyCommand::Show => show(context),
    }
}

/// Makes the key if there is none, as every command does that needs one.
fn show(context: &Context) -> Result<u8, Report> {
    let identity = context.home.identity()?;
    let (peer, file) = (identity.key.peer(), context.home.key_file());
    let name = petname::of(&peer);
    if context.out.style().json {
        let value = json!({ "peer": peer, "name": name, "path": file, "made_now": identity.made_now });
        context.out.document("key show", &value);
        return Ok(0);
    }
    if identity.made_now {
        context.out.done("this key was made just now; a copy of the file is a copy of the identity");
    }
    context.out.print(&format!("peer  {peer}\nname  {name}\nfile  {}", file.display()));
    Ok(0)
}
