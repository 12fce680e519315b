#![no_main]

#[path = "../../src/net/data/decoders.rs"]
#[allow(dead_code)]
mod decoders;
#[path = "../../src/net/data/wire.rs"]
#[allow(dead_code)]
mod wire;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoders::record(bytes));
