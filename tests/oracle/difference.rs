//! Where Osier answers otherwise than Envoy. Each entry says why. An entry that no longer differs fails the suite.

/// On purpose: `(case, reason)`.
const WANTED: &[(&str, &str)] = &[
    (
        "fragment dropped",
        "Istio switches off Envoy's refusal of fragments and drops them; Osier always does as Istio",
    ),
    ("response hop-by-hop removed", "RFC 9110 7.6.1: what `connection` lists ends here, in responses too"),
    ("head of chunked", "an answer to HEAD has no body, so it is not said how one would be framed"),
    ("redirect post", "the body is small and read away, so the connection can be kept"),
    ("direct to POST", "the body is small and read away, so the connection can be kept"),
    ("no route with body", "the body is small and read away, so the connection can be kept"),
    (
        "transfer coding twice",
        "two lines of Transfer-Encoding are how requests are smuggled: faulty (400), not unknown (501)",
    ),
    (
        "transfer coding list",
        "a list with chunked in it is read in different ways: faulty (400), not unknown (501)",
    ),
    (
        "transfer coding identity",
        "the coding is unknown (501), which is found before Content-Length beside it (400); both refuse",
    ),
    ("bare line feed", "RFC 9112 2.2: recipients disagree about a bare LF, so it is refused"),
    ("bare carriage return in value", "RFC 9112 2.2: recipients disagree about a bare CR, so it is refused"),
    ("folded header", "RFC 9112 5.2: folded lines are refused, the safer of the two allowed ways"),
    ("two hosts", "RFC 9112 3.2: more than one Host must be refused"),
    ("bad version", "a version that doesn't exist is a malformed request; 426 is for HTTP/1.0 alone"),
    (
        "version 2 in the line",
        "a version that has no such line is a malformed request; 426 is for HTTP/1.0 alone",
    ),
    ("no version", "HTTP/0.9 has no headers, so this is a malformed request; 426 is for HTTP/1.0 alone"),
    (
        "chunk without end",
        "RFC 9112 7.1: chunk data without its CRLF is faulty framing, and so a way to smuggle",
    ),
    (
        "https on plaintext",
        "the target's scheme is not the transport's: routes could be taken for the secure ones",
    ),
    ("user info", "RFC 9110 4.2.4: user information in a target is an error; it serves to disguise the host"),
    (
        "websocket refused by the backend",
        "RFC 9110 7.8: a backend may ignore an upgrade; its answer is passed on whole, where Envoy drops the body",
    ),
];

/// Gaps: `(case, what is missing)`.
const OPEN: &[(&str, &str)] = &[];

/// True for a listed case.
pub fn is_listed(case: &str) -> bool {
    WANTED.iter().chain(OPEN).any(|(name, _)| *name == case)
}
