//! What the suites that cross crates share: where programs are, processes that end with the test, waiting for a condition.
