//! Header names as small integers.
//!
//! Names that some part of the proxy looks up are interned when a head is parsed, so that a look-up compares integers.
//! All other names are compared as bytes, without case. [`Known`] is never a statement about how a name is spelt on the
//! wire: spelling belongs to the field that carries it.

use std::fmt;

macro_rules! known {
    ($($variant:ident = $text:literal,)+) => {
        /// A header name that the proxy knows.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Known {
            $(
                #[doc = concat!("`", $text, "`.")]
                $variant,
            )+
        }

        const ALL: &[Known] = &[$(Known::$variant,)+];
        const TEXTS: &[&str] = &[$($text,)+];
        static H2_NAMES: [http::HeaderName; TEXTS.len()] = [$(http::HeaderName::from_static($text),)+];
    };
}

known! {
    Accept = "accept",
    AcceptEncoding = "accept-encoding",
    AcceptLanguage = "accept-language",
    Authorization = "authorization",
    B3 = "b3",
    CacheControl = "cache-control",
    Connection = "connection",
    ContentEncoding = "content-encoding",
    ContentLength = "content-length",
    ContentType = "content-type",
    Cookie = "cookie",
    Date = "date",
    Etag = "etag",
    Expect = "expect",
    GrpcAcceptEncoding = "grpc-accept-encoding",
    GrpcEncoding = "grpc-encoding",
    GrpcMessage = "grpc-message",
    GrpcStatus = "grpc-status",
    GrpcTimeout = "grpc-timeout",
    Host = "host",
    Http2Settings = "http2-settings",
    KeepAlive = "keep-alive",
    LastModified = "last-modified",
    Location = "location",
    Origin = "origin",
    ProxyAuthenticate = "proxy-authenticate",
    ProxyAuthorization = "proxy-authorization",
    ProxyConnection = "proxy-connection",
    Range = "range",
    Referer = "referer",
    SecWebsocketAccept = "sec-websocket-accept",
    SecWebsocketKey = "sec-websocket-key",
    SecWebsocketVersion = "sec-websocket-version",
    Server = "server",
    SetCookie = "set-cookie",
    Te = "te",
    Traceparent = "traceparent",
    Tracestate = "tracestate",
    Trailer = "trailer",
    TransferEncoding = "transfer-encoding",
    Upgrade = "upgrade",
    UserAgent = "user-agent",
    Vary = "vary",
    Via = "via",
    XB3Flags = "x-b3-flags",
    XB3ParentSpanId = "x-b3-parentspanid",
    XB3Sampled = "x-b3-sampled",
    XB3SpanId = "x-b3-spanid",
    XB3TraceId = "x-b3-traceid",
    XClientTraceId = "x-client-trace-id",
    XEnvoyAttemptCount = "x-envoy-attempt-count",
    XEnvoyDecoratorOperation = "x-envoy-decorator-operation",
    XEnvoyExpectedRqTimeoutMs = "x-envoy-expected-rq-timeout-ms",
    XEnvoyExternalAddress = "x-envoy-external-address",
    XEnvoyForceTrace = "x-envoy-force-trace",
    XEnvoyHedgeOnPerTryTimeout = "x-envoy-hedge-on-per-try-timeout",
    XEnvoyImmediateHealthCheckFail = "x-envoy-immediate-health-check-fail",
    XEnvoyInternal = "x-envoy-internal",
    XEnvoyIpTags = "x-envoy-ip-tags",
    XEnvoyIsTimeoutRetry = "x-envoy-is-timeout-retry",
    XEnvoyMaxRetries = "x-envoy-max-retries",
    XEnvoyOriginalHost = "x-envoy-original-host",
    XEnvoyOriginalPath = "x-envoy-original-path",
    XEnvoyOverloaded = "x-envoy-overloaded",
    XEnvoyPeerMetadata = "x-envoy-peer-metadata",
    XEnvoyPeerMetadataId = "x-envoy-peer-metadata-id",
    XEnvoyRateLimited = "x-envoy-ratelimited",
    XEnvoyRetriableHeaderNames = "x-envoy-retriable-header-names",
    XEnvoyRetriableStatusCodes = "x-envoy-retriable-status-codes",
    XEnvoyRetryGrpcOn = "x-envoy-retry-grpc-on",
    XEnvoyRetryOn = "x-envoy-retry-on",
    XEnvoyUpstreamAltStatName = "x-envoy-upstream-alt-stat-name",
    XEnvoyUpstreamRqPerTryTimeoutMs = "x-envoy-upstream-rq-per-try-timeout-ms",
    XEnvoyUpstreamRqTimeoutAltResponse = "x-envoy-upstream-rq-timeout-alt-response",
    XEnvoyUpstreamRqTimeoutMs = "x-envoy-upstream-rq-timeout-ms",
    XEnvoyUpstreamServiceTime = "x-envoy-upstream-service-time",
    XEnvoyUpstreamStreamDurationMs = "x-envoy-upstream-stream-duration-ms",
    XForwardedClientCert = "x-forwarded-client-cert",
    XForwardedFor = "x-forwarded-for",
    XForwardedHost = "x-forwarded-host",
    XForwardedPort = "x-forwarded-port",
    XForwardedProto = "x-forwarded-proto",
    XOsierNotProcessed = "x-osier-not-processed",
    XOtSpanContext = "x-ot-span-context",
    XRequestId = "x-request-id",
}

/// Slots of the hash table; a power of two, sparse enough that almost every look-up takes one probe.
const SLOTS: usize = 512;
/// Names longer than every known one are never looked up.
const LONGEST: usize = longest();
/// Open addressing: index into [`ALL`] plus one, zero for empty.
static TABLE: [u8; SLOTS] = table();

