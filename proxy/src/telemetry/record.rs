//! What is known of one request (or opaque connection): filled in while it runs, read by metrics and access logs at its end.
//!
//! A record borrows from what the exchange holds anyway (route, connection), so keeping it costs no allocation and no counter
//! that several workers share. Rule: whoever learns a fact writes it here at once, so that a record is right whenever
//! the client leaves.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::config::cluster::Cluster;
use crate::config::endpoint::Endpoint;
use crate::config::route::Route;
use crate::http::head::Version;
use crate::http::peer_metadata::Peer;
use crate::identity::peer::Peer as Identity;
use crate::identity::vouch::Vouch;

/// One request from its head to its end, or one opaque connection.
#[derive(Debug)]
pub struct RequestRecord<'a> {
    /// Whom it came from and where it was going.
    pub downstream: Downstream<'a>,
    /// When its head was complete (TCP: when the connection was accepted).
    pub started: Instant,
    /// The same by the calendar, where it was looked up; else it follows from `started`.
    pub started_at: Option<SystemTime>,
    /// HTTP version of the downstream; `None` for opaque connections.
    pub protocol: Option<Version>,
    /// Status that the client got; 0 for none.
    pub status: u16,
    /// Why it went wrong, if it did.
    pub flags: Flags,
    /// Response code details (`via_upstream`, `route_not_found`, …); empty for none. Holds no white space.
    pub details: Cow<'static, str>,
    /// Why the connection was ended, where there is more to say than `details`.
    pub termination_details: Option<Cow<'static, str>>,
    /// What the transport said when the upstream failed.
    pub upstream_failure: Option<Cow<'static, str>>,
    /// Body bytes from the client.
    pub received: u64,
    /// Body bytes to the client.
    pub sent: u64,
    /// Bytes of the request head and trailers; with `received`, what metrics count.
    pub received_head: u64,
    /// Bytes of the response head and trailers.
    pub sent_head: u64,
    /// From the start to the last byte of the request.
    pub request_complete: Option<Duration>,
    /// From the start to the first byte of the accepted response.
    pub response_started: Option<Duration>,
    /// From the start to the last byte that the client got, or to its leaving.
    pub complete: Option<Duration>,
    /// The route that matched.
    pub route: Option<&'a Route>,
    /// Name of the cluster that the route chose, there or not.
    pub cluster_name: Option<&'a str>,
    /// That cluster.
    pub cluster: Option<Arc<Cluster>>,
    /// The endpoint of the last attempt.
    pub endpoint: Option<Arc<Endpoint>>,
    /// Our side of the connection to it.
    pub upstream_local: Option<SocketAddr>,
    /// Whom that one has proved to be, and we to it.
    pub upstream_vouch: Option<Arc<Vouch>>,
    /// The workload at the other end (inbound: the caller, outbound: the callee), where it said who it is.
    pub peer: Option<Arc<Peer>>,
    /// Attempts made.
    pub attempts: u32,
    /// The request was gRPC.
    pub grpc: bool,
    /// `grpc-status` of trailers or head.
    pub grpc_status: Option<u32>,
}

/// The client's end of a request or connection.
#[derive(Debug, Clone, Copy)]
pub struct Downstream<'a> {
    /// Number of the connection.
    pub connection_id: u64,
    /// Where it was going (original destination, or the local address).
    pub local: SocketAddr,
    /// The client, as `x-forwarded-for` says where that is trusted.
    pub remote: SocketAddr,
    /// The peer of the connection.
    pub direct_remote: SocketAddr,
    /// SNI.
    pub server_name: Option<&'a str>,
    /// Who the client has proved to be.
    pub identity: Option<&'a Arc<Identity>>,
    /// Who we have proved to be to it.
    pub own_identity: Option<&'a Arc<str>>,
}

