//! The binary `osier-proxy`; everything is in the library.

mod allocator;

use std::process::ExitCode;

fn main() -> ExitCode {
    osier_proxy::program::main(std::env::args_os())
}
