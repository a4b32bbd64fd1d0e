//! `%COMMAND%`s of header values and access logs (Envoy's substitution format), parsed once and evaluated per request.
//!
//! Rules: `%%` is a literal percent sign, an unbalanced `%` and an unknown command are refused by name. A command without a
//! value writes what the caller wants for it: access logs `-`, header values nothing.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::head::{Fields, RequestHead, ResponseHead, Version};
use crate::config::route::{HeaderName, Subject};
use crate::telemetry::record::RequestRecord;

/// A text with `%COMMAND%`s, parsed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Template {
    parts: Box<[Part]>,
}

/// A piece of a [`Template`].
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// Text as it is.
    Literal(Bytes),
    /// A command to evaluate.
    Command(Command),
}

/// One parsed command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    value: Value,
    /// Longest output in bytes (`:Z`).
    limit: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    /// A request header, or the second where the first isn't there.
    Request(Subject, Option<Subject>),
    Response(Subject, Option<Subject>),
    Trailer(HeaderName, Option<HeaderName>),
    StartTime(TimeFormat),
    Simple(Simple),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum TimeFormat {
    /// `2026-01-02T03:04:05.678Z`.
    Default,
    /// In the words of jiff's `strtime`.
    Custom(Box<str>),
}

macro_rules! simple {
    ($($variant:ident = $text:literal,)+) => {
        /// Commands without parameters.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Simple {
            $($variant,)+
        }

        impl Simple {
            fn find(name: &str) -> Option<Self> {
                match name {
                    $($text => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

simple! {
    Protocol = "PROTOCOL",
    ResponseCode = "RESPONSE_CODE",
    ResponseCodeDetails = "RESPONSE_CODE_DETAILS",
    ResponseFlags = "RESPONSE_FLAGS",
    Duration = "DURATION",
    RequestDuration = "REQUEST_DURATION",
    ResponseDuration = "RESPONSE_DURATION",
    ResponseTxDuration = "RESPONSE_TX_DURATION",
    BytesReceived = "BYTES_RECEIVED",
    BytesSent = "BYTES_SENT",
    UpstreamHost = "UPSTREAM_HOST",
    UpstreamCluster = "UPSTREAM_CLUSTER",
    UpstreamClusterRaw = "UPSTREAM_CLUSTER_RAW",
    UpstreamLocalAddress = "UPSTREAM_LOCAL_ADDRESS",
    UpstreamRequestAttemptCount = "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    UpstreamTransportFailureReason = "UPSTREAM_TRANSPORT_FAILURE_REASON",
    DownstreamLocalAddress = "DOWNSTREAM_LOCAL_ADDRESS",
    DownstreamLocalAddressWithoutPort = "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    DownstreamLocalPort = "DOWNSTREAM_LOCAL_PORT",
    DownstreamRemoteAddress = "DOWNSTREAM_REMOTE_ADDRESS",
    DownstreamRemoteAddressWithoutPort = "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    DownstreamRemotePort = "DOWNSTREAM_REMOTE_PORT",
    DownstreamPeerUriSan = "DOWNSTREAM_PEER_URI_SAN",
    DownstreamPeerSubject = "DOWNSTREAM_PEER_SUBJECT",
    DownstreamPeerFingerprint = "DOWNSTREAM_PEER_FINGERPRINT_256",
    DownstreamLocalUriSan = "DOWNSTREAM_LOCAL_URI_SAN",
    DownstreamDirectRemoteAddress = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
    DownstreamDirectRemoteAddressWithoutPort = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
    RequestedServerName = "REQUESTED_SERVER_NAME",
    RouteName = "ROUTE_NAME",
    ConnectionTerminationDetails = "CONNECTION_TERMINATION_DETAILS",
    ConnectionId = "CONNECTION_ID",
    StreamId = "STREAM_ID",
    Hostname = "HOSTNAME",
}

/// Why a text was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A `%` that begins no command.
    #[error("`{text}`: the `%` at byte {at} begins no command (write `%%` for a percent sign)")]
    Unbalanced {
        /// The whole text.
        text: String,
        /// Where.
        at: usize,
    },
    /// A command that doesn't exist or isn't supported.
    #[error("`%{0}%` is not a supported command")]
    Unknown(String),
    /// A command with wrong parameters.
    #[error("`%{command}%`: {reason}")]
    Parameters {
        /// The command.
        command: String,
        /// What is wrong.
        reason: &'static str,
    },
}

/// What a template may look at.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// What is known of the request or connection.
    pub record: &'a RequestRecord<'a>,
    /// The request, for HTTP.
    pub request: Option<&'a RequestHead>,
    /// The response, once it is there.
    pub response: Option<&'a ResponseHead>,
    /// The response's trailers.
    pub trailers: Option<&'a Fields>,
}

impl Template {
    /// Parses a text.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut at = 0;
        while let Some(found) = text[at..].find('%') {
            literal.push_str(&text[at..at + found]);
            at += found;
            if text[at..].starts_with("%%") {
                literal.push('%');
                at += 2;
                continue;
            }
            let Some(raw) = RawCommand::at(&text[at..]) else {
                return Err(TemplateError::Unbalanced { text: text.to_owned(), at });
            };
            at += raw.length;
            match raw.parse()? {
                Command { value: Value::Simple(Simple::Hostname), .. } => literal.push_str(&hostname()),
                command => {
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal).into()));
                    }
                    parts.push(Part::Command(command));
                }
            }
        }
        literal.push_str(&text[at..]);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.into()));
        }
        Ok(Self { parts: parts.into() })
    }

    /// A text without commands.
    pub fn literal(text: &'static str) -> Self {
        Self { parts: Box::new([Part::Literal(Bytes::from_static(text.as_bytes()))]) }
    }

    /// The text, where it is the same for every request.
    pub fn as_literal(&self) -> Option<&[u8]> {
        match &*self.parts {
            [] => Some(b""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// The command, where the text is nothing else (JSON logs write such a value as null when it is missing).
    pub fn as_command(&self) -> Option<&Command> {
        match &*self.parts {
            [Part::Command(command)] => Some(command),
            _ => None,
        }
    }

    /// Evaluates the text into `out`, with `missing` for commands without a value.
    pub fn write(&self, context: &Context<'_>, missing: &str, out: &mut Vec<u8>) {
        self.write_each(context, missing, out, |_, _| ());
    }

    /// [`Template::write`] for a line that people and parsers trust: a value can't end it, close a quotation or move a terminal's
    /// cursor. What could is written as JSON writes it, for formats that make JSON by hand.
    pub fn write_escaped(&self, context: &Context<'_>, missing: &str, out: &mut Vec<u8>) {
        self.write_each(context, missing, out, escape);
    }

    /// Has `finish` go over each value, which stands in `out` from the given place on.
    fn write_each(
        &self,
        context: &Context<'_>,
        missing: &str,
        out: &mut Vec<u8>,
        finish: impl Fn(&mut Vec<u8>, usize),
    ) {
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.extend_from_slice(text),
                Part::Command(command) => {
                    let start = out.len();
                    if !command.write(context, out) {
                        out.extend_from_slice(missing.as_bytes());
                    }
                    finish(out, start);
                }
            }
        }
    }
}