const fn longest() -> usize {
    let (mut i, mut max) = (0, 0);
    while i < TEXTS.len() {
        if TEXTS[i].len() > max {
            max = TEXTS[i].len();
        }
        i += 1;
    }
    max
}

/// Mixes length, three letters (case folded) and nothing else: names of one length rarely agree in all of them.
const fn slot(name: &[u8]) -> usize {
    let len = name.len();
    let first = (name[0] | 0x20) as usize;
    let middle = (name[len / 2] | 0x20) as usize;
    let late = (name[len - 1 - len / 4] | 0x20) as usize;
    (len.wrapping_mul(37) ^ first.wrapping_mul(5) ^ middle.wrapping_mul(71) ^ late.wrapping_mul(151)) % SLOTS
}

const fn table() -> [u8; SLOTS] {
    assert!(TEXTS.len() < 255);
    let mut table = [0u8; SLOTS];
    let mut i = 0;
    while i < TEXTS.len() {
        let mut at = slot(TEXTS[i].as_bytes());
        while table[at] != 0 {
            at = (at + 1) % SLOTS;
        }
        table[at] = (i + 1) as u8;
        i += 1;
    }
    table
}

/// True where `name` in lower case is `text`. Eight bytes at a time: this runs for each line of each head.
fn is_lower_case_of(text: &[u8], name: &[u8]) -> bool {
    if text.len() != name.len() {
        return false;
    }
    let (words, rest) = text.as_chunks::<8>();
    let (name_words, name_rest) = name.as_chunks::<8>();
    words.iter().zip(name_words).all(|(text, name)| u64::from_ne_bytes(*text) == lower_case(*name))
        && rest.iter().zip(name_rest).all(|(text, name)| *text == name.to_ascii_lowercase())
}

fn lower_case(name: [u8; 8]) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let word = u64::from_ne_bytes(name);
    // The top bit of each byte tells: of `from_a` that it is `A` or more, of `past_z` that it is more than `Z`.
    let seven = word & (EACH * 0x7f);
    let from_a = seven + EACH * (0x80 - b'A' as u64);
    let past_z = seven + EACH * (0x7f - b'Z' as u64);
    let upper = from_a & !past_z & !word & (EACH * 0x80);
    word | (upper >> 2)
}

impl Known {
    /// The known name that `name` spells, in any case.
    pub fn find(name: &[u8]) -> Option<Self> {
        if name.is_empty() || name.len() > LONGEST {
            return None;
        }
        let mut at = slot(name);
        loop {
            let entry = usize::from(TABLE[at]);
            if entry == 0 {
                return None;
            }
            if is_lower_case_of(TEXTS[entry - 1].as_bytes(), name) {
                return Some(ALL[entry - 1]);
            }
            at = (at + 1) % SLOTS;
        }
    }

    /// The name in lower case.
    pub fn as_str(self) -> &'static str {
        TEXTS[self as usize]
    }

    /// The name as the `h2` crate wants it.
    pub fn as_h2(self) -> &'static http::HeaderName {
        &H2_NAMES[self as usize]
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A header name to look up: an integer where it is known, bytes otherwise.
///
/// `Name::from("x-foo")` finds out which; matchers that run per request keep the [`Known`] from compile time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name<'a> {
    /// A known name.
    Known(Known),
    /// Any other, in any case.
    Other(&'a [u8]),
}

impl<'a> Name<'a> {
    /// The name's bytes: lower-cased if known, else as given.
    pub fn as_bytes(&self) -> &'a [u8] {
        match self {
            Self::Known(known) => known.as_str().as_bytes(),
            Self::Other(bytes) => bytes,
        }
    }
}

impl From<Known> for Name<'_> {
    fn from(known: Known) -> Self {
        Self::Known(known)
    }
}

impl<'a> From<&'a [u8]> for Name<'a> {
    fn from(name: &'a [u8]) -> Self {
        Known::find(name).map_or(Self::Other(name), Self::Known)
    }
}

impl<'a> From<&'a str> for Name<'a> {
    fn from(name: &'a str) -> Self {
        name.as_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_name_is_found_in_any_case_and_others_are_not() {
        for (i, known) in ALL.iter().enumerate() {
            let text = known.as_str();
            assert_eq!(*known as usize, i);
            assert_eq!(Known::find(text.as_bytes()), Some(*known), "{text}");
            assert_eq!(Known::find(text.to_ascii_uppercase().as_bytes()), Some(*known), "{text}");
            assert_eq!(known.as_h2().as_str(), text);
            assert_eq!(Known::find(format!("{text}x").as_bytes()), None);
            assert_eq!(Known::find(&text.as_bytes()[1..]), None);
        }
        for byte in 0..=u8::MAX {
            assert_eq!(lower_case([byte; 8]), u64::from_ne_bytes([byte.to_ascii_lowercase(); 8]), "{byte}");
        }
        assert_eq!(Known::find(b"x\x0dforwarded-for"), None);
        assert_eq!(Known::find(b""), None);
        assert_eq!(Known::find(&[b'x'; 4096]), None);
        assert_eq!(Name::from("X-Foo"), Name::Other(b"X-Foo"));
        assert_eq!(Name::from("HOST"), Name::Known(Known::Host));
    }

    #[test]
    fn the_table_is_sparse_enough() {
        let worst = ALL
            .iter()
            .map(|known| {
                let (mut at, mut probes) = (slot(known.as_str().as_bytes()), 1);
                while usize::from(TABLE[at]) != *known as usize + 1 {
                    at = (at + 1) % SLOTS;
                    probes += 1;
                }
                probes
            })
            .max();
        assert!(worst <= Some(4), "{worst:?}");
    }
}
