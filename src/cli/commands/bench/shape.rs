//! The model that a bench measures. In: a preset and what was said otherwise. Out: a manifest.

use skein_protocol::{Manifest, run::preset::preset};

use crate::cli::{
    args::BenchShape,
    commands::train::no_preset,
    failure::{Failure, Report},
};

/// The preset with what was said otherwise.
pub fn manifest(args: &BenchShape) -> Result<Manifest, Report> {
    let mut manifest = preset(&args.preset).ok_or_else(|| no_preset(&args.preset))?;
    let (config, train) = (&mut manifest.model.config, &mut manifest.train);
    let sizes = [
        (args.hidden, &mut config.hidden),
        (args.layers, &mut config.layers),
        (args.ffn, &mut config.ffn),
        (args.vocab, &mut config.vocab),
        (args.sequence, &mut train.sequence),
        (args.batch, &mut train.micro_batch),
    ];
    for (given, size) in sizes {
        *size = given.unwrap_or(*size);
    }
    if let Some(heads) = args.heads {
        (config.heads, config.kv_heads) = (heads, heads);
    }
    config.context = config.context.max(train.sequence);
    let whole =
        config.hidden.checked_rem(config.heads) == Some(0) && config.heads.checked_rem(config.kv_heads) == Some(0);
    if !whole || config.hidden / config.heads % 2 != 0 {
        let message =
            format!("--hidden {} --heads {}: a head has an even number of values", config.hidden, config.heads);
        return Err(Failure::Usage { message }.into());
    }
    Ok(manifest)
}

/// What a table calls it.
pub fn name(args: &BenchShape, manifest: &Manifest) -> String {
    let config = &manifest.model.config;
    let sized = [args.hidden, args.layers, args.heads, args.ffn, args.vocab].iter().any(Option::is_some);
    match sized {
        true => format!("{} wide, {} layers", config.hidden, config.layers),
        false => args.preset.clone(),
    }
}
