//! `osier proxy-status` and `osier proxy-config`: what pilots sent, and what a proxy has in force.
//!
//! Status comes from each pilot's `/debug/syncz`, configuration from the proxy's own admin interface.

pub mod config;
pub mod status;
mod tables;
