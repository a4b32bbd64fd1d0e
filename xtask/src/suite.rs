//! The test suites: what each runs, what it needs. `cargo xtask test --list` prints this table.

use crate::part::Part;

/// One suite.
pub struct Suite {
    /// Name on the command line.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// Real parts that it runs against.
    pub parts: &'static [Part],
    /// What is run.
    pub runs: Runs,
}

/// What a suite runs.
pub enum Runs {
    /// `cargo test` with these arguments.
    Cargo(&'static [&'static str]),
}

const NGINX: Part = Part::Debian { package: "nginx-light", program: "nginx" };
const NGHTTP2: Part = Part::Debian { package: "nghttp2-client", program: "h2load" };

/// All suites, in the order in which they run.
pub const SUITES: &[Suite] = &[
    Suite {
        name: "unit",
        about: "tests beside the code: semantics as tables, properties, simulation of xDS with 256 seeds",
        parts: &[],
        runs: Runs::Cargo(&["--workspace", "--exclude", "osier-tests"]),
    },
    Suite {
        name: "tidy",
        about: "layering, module heads, listed exceptions, links of the docs",
        parts: &[],
        runs: Runs::Cargo(&["--package", "osier-tests", "--test", "tidy"]),
    },
];

/// Prints the table of suites.
pub fn print_list() {
    for suite in SUITES {
        println!("{:<14}{}", suite.name, suite.about);
    }
}

/// What the benchmark compares with and drives.
pub const BENCH_PARTS: [Part; 5] = [
    Part::Python,
    NGINX,
    Part::Debian { package: "haproxy", program: "haproxy" },
    Part::Debian { package: "wrk", program: "wrk" },
    NGHTTP2,
];
