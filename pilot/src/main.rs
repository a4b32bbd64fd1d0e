//! The program `osier-pilot`; everything is in the library.

use std::process::ExitCode;

/// Snapshots are many small values that come and go; jemalloc gives their memory back.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    osier_pilot::program::main(std::env::args_os())
}
