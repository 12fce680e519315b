#![no_main]

#[path = "../../protocol/tests/it/decoders.rs"]
#[allow(dead_code)]
mod decoders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoders::manifest(bytes));
