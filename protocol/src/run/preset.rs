//! Manifests that come with the program, from `configs/run`: a name in, a Manifest without an owner out.

use super::{manifest::Manifest, text};

/// From the smallest to the largest.
pub const PRESETS: [&str; 4] = ["demo", "tiny", "small-124m", "350m"];

/// The text of a preset, comments included.
pub fn preset_text(name: &str) -> Option<&'static str> {
    Some(match name {
        "demo" => include_str!("../../../configs/run/demo.toml"),
        "tiny" => include_str!("../../../configs/run/tiny.toml"),
        "small-124m" => include_str!("../../../configs/run/small-124m.toml"),
        "350m" => include_str!("../../../configs/run/350m.toml"),
        _ => return None,
    })
}

/// A preset's Manifest; its owner is all zeros until who starts the run fills it in.
pub fn preset(name: &str) -> Option<Manifest> {
    Some(text::parse(preset_text(name)?, None).expect("a preset is clean").manifest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::check::check;

    #[test]
    fn every_preset_is_clean_and_has_the_name_of_its_file() {
        for name in PRESETS {
            let manifest = preset(name).unwrap();
            assert_eq!((manifest.run.name.as_str(), check(&manifest)), (name, vec![]));
        }
        assert_eq!(preset("unknown"), None);
    }

    #[test]
    fn presets_have_the_sizes_that_their_names_say() {
        let millions = |name| {
            let c = preset(name).unwrap().model.config;
            let (d, f, kv) = (c.hidden as u64, c.ffn as u64, (c.hidden / c.heads * c.kv_heads) as u64);
            let layer = 2 * d * (d + kv) + 3 * d * f + 2 * d;
            (u64::from(c.layers) * layer + 2 * u64::from(c.vocab) * d + d) as f64 / 1e6
        };
        for (name, wanted) in [("demo", 1.0), ("tiny", 10.0), ("small-124m", 124.0), ("350m", 350.0)] {
            let got = millions(name);
            assert!((got / wanted - 1.0).abs() < 0.1, "{name} has {got} M parameters");
        }
    }
}
