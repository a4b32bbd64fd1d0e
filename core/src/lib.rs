//! Words that both halves of Osier share: hosts, durations, drain, readiness, logging, the admin server.

pub mod admin;
pub mod drain;
pub mod duration;
pub mod host;
pub mod labels;
pub mod logging;
pub mod on_demand;
pub mod re2;
pub mod readiness;
pub mod registration;
pub mod sidecar;
pub mod stdout;
