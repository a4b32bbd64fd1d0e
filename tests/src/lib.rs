//! What the suites that cross crates share: programs and processes that end with the test, waiting for a condition with a
//! deadline, raw HTTP, a backend that tells what it received, nginx, and a mesh of processes.

pub mod backend;
pub mod mesh;
pub mod nginx;
pub mod process;
pub mod raw;
pub mod wait;