/// Escapes what stands in `out` from `start` on.
fn escape(out: &mut Vec<u8>, start: usize) {
    let plain = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
    if out[start..].iter().all(plain) {
        return;
    }
    let value = out.split_off(start);
    for chunk in value.utf8_chunks() {
        for char in chunk.valid().chars() {
            if matches!(char, '"' | '\\') || char.is_control() {
                escaped(out, char.into());
            } else {
                out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        chunk.invalid().iter().for_each(|byte| escaped(out, (*byte).into()));
    }
}

fn escaped(out: &mut Vec<u8>, code: u32) {
    // Writing into a Vec never fails.
    let _ = write!(out, "\\u{code:04x}");
}

/// A command as it stands in the text.
struct RawCommand<'t> {
    name: &'t str,
    parameters: Option<&'t str>,
    limit: Option<&'t str>,
    /// With both percent signs.
    length: usize,
}

impl<'t> RawCommand<'t> {
    /// The command that `text` begins with: `%NAME%`, `%NAME(parameters)%`, each with `:limit` before the last `%`.
    /// Parameters end at the first `)` that a command may end after, so they may hold `%` and `)`.
    fn at(text: &'t str) -> Option<Self> {
        let body = text.strip_prefix('%')?;
        let name_end = body.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))?;
        let (name, rest) = body.split_at(name_end);
        if name.is_empty() {
            return None;
        }
        let offset = 1 + name_end;
        let Some(inner) = rest.strip_prefix('(') else {
            let (limit, length) = Self::end(rest)?;
            return Some(Self { name, parameters: None, limit, length: offset + length });
        };
        inner.match_indices(')').find_map(|(at, _)| {
            let (limit, length) = Self::end(&inner[at + 1..])?;
            Some(Self { name, parameters: Some(&inner[..at]), limit, length: offset + 1 + at + 1 + length })
        })
    }

    /// `%` or `:digits%`, with its length.
    fn end(rest: &'t str) -> Option<(Option<&'t str>, usize)> {
        if rest.starts_with('%') {
            return Some((None, 1));
        }
        let digits = rest.strip_prefix(':')?;
        let end = digits.find(|c: char| !c.is_ascii_digit())?;
        (end > 0 && digits[end..].starts_with('%')).then(|| (Some(&digits[..end]), end + 2))
    }

    fn parse(&self) -> Result<Command, TemplateError> {
        let value = match self.name {
            "REQ" => self.two(Subject::from).map(|(first, second)| Value::Request(first, second))?,
            "RESP" => self.two(Subject::from).map(|(first, second)| Value::Response(first, second))?,
            "TRAILER" => self.two(HeaderName::from).map(|(first, second)| Value::Trailer(first, second))?,
            "START_TIME" => Value::StartTime(self.time_format()?),
            name => Value::Simple(Simple::find(name).ok_or_else(|| TemplateError::Unknown(name.to_owned()))?),
        };
        if matches!(value, Value::Simple(_)) && self.parameters.is_some() {
            return Err(self.refuse("takes no parameters"));
        }
        let limit = match self.limit {
            None => usize::MAX,
            Some(_) if matches!(value, Value::Simple(_) | Value::StartTime(_)) => {
                return Err(self.refuse("takes no length"));
            }
            Some(digits) => digits.parse().map_err(|_| self.refuse("length is too large"))?,
        };
        Ok(Command { value, limit })
    }

    /// `X` or `X?Y`.
    fn two<'a, T: From<&'a str>>(&self, make: impl Fn(&'a str) -> T) -> Result<(T, Option<T>), TemplateError>
    where
        't: 'a,
    {
        let parameters = self.parameters.filter(|text| !text.is_empty());
        let parameters = parameters.ok_or_else(|| self.refuse("needs a header name"))?;
        let mut names = parameters.split('?');
        let first =
            names.next().filter(|name| !name.is_empty()).ok_or_else(|| self.refuse("needs a header name"))?;
        let second = names.next().filter(|name| !name.is_empty());
        if names.next().is_some() {
            return Err(self.refuse("takes at most one alternative"));
        }
        Ok((make(first), second.map(make)))
    }

    fn time_format(&self) -> Result<TimeFormat, TemplateError> {
        let Some(format) = self.parameters.filter(|text| !text.is_empty()) else {
            return Ok(TimeFormat::Default);
        };
        // Abseil's and Envoy's own words that jiff spells otherwise.
        let mut translated = format.replace("%f", "%9f").replace("%E*S", "%S%.f");
        for digit in '1'..='9' {
            translated = translated.replace(&format!("%E{digit}S"), &format!("%S%.{digit}f"));
        }
        let probe = Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
        match jiff::fmt::strtime::format(&translated, &probe) {
            Ok(_) => Ok(TimeFormat::Custom(translated.into())),
            Err(_) => Err(self.refuse("unknown time format")),
        }
    }

    fn refuse(&self, reason: &'static str) -> TemplateError {
        TemplateError::Parameters { command: self.name.to_owned(), reason }
    }
}

impl Command {
    /// True where the value is a number, which JSON writes without quotes.
    pub fn is_number(&self) -> bool {
        use Simple::*;
        const NUMBERS: [Simple; 11] = [
            ResponseCode,
            Duration,
            RequestDuration,
            ResponseDuration,
            ResponseTxDuration,
            BytesReceived,
            BytesSent,
            UpstreamRequestAttemptCount,
            DownstreamLocalPort,
            DownstreamRemotePort,
            ConnectionId,
        ];
        matches!(&self.value, Value::Simple(simple) if NUMBERS.contains(simple))
    }

    /// Writes the value; false, and nothing written, where there is none.
    pub fn write(&self, context: &Context<'_>, out: &mut Vec<u8>) -> bool {
        match &self.value {
            Value::Request(first, second) => {
                self.text(either(first, second, |subject| request_value(context.request?, subject)), out)
            }
            Value::Response(first, second) => {
                self.text(either(first, second, |subject| response_value(context.response?, subject)), out)
            }
            Value::Trailer(first, second) => {
                self.text(either(first, second, |name| context.trailers?.get(name.as_name())), out)
            }
            Value::StartTime(format) => {
                write_time(context.record.started_at(), format, out);
                true
            }
            Value::Simple(simple) => simple.write(context, out),
        }
    }

    fn text(&self, value: Option<&[u8]>, out: &mut Vec<u8>) -> bool {
        if let Some(value) = value {
            out.extend_from_slice(&value[..value.len().min(self.limit)]);
        }
        value.is_some()
    }
}

fn either<'v, T>(first: &T, second: &Option<T>, get: impl Fn(&T) -> Option<&'v [u8]>) -> Option<&'v [u8]> {
    get(first).or_else(|| get(second.as_ref()?))
}

