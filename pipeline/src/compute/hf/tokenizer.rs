//! The byte tokenizer as files for other programs: a byte-level BPE without merges, whose 256 ids are the bytes themselves.

use serde_json::{Value, json};
use skein_protocol::run::ModelConfig;

/// `tokenizer.json`. Its alphabet writes each byte as one printable character: those that are printable in Latin-1 as themselves,
/// the others from U+0100 on, in order.
pub fn bytes() -> Value {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let mut vocabulary = serde_json::Map::new();
    for byte in 0..256u32 {
        let code = if printable(byte) { byte } else { next };
        next += u32::from(!printable(byte));
        let character = char::from_u32(code).expect("below the surrogates");
        vocabulary.insert(character.to_string(), byte.into());
    }
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocabulary,
            "merges": [],
        },
    })
}

/// `tokenizer_config.json`.
pub fn config(model: &ModelConfig) -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.context,
        "clean_up_tokenization_spaces": false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_tokenizer_has_one_character_a_byte() {
        let tokenizer = bytes();
        let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap();
        assert_eq!(vocabulary.len(), 256);
        assert_eq!((&vocabulary["A"], &vocabulary["Ġ"], &vocabulary["Ċ"]), (&json!(65), &json!(32), &json!(10)));
    }
}
