#![no_main]

#[path = "../../pipeline/tests/decoders/decoders.rs"]
#[allow(dead_code)]
mod decoders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoders::state(bytes));
