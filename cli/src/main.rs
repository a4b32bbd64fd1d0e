//! Osier for people: demo, up, run, proxy-status, proxy-config.
fn main() {}
