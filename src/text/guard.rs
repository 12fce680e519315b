//! Calls into the tokenizer crate with files of strangers. In: a call. Out: its result, or an error where it panics.
//!
//! The crate trusts its files: one that no library of Hugging Face writes can make it panic, when it is read or at any text
//! later. A stranger's file ends in an error here, and not in a peer that stops.

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
};

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside such a call. A panic hook that ends the process asks this first.
pub fn is_guarded() -> bool {
    INSIDE.get()
}

pub(super) fn guarded<T>(call: impl FnOnce() -> Result<T, tokenizers::Error>) -> Result<T, String> {
    let before = INSIDE.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(call));
    INSIDE.set(before);
    match result {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the parts of its tokenizer.json do not fit together".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_and_is_known_to_be_one() {
        assert!(!is_guarded());
        let inside = guarded(|| Ok(is_guarded()));
        assert_eq!(inside, Ok(true));
        let failed: Result<(), String> = guarded(|| panic!("as the crate does"));
        assert!(failed.is_err() && !is_guarded());
    }
}
