//! The proxy as an xDS client: subscriptions, warming, publication, and what is asked for on demand.

pub mod on_demand;
