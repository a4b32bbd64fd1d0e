//! What the suites that cross crates share: programs and processes that end with the test, waiting for a condition with a
//! deadline, raw HTTP, a backend that tells what it received, nginx, certificates, a mesh of processes,
//! and the pages of walkthroughs.

pub mod backend;
pub mod certificate;
pub mod family;
pub mod mesh;
pub mod nginx;
pub mod process;
pub mod raw;
#[path = "../../proxy/src/jwt/test_support.rs"]
pub mod tokens;
pub mod wait;
pub mod walkthrough;
