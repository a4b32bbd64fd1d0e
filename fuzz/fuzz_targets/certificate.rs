//! Certificates and ClientHellos of peers: `cargo +nightly fuzz run certificate`.
#![no_main]

#[path = "../src/certificate.rs"]
mod certificate;

libfuzzer_sys::fuzz_target!(|input: &[u8]| certificate::check(input));
