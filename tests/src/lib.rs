//! What the suites that cross crates share: programs and processes that end with the test, waiting for a condition with a
//! deadline, raw HTTP, and a backend that tells what it received.

pub mod backend;
pub mod process;
pub mod raw;
pub mod wait;