/// A header or pseudo header of a request; `None` where it isn't there.
pub fn request_value<'h>(head: &'h RequestHead, subject: &Subject) -> Option<&'h [u8]> {
    let present = |text: &'h [u8]| Some(text).filter(|text| !text.is_empty());
    match subject {
        Subject::Method => Some(head.method_str().as_bytes()),
        Subject::Path => present(head.path()),
        Subject::Authority => present(head.authority()),
        Subject::Scheme => Some(head.scheme.as_str().as_bytes()),
        Subject::Header(name) => head.fields.get(name.as_name()),
    }
}

fn response_value<'h>(head: &'h ResponseHead, subject: &Subject) -> Option<&'h [u8]> {
    match subject {
        Subject::Header(name) => head.fields.get(name.as_name()),
        Subject::Authority => head.fields.get("host"),
        Subject::Method | Subject::Path | Subject::Scheme => None,
    }
}

impl Simple {
    fn write(self, context: &Context<'_>, out: &mut Vec<u8>) -> bool {
        let record = context.record;
        let downstream = &record.downstream;
        match self {
            Self::Protocol => text(record.protocol.map(Version::as_str), out),
            Self::ResponseCode => format(format_args!("{}", record.status), out),
            Self::ResponseCodeDetails => text(Some(&*record.details).filter(|text| !text.is_empty()), out),
            Self::ResponseFlags => format(format_args!("{}", record.flags), out),
            Self::Duration => milliseconds(record.complete, out),
            Self::RequestDuration => milliseconds(record.request_complete, out),
            Self::ResponseDuration => milliseconds(record.response_started, out),
            Self::ResponseTxDuration => {
                let sending = record
                    .complete
                    .zip(record.response_started)
                    .map(|(end, start)| end.saturating_sub(start));
                milliseconds(sending, out)
            }
            Self::BytesReceived => format(format_args!("{}", record.received), out),
            Self::BytesSent => format(format_args!("{}", record.sent), out),
            Self::UpstreamHost => address(record.endpoint.as_ref().map(|endpoint| endpoint.address), out),
            Self::UpstreamCluster => {
                let cluster = record.cluster.as_ref().map(|cluster| &*cluster.spec.stat_name);
                text(cluster.or(record.cluster_name), out)
            }
            Self::UpstreamClusterRaw => text(record.cluster_name, out),
            Self::UpstreamLocalAddress => address(record.upstream_local, out),
            Self::UpstreamRequestAttemptCount => format(format_args!("{}", record.attempts), out),
            Self::UpstreamTransportFailureReason => text(record.upstream_failure.as_deref(), out),
            Self::DownstreamLocalAddress => address(Some(downstream.local), out),
            Self::DownstreamLocalAddressWithoutPort => format(format_args!("{}", downstream.local.ip()), out),
            Self::DownstreamLocalPort => format(format_args!("{}", downstream.local.port()), out),
            Self::DownstreamRemoteAddress => address(Some(downstream.remote), out),
            Self::DownstreamRemoteAddressWithoutPort => {
                format(format_args!("{}", downstream.remote.ip()), out)
            }
            Self::DownstreamRemotePort => format(format_args!("{}", downstream.remote.port()), out),
            Self::DownstreamPeerUriSan => text(
                downstream
                    .identity
                    .map(|peer| peer.uris.join(","))
                    .as_deref()
                    .filter(|uris| !uris.is_empty()),
                out,
            ),
            Self::DownstreamPeerSubject => text(
                downstream.identity.map(|peer| &*peer.subject).filter(|subject| !subject.is_empty()),
                out,
            ),
            Self::DownstreamPeerFingerprint => {
                text(downstream.identity.map(|peer| peer.fingerprint()).as_deref(), out)
            }
            Self::DownstreamLocalUriSan => text(downstream.own_identity.map(|name| &**name), out),
            Self::DownstreamDirectRemoteAddress => address(Some(downstream.direct_remote), out),
            Self::DownstreamDirectRemoteAddressWithoutPort => {
                format(format_args!("{}", downstream.direct_remote.ip()), out)
            }
            Self::RequestedServerName => text(downstream.server_name, out),
            Self::RouteName => {
                text(record.route.map(|route| &*route.name).filter(|name| !name.is_empty()), out)
            }
            Self::ConnectionTerminationDetails => text(record.termination_details.as_deref(), out),
            Self::ConnectionId => format(format_args!("{}", downstream.connection_id), out),
            Self::StreamId => {
                let id = context.request.and_then(|head| head.fields.get(super::head::Known::XRequestId));
                out.extend_from_slice(id.unwrap_or_default());
                id.is_some()
            }
            // Never kept as a command: `Template::parse` makes it text.
            Self::Hostname => text(Some(&hostname()), out),
        }
    }
}

