//! Virtual hosts and listeners that are asked for at first use (`design.md`, "On demand").

/// Virtual hosts of one route configuration that were asked for so far.
#[derive(Debug, Default)]
pub struct HostTable {}
