//! What happened: records of requests and connections, and what is made of them (metrics, access logs).

use std::sync::Arc;

use crate::config::listener::AccessLogConfig;
use crate::http::template::Context;
use crate::worker::Worker;

pub mod access_log;
pub mod authorization;
pub mod collector;
pub mod labels;
pub mod metrics;
pub mod record;

/// Writes the lines of a request or connection.
pub fn write_logs(worker: &Worker, logs: &[Arc<AccessLogConfig>], context: &Context<'_>) {
    for log in logs {
        worker.access_log.log(log, context);
    }
}
