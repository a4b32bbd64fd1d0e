//! Paths: `cargo +nightly fuzz run path`.
#![no_main]

#[path = "../src/path.rs"]
mod path;

libfuzzer_sys::fuzz_target!(|input: &[u8]| path::check(input));
