//! Pages under `docs/walkthroughs/` as a test reads them: their commands, and what these shall print.

pub mod expected;
pub mod page;
