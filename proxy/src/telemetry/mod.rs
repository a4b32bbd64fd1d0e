//! What happened: records of requests and connections, and what is made of them (metrics, access logs).

pub mod record;
