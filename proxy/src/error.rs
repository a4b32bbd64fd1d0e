//! Failures on the request path, with what is needed to decide on them: whose fault, whether a retry is safe, and
//! which response flag says so. `http::reply` alone turns them into answers.

use std::borrow::Cow;

/// Why a request or connection failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{kind:?}: {detail}")]
pub struct ProxyError {
    /// What happened.
    pub kind: Kind,
    /// Who caused it.
    pub side: Side,
    /// What had been sent upstream when it happened.
    pub progress: Progress,
    /// For people: what exactly, e.g. the operating system's text.
    pub detail: Cow<'static, str>,
}

/// What happened, in the words of Envoy's response flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// No virtual host or no route (404, NR).
    NoRoute,
    /// The route's cluster doesn't exist (503, NC).
    NoCluster,
    /// Configuration for the destination was not received in time (503).
    NoConfiguration,
    /// No endpoint to pick (503, UH).
    NoHealthyUpstream,
    /// Connect failed (503, UF).
    ConnectFailed,
    /// Connect took too long (503, UF).
    ConnectTimeout,
    /// Upstream closed before a response (503, UC).
    UpstreamClosed,
    /// Upstream reset the stream (503, UR).
    UpstreamReset,
    /// Upstream refused the stream before looking at it (503, UR).
    RefusedStream,
    /// We reset the stream (503, LR).
    LocalReset,
    /// Upstream broke the protocol (502, UPE).
    UpstreamProtocol,
    /// A limit of the cluster is reached (503, UO).
    Overflow,
    /// Route time-out (504, UT).
    UpstreamTimeout,
    /// Per-try time-out with no try left (504, UT).
    PerTryTimeout,
    /// Stream without progress (408 or 504 before a response, SI).
    StreamIdle,
    /// Request took too long to arrive (408 or 504).
    RequestTimeout,
    /// Stream lived too long (408 or 504, DT).
    MaxStreamDuration,
    /// The client broke the protocol (400, DPE).
    DownstreamProtocol,
    /// The client uses a transfer coding that isn't spoken here (501, DPE).
    TransferCoding,
    /// The client didn't say which host it wants (400).
    MissingHost,
    /// Request head too large or too many headers (431, DPE).
    HeadTooLarge,
    /// HTTP/1.0 is not accepted (426).
    LowVersion,
    /// Upgrade or CONNECT is not allowed (403).
    UpgradeRefused,
    /// A policy that came while it was open denies it (403).
    AccessDenied,
    /// The client went away (code 0, DC).
    DownstreamClosed,
}

/// Who caused a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The client.
    Downstream,
    /// The endpoint, or the way to it.
    Upstream,
    /// This proxy or its configuration.
    Internal,
}

/// What had reached the upstream: decides whether sending again is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Progress {
    /// Not a byte of this request was written (or the peer said that it didn't process it).
    NothingSent,
    /// Some of it may have been delivered.
    Sent,
    /// A response head arrived.
    ResponseStarted,
}

impl ProxyError {
    /// A failure with its side and progress.
    pub fn new(kind: Kind, side: Side, progress: Progress, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, side, progress, detail: detail.into() }
    }
}