impl<'a> RequestRecord<'a> {
    /// A record of something that began at `started`.
    pub fn new(downstream: Downstream<'a>, protocol: Option<Version>, started: Instant) -> Self {
        Self {
            downstream,
            started,
            started_at: None,
            protocol,
            status: 0,
            flags: Flags::default(),
            details: Cow::Borrowed(""),
            termination_details: None,
            upstream_failure: None,
            received: 0,
            sent: 0,
            received_head: 0,
            sent_head: 0,
            request_complete: None,
            response_started: None,
            complete: None,
            route: None,
            cluster_name: None,
            cluster: None,
            endpoint: None,
            upstream_local: None,
            upstream_vouch: None,
            peer: None,
            attempts: 0,
            grpc: false,
            grpc_status: None,
        }
    }

    /// When it started, by the calendar.
    pub fn started_at(&self) -> SystemTime {
        self.started_at.unwrap_or_else(|| SystemTime::now() - self.started.elapsed())
    }
}

/// Response flags: Envoy's short words for what went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Flags(u32);

macro_rules! flags {
    ($($constant:ident = $short:literal, $doc:literal;)+) => {
        flags!(@constants 0; $($constant = $short, $doc;)+);
        /// Short words in the order in which Envoy writes them.
        const SHORT: &[&str] = &[$($short,)+];
    };
    (@constants $bit:expr; $constant:ident = $short:literal, $doc:literal; $($rest:tt)*) => {
        impl Flags {
            #[doc = concat!("`", $short, "`: ", $doc, ".")]
            pub const $constant: Flags = Flags(1 << ($bit));
        }
        flags!(@constants $bit + 1; $($rest)*);
    };
    (@constants $bit:expr;) => {};
}

flags! {
    NO_HEALTHY_UPSTREAM = "UH", "no endpoint to pick";
    UPSTREAM_TIMEOUT = "UT", "upstream request time-out";
    LOCAL_RESET = "LR", "reset by us";
    UPSTREAM_RESET = "UR", "reset by the upstream";
    CONNECT_FAILURE = "UF", "connecting failed";
    UPSTREAM_CLOSED = "UC", "connection ended by the upstream";
    OVERFLOW = "UO", "circuit breaker";
    NO_ROUTE = "NR", "no route or no filter chain";
    UNAUTHORIZED = "UAEX", "denied by an external authorizer, or without an answer of one";
    DOWNSTREAM_CLOSED = "DC", "the client went away";
    RETRIES_EXHAUSTED = "URX", "no retry or connect attempt left";
    STREAM_IDLE = "SI", "stream without progress";
    DOWNSTREAM_PROTOCOL = "DPE", "the client broke the protocol";
    MAX_STREAM_DURATION = "UMSDR", "stream lived too long";
    DURATION = "DT", "connection or request lived too long";
    UPSTREAM_PROTOCOL = "UPE", "the upstream broke the protocol";
    NO_CLUSTER = "NC", "the cluster doesn't exist";
}

impl Flags {
    /// True without any flag.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Adds `other`.
    pub fn add(&mut self, other: Flags) {
        self.0 |= other.0;
    }

    /// True where all of `other` are set.
    pub fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// The set as a number, for keys of metric slots.
    pub fn bits(self) -> u32 {
        self.0
    }
}

/// Short words joined by commas; `-` for none.
impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        let mut comma = "";
        for (bit, short) in SHORT.iter().enumerate().filter(|(bit, _)| self.0 & 1 << bit != 0) {
            debug_assert!(bit < 32);
            write!(f, "{comma}{short}")?;
            comma = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_written_in_envoys_order() {
        let mut flags = Flags::default();
        assert_eq!(flags.to_string(), "-");
        flags.add(Flags::RETRIES_EXHAUSTED);
        assert_eq!(flags.to_string(), "URX");
        flags.add(Flags::CONNECT_FAILURE);
        assert_eq!(flags.to_string(), "UF,URX");
        assert!(flags.has(Flags::CONNECT_FAILURE) && !flags.has(Flags::NO_CLUSTER));
        assert_eq!(Flags::NO_CLUSTER.to_string(), "NC");
        assert_eq!(Flags::NO_HEALTHY_UPSTREAM.to_string(), "UH");
    }
}
