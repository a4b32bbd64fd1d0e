//! Words that both halves of Osier share: hosts, durations, drain, readiness, logging, the admin server.

pub mod drain;
pub mod on_demand;
pub mod registration;
