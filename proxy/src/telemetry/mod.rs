//! What happened: records of requests and connections, and what is made of them (metrics, access logs).

use std::sync::Arc;

use crate::config::listener::{AccessLogConfig, Direction};
use crate::http::template::Context;
use crate::worker::Worker;

pub mod access_log;
pub mod collector;
pub mod labels;
pub mod metrics;
pub mod record;

/// A request has ended: counts it and writes its lines. Call it on the worker that served it.
pub fn request_ended(
    worker: &Worker,
    direction: Direction,
    logs: &[Arc<AccessLogConfig>],
    context: &Context<'_>,
) {
    worker.metrics.request(direction, context.record);
    write_logs(worker, logs, context);
}

/// Writes the lines of a request or connection.
pub fn write_logs(worker: &Worker, logs: &[Arc<AccessLogConfig>], context: &Context<'_>) {
    for log in logs {
        worker.access_log.log(log, context);
    }
}
