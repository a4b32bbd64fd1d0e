//! Finds the end of a head in bytes that arrive in pieces.
//!
//! Each byte is looked at once, however small the pieces are. Along the way the line structure is checked, because
//! the field parser behind accepts more than it should: every line ends in CRLF, CR and LF stand nowhere else (RFC 9112
//! 2.2), and no line is folded (RFC 9112 5.2).

use memchr::memchr2;

use super::{Limits, Malformed};

/// Empty lines that are skipped before a request line (RFC 9112 2.2 asks for at least one).
const MAX_EMPTY_LINES: usize = 4;

/// How far the search has come. One per head; start anew with [`HeadScan::default`].
#[derive(Debug, Clone, Copy, Default)]
pub struct HeadScan {
    /// Everything before this was looked at.
    at: usize,
    line_start: usize,
    lines: usize,
}

impl HeadScan {
    /// Where the head in `buf` ends (after its empty line), or `None` if more bytes are needed. `buf` must begin with the
    /// bytes of the calls before.
    pub fn find(&mut self, buf: &[u8], limits: &Limits) -> Result<Option<usize>, Malformed> {
        while let Some(found) = memchr2(b'\r', b'\n', &buf[self.at..]) {
            let end = self.at + found;
            if end >= limits.max_head_bytes {
                return Err(Malformed::TooLarge);
            }
            if buf[end] == b'\n' {
                return Err(Malformed::Syntax("LF without CR"));
            }
            let Some(next) = buf.get(end + 1) else {
                self.at = end;
                return Ok(None);
            };
            if *next != b'\n' {
                return Err(Malformed::Syntax("CR without LF"));
            }
            let line = self.line_start..end;
            self.at = end + 2;
            self.line_start = end + 2;
            if !line.is_empty() {
                self.lines += 1;
                if self.lines > 1 && matches!(buf[line.start], b' ' | b'\t') {
                    return Err(Malformed::Syntax("folded or indented line"));
                }
                if self.lines > limits.max_headers + 1 {
                    return Err(Malformed::TooManyFields);
                }
            } else if self.lines > 0 {
                return if self.at > limits.max_head_bytes {
                    Err(Malformed::TooLarge)
                } else {
                    Ok(Some(self.at))
                };
            } else if self.at > 2 * MAX_EMPTY_LINES {
                return Err(Malformed::Syntax("empty lines before the start line"));
            }
        }
        self.at = buf.len();
        if buf.len() > limits.max_head_bytes { Err(Malformed::TooLarge) } else { Ok(None) }
    }

    /// True where not even a part of a start line was seen.
    pub fn is_untouched(&self) -> bool {
        self.lines == 0 && self.at == self.line_start
    }
}

/// Finds the end of a trailer section, which may be empty: no start line, same rules.
#[derive(Debug, Clone, Copy)]
pub(super) struct TrailerScan(HeadScan);

impl Default for TrailerScan {
    fn default() -> Self {
        Self(HeadScan { at: 0, line_start: 0, lines: 1 })
    }
}

impl TrailerScan {
    pub(super) fn find(&mut self, buf: &[u8], limits: &Limits) -> Result<Option<usize>, Malformed> {
        self.0.find(buf, limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        HeadScan::default().find(bytes, &Limits::default())
    }

    #[test]
    fn the_end_is_after_the_empty_line() {
        for (bytes, end) in [
            (&b""[..], None),
            (b"GET / HTTP/1.1\r", None),
            (b"GET / HTTP/1.1\r\n\r", None),
            (b"GET / HTTP/1.1\r\n\r\n", Some(18)),
            (b"\r\nGET / HTTP/1.1\r\n\r\nrest\nrest", Some(20)),
            (b"GET / HTTP/1.1\r\na: b\r\n\r\n\r\n", Some(24)),
        ] {
            assert_eq!(scan(bytes), Ok(end), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn limits_hold_before_the_end_is_seen() {
        let limits = Limits { max_head_bytes: 30, max_headers: 2 };
        let find = |bytes: &[u8]| HeadScan::default().find(bytes, &limits);
        assert_eq!(find(&[b'x'; 30]), Ok(None));
        assert_eq!(find(&[b'x'; 31]), Err(Malformed::TooLarge));
        assert_eq!(find(b"GET / HTTP/1.1\r\na:b\r\nc:d\r\n\r\n"), Ok(Some(28)));
        assert_eq!(find(b"GET / HTTP/1.1\r\na:b\r\nc:d\r\ne:f\r\n"), Err(Malformed::TooManyFields));
        assert_eq!(find(b"GET / HTTP/1.1\r\na:0123456789012345\r\n\r\n"), Err(Malformed::TooLarge));
    }

    #[test]
    fn trailers_have_no_start_line() {
        let find = |bytes: &[u8]| TrailerScan::default().find(bytes, &Limits::default());
        assert_eq!(find(b"\r\n"), Ok(Some(2)));
        assert_eq!(find(b"a: b\r\n"), Ok(None));
        assert_eq!(find(b"a: b\r\n\r\nrest"), Ok(Some(8)));
        assert_eq!(find(b" a: b\r\n\r\n"), Err(Malformed::Syntax("folded or indented line")));
    }
}