fn text(value: Option<&str>, out: &mut Vec<u8>) -> bool {
    out.extend_from_slice(value.unwrap_or_default().as_bytes());
    value.is_some()
}

fn format(value: std::fmt::Arguments<'_>, out: &mut Vec<u8>) -> bool {
    // Writing into a Vec never fails.
    let _ = out.write_fmt(value);
    true
}

fn address(value: Option<SocketAddr>, out: &mut Vec<u8>) -> bool {
    value.is_some_and(|address| format(format_args!("{address}"), out))
}

fn milliseconds(value: Option<Duration>, out: &mut Vec<u8>) -> bool {
    value.is_some_and(|duration| format(format_args!("{}", duration.as_millis()), out))
}

fn write_time(time: SystemTime, format: &TimeFormat, out: &mut Vec<u8>) {
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    match format {
        TimeFormat::Default => {
            let civil = TimeZone::UTC.to_datetime(time);
            let (date, clock) = (civil.date(), civil.time());
            let _ = write!(
                out,
                "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
                date.year(),
                date.month(),
                date.day(),
                clock.hour(),
                clock.minute(),
                clock.second(),
                clock.millisecond()
            );
        }
        TimeFormat::Custom(format) => {
            let zoned = time.to_zoned(TimeZone::UTC);
            // The format was tried when it was parsed.
            if let Ok(text) = jiff::fmt::strtime::format(&**format, &zoned) {
                out.extend_from_slice(text.as_bytes());
            }
        }
    }
}

