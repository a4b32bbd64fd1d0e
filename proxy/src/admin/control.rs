//! Pages that change something: levels, drain, health, the end.

use http::StatusCode;
use osier_core::admin::{Reply, Request};
use osier_core::drain::Phase;
use osier_core::logging::{LevelError, Levels, parse_level};

use super::{Admin, Order};

/// What readiness awaits after `/healthcheck/fail`.
pub(super) const FAILED: &str = "/healthcheck/ok";

/// The parts whose level can be set: the modules of this crate.
const PARTS: [&str; 13] = [
    "admin",
    "app",
    "bootstrap",
    "compile",
    "config",
    "http",
    "listener",
    "status",
    "tcp",
    "telemetry",
    "upstream",
    "worker",
    "xds",
];

/// `?level=`, `?paths=part:level,…`, `?part=level`; without any shows the levels.
pub(super) fn logging(admin: &Admin, request: &Request) -> Reply {
    let mut levels = admin.logging.levels();
    for (name, value) in &request.query {
        if let Err(error) = change(&mut levels, name, value) {
            return Reply::status(StatusCode::BAD_REQUEST, format!("error: {error}\n"));
        }
    }
    admin.logging.change(|current| *current = levels.clone());
    let width = PARTS.iter().map(|part| part.len()).max().unwrap_or(0);
    let line = |part: &&str| format!("  {part:width$}: {}\n", levels.of(part));
    Reply::text(format!("active loggers:\n{}", PARTS.iter().map(line).collect::<String>()))
}

/// Why levels stay as they are.
#[derive(Debug, thiserror::Error)]
enum ChangeError {
    #[error(transparent)]
    Level(#[from] LevelError),
    #[error("there is no part `{0}`")]
    Part(String),
    #[error("`{0}` is not part:level")]
    Pair(String),
}

fn change(levels: &mut Levels, name: &str, value: &str) -> Result<(), ChangeError> {
    let mut part = |part: &str, level: &str| -> Result<(), ChangeError> {
        let known =
            PARTS.iter().find(|known| **known == part).ok_or_else(|| ChangeError::Part(part.to_owned()))?;
        levels.set(Some(known), parse_level(level)?);
        Ok(())
    };
    match name {
        "level" => levels.set(None, parse_level(value)?),
        "paths" => {
            for pair in value.split(',') {
                let (name, level) = pair.split_once(':').ok_or_else(|| ChangeError::Pair(pair.to_owned()))?;
                part(name, level)?;
            }
        }
        name => part(name, value)?,
    }
    Ok(())
}

/// Without `?graceful` sockets close at once; with it connections end politely first, and the process ends after the drain
/// time unless `?skip_exit`.
pub(super) fn drain_listeners(admin: &Admin, request: &Request) -> Reply {
    let inbound_only = request.has("inboundonly");
    let (graceful, stays) = (request.has("graceful"), request.has("skip_exit"));
    if stays && !graceful {
        return Reply::status(StatusCode::BAD_REQUEST, "skip_exit needs graceful\n");
    }
    if !graceful {
        admin.acceptors.close(inbound_only);
    } else if stays {
        begin_drain(admin, if inbound_only { Phase::DrainingInbound } else { Phase::Draining });
    } else {
        order(admin, Order::Drain { inbound_only });
    }
    Reply::text("OK\n")
}

/// Politely, and without an end of the process.
pub(super) fn begin_drain(admin: &Admin, phase: Phase) -> Reply {
    let drain = &admin.shared.drain;
    if drain.phase() < phase {
        tracing::info!(open = drain.open(), "draining until told to end");
    }
    drain.advance(phase);
    Reply::text("OK\n")
}

pub(super) fn quit(admin: &Admin) -> Reply {
    order(admin, Order::Quit);
    Reply::text("OK\n")
}

fn order(admin: &Admin, order: Order) {
    // Full: enough orders to end are on their way already.
    let _ = admin.orders.try_send(order);
}

pub(super) fn fail_health(admin: &Admin, fail: bool) -> Reply {
    let mut failed = admin.failed.lock();
    *failed = match (fail, failed.take()) {
        (true, Some(pending)) => Some(pending),
        (true, None) => Some(admin.readiness.wait_for(FAILED)),
        (false, _) => None,
    };
    Reply::text("OK\n")
}
