//! HTTP/1 heads and bodies: `cargo +nightly fuzz run http1`.
#![no_main]

#[path = "../src/http1.rs"]
mod http1;

libfuzzer_sys::fuzz_target!(|input: &[u8]| http1::check(input));