/// The name of this machine (or pod), as the kernel has it.
fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "-".to_owned() } else { name.trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::telemetry::record::{Downstream, Flags};

    fn evaluate(text: &str, missing: &str) -> String {
        let mut record = RequestRecord::new(
            Downstream {
                connection_id: 7,
                local: "10.0.0.1:80".parse().unwrap(),
                remote: "[2001:db8::1]:4000".parse().unwrap(),
                direct_remote: "10.0.0.2:5000".parse().unwrap(),
                server_name: Some("a.example"),
                identity: None,
                own_identity: None,
            },
            Some(Version::Http2),
            std::time::Instant::now(),
        );
        record.started_at = Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_323_045_678));
        record.status = 503;
        record.flags.add(Flags::CONNECT_FAILURE);
        record.flags.add(Flags::RETRIES_EXHAUSTED);
        record.details = Cow::Borrowed("via_upstream");
        record.received = 12;
        record.sent = 34;
        record.request_complete = Some(Duration::from_millis(2));
        record.response_started = Some(Duration::from_micros(5_900));
        record.complete = Some(Duration::from_millis(9));
        record.cluster_name = Some("outbound|80||a");
        record.attempts = 3;
        let mut request = RequestHead::new();
        request.set_path(b"/p?q");
        request.set_authority(b"A.example:80");
        request.fields.append("x-first", b"one");
        request.fields.append("X-First", b"two");
        request.fields.append("x-request-id", b"id");
        let mut response = ResponseHead::new(503);
        response.fields.append("x-envoy-upstream-service-time", b"4");
        let mut trailers = Fields::new();
        trailers.append("grpc-status", b"0");
        let context = Context {
            record: &record,
            request: Some(&request),
            response: Some(&response),
            trailers: Some(&trailers),
        };
        let mut out = Vec::new();
        Template::parse(text).unwrap_or_else(|error| panic!("{error}")).write(&context, missing, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn commands_are_evaluated() {
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("100%%", "100%"),
            ("%%PROTOCOL%%", "%PROTOCOL%"),
            ("[%PROTOCOL%]", "[HTTP/2]"),
            ("%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%", "503 UF,URX via_upstream"),
            ("%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%", "GET /p?q"),
            ("%REQ(:AUTHORITY)% %REQ(Host)% %REQ(:scheme)%", "A.example:80 A.example:80 http"),
            ("%REQ(X-FIRST)% %REQ(x-first):2%", "one on"),
            ("%REQ(NONE?X-FIRST):1%|%REQ(NONE)%|%REQ(NONE?ALSO-NONE)%", "o|-|-"),
            ("%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% %RESP(none)%", "4 -"),
            ("%TRAILER(grpc-status)% %TRAILER(none?grpc-status):9%", "0 0"),
            ("%START_TIME%", "2026-01-02T03:04:05.678Z"),
            ("%START_TIME(%Y/%m/%dT%H:%M:%S)%", "2026/01/02T03:04:05"),
            ("%START_TIME(%s.%3f)% %START_TIME(%E3S|%f)%", "1767323045.678 05.678|678000000"),
            ("%DURATION% %REQUEST_DURATION% %RESPONSE_DURATION% %RESPONSE_TX_DURATION%", "9 2 5 3"),
            ("%BYTES_RECEIVED% %BYTES_SENT%", "12 34"),
            ("%UPSTREAM_HOST% %UPSTREAM_CLUSTER% %UPSTREAM_CLUSTER_RAW%", "- outbound|80||a outbound|80||a"),
            ("%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%", "10.0.0.1:80 10.0.0.1"),
            ("%DOWNSTREAM_REMOTE_ADDRESS%", "[2001:db8::1]:4000"),
            ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_REMOTE_PORT%", "2001:db8::1 4000"),
            ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%", "10.0.0.2:5000"),
            ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%", "10.0.0.2"),
            ("%REQUESTED_SERVER_NAME% %ROUTE_NAME% %CONNECTION_ID% %STREAM_ID%", "a.example - 7 id"),
            ("%UPSTREAM_TRANSPORT_FAILURE_REASON% %CONNECTION_TERMINATION_DETAILS%", "- -"),
            ("%UPSTREAM_REQUEST_ATTEMPT_COUNT% %UPSTREAM_LOCAL_ADDRESS%", "3 -"),
        ] {
            assert_eq!(evaluate(text, "-"), expected, "{text}");
        }
        assert_eq!(evaluate("a%REQ(NONE)%b", ""), "ab");
        assert_eq!(evaluate("%HOSTNAME%", "?"), hostname());
    }

    #[test]
    fn what_is_wrong_is_refused_by_name() {
        for (text, expected) in [
            ("50%", "`50%`: the `%` at byte 2 begins no command (write `%%` for a percent sign)"),
            ("%lower%", "`%lower%`: the `%` at byte 0 begins no command (write `%%` for a percent sign)"),
            ("%REQ(x)", "`%REQ(x)`: the `%` at byte 0 begins no command (write `%%` for a percent sign)"),
            ("%DYNAMIC_METADATA(a:b)%", "`%DYNAMIC_METADATA%` is not a supported command"),
            ("%NONSENSE%", "`%NONSENSE%` is not a supported command"),
            ("%REQ%", "`%REQ%`: needs a header name"),
            ("%REQ()%", "`%REQ%`: needs a header name"),
            ("%REQ(a?b?c)%", "`%REQ%`: takes at most one alternative"),
            ("%PROTOCOL(x)%", "`%PROTOCOL%`: takes no parameters"),
            ("%PROTOCOL:3%", "`%PROTOCOL%`: takes no length"),
            ("%REQ(a):99999999999999999999%", "`%REQ%`: length is too large"),
            ("%START_TIME(%!)%", "`%START_TIME%`: unknown time format"),
        ] {
            let error = Template::parse(text).expect_err(text);
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn literals_are_known_as_such() {
        assert_eq!(Template::parse("a%%b").unwrap().as_literal(), Some(&b"a%b"[..]));
        assert_eq!(Template::parse("").unwrap().as_literal(), Some(&b""[..]));
        assert!(Template::parse("%PROTOCOL%x").unwrap().as_literal().is_none());
        assert!(Template::parse("%PROTOCOL%").unwrap().as_command().is_some());
        assert!(Template::parse("%HOSTNAME%").unwrap().as_literal().is_some());
    }

    proptest::proptest! {
        /// Any text is parsed or refused; text without `%` is a literal.
        #[test]
        fn never_panics(text in r"[%A-Z_():0-9a-z?é -]{0,40}") {
            let parsed = Template::parse(&text);
            if !text.contains('%') {
                let parsed = parsed.unwrap();
                proptest::prop_assert_eq!(parsed.as_literal(), Some(text.as_bytes()));
            }
        }
    }
}
