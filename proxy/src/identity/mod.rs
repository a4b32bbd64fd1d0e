//! Who is who: what a peer's certificate says.

pub mod peer;
