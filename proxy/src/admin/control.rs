//! Pages that change something: drain, health, the end.

use http::StatusCode;
use osier_core::admin::{Reply, Request};
use osier_core::drain::Phase;

use super::{Admin, Order};

/// What readiness awaits after `/healthcheck/fail`.
pub(super) const FAILED: &str = "/healthcheck/ok";

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
