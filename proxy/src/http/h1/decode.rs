//! Takes a body apart as its bytes arrive (RFC 9112 6 and 7).
//!
//! Data is split off the read buffer without copying. The decoder never takes a byte that lies behind the message, so
//! what it leaves in the buffer is the next one.

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr2;

use super::scan::TrailerScan;
use super::{Framing, Limits, Malformed, parse};
use crate::http::fields::Fields;

/// Bytes of one chunk's size line.
const MAX_SIZE_LINE: usize = 1024;
/// Bytes of chunk extensions beyond what goes with the data (some per chunk, and twice the data): they are thrown away, and
/// must not be a way to keep us busy.
const MAX_EXTENSIONS: u64 = 16 * 1024;
/// Bytes of extension that a chunk of any size may have.
const FREE_EXTENSION: u64 = 16;
/// Hexadecimal digits of a chunk size; leading zeros count.
const MAX_SIZE_DIGITS: usize = 16;

/// What [`BodyDecoder::decode`] found next.
#[derive(Debug, Clone, PartialEq)]
pub enum Decoded {
    /// Nothing without more bytes.
    More,
    /// Some of the body; never empty.
    Data(Bytes),
    /// The trailers, if there were any. [`Decoded::End`] follows.
    Trailers(Fields),
    /// The message is over. So says every later call.
    End,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Length(u64),
    UntilClose,
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers(TrailerScan),
    Done,
}

/// The decoder of one body.
#[derive(Debug, Clone)]
pub struct BodyDecoder {
    state: State,
    limits: Limits,
    extensions: u64,
}

impl BodyDecoder {
    /// A decoder for a body that is framed like that; `limits` hold for its trailers.
    pub fn new(framing: Framing, limits: Limits) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, limits, extensions: 0 }
    }

    /// Takes the next piece off `buf`.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Decoded, Malformed> {
        loop {
            match &mut self.state {
                State::Done => return Ok(Decoded::End),
                State::UntilClose if buf.is_empty() => return Ok(Decoded::More),
                State::UntilClose => return Ok(Decoded::Data(buf.split().freeze())),
                State::Length(left) | State::ChunkData(left) => {
                    if buf.is_empty() {
                        return Ok(Decoded::More);
                    }
                    let take = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
                    *left -= take as u64;
                    if *left == 0 {
                        self.state = match self.state {
                            State::ChunkData(_) => State::ChunkEnd,
                            _ => State::Done,
                        };
                    }
                    return Ok(Decoded::Data(buf.split_to(take).freeze()));
                }
                State::ChunkSize => match self.chunk_size(buf)? {
                    None => return Ok(Decoded::More),
                    Some(0) => self.state = State::Trailers(TrailerScan::default()),
                    Some(size) => self.state = State::ChunkData(size),
                },
                State::ChunkEnd => match buf.first_chunk::<2>() {
                    Some(b"\r\n") => {
                        buf.advance(2);
                        self.state = State::ChunkSize;
                    }
                    None if buf.is_empty() || buf[0] == b'\r' => return Ok(Decoded::More),
                    _ => return Err(Malformed::Syntax("no CRLF after a chunk")),
                },
                State::Trailers(scan) => {
                    let Some(end) = scan.find(buf, &self.limits)? else { return Ok(Decoded::More) };
                    self.state = State::Done;
                    let block = buf.split_to(end);
                    if block.len() > 2 {
                        return Ok(Decoded::Trailers(parse::parse_trailers(&block)?));
                    }
                }
            }
        }
    }

    /// The peer closed: the end of a body that lasts until then, an error within any other.
    pub fn closed(&mut self) -> Result<(), Malformed> {
        match self.state {
            State::Done => Ok(()),
            State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(Malformed::Truncated),
        }
    }

    /// True when the message is over.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Bytes of the body that are still to come, where that is known.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Done => Some(0),
            State::Length(left) => Some(left),
            _ => None,
        }
    }

    /// Takes a size line off `buf`.
    fn chunk_size(&mut self, buf: &mut BytesMut) -> Result<Option<u64>, Malformed> {
        let window = &buf[..buf.len().min(MAX_SIZE_LINE)];
        let end = memchr2(b'\r', b'\n', window);
        // What can't become a size is refused at once, not when its line ends.
        size_of_line(&window[..end.unwrap_or(window.len())], false)?;
        let Some(end) = end else {
            let too_long = buf.len() >= MAX_SIZE_LINE;
            return if too_long { Err(Malformed::Syntax("chunk extension too long")) } else { Ok(None) };
        };
        if buf[end] == b'\n' {
            return Err(Malformed::Syntax("LF without CR"));
        }
        match buf.get(end + 1) {
            None => return Ok(None),
            Some(b'\n') => {}
            Some(_) => return Err(Malformed::Syntax("CR without LF")),
        }
        let (size, digits) = size_of_line(&buf[..end], true)?;
        let free = size.saturating_mul(2).saturating_add(FREE_EXTENSION);
        self.extensions = (self.extensions + (end - digits) as u64).saturating_sub(free);
        if self.extensions > MAX_EXTENSIONS {
            return Err(Malformed::Syntax("chunk extensions too long"));
        }
        buf.advance(end + 2);
        Ok(Some(size))
    }
}

/// The size that a line begins with, and its number of digits; `whole` where the line has ended.
fn size_of_line(line: &[u8], whole: bool) -> Result<(u64, usize), Malformed> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let extension = &line[digits..];
    let starts_extension = matches!(extension.trim_ascii_start(), [] | [b';', ..]);
    let clean = extension.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f));
    if digits > MAX_SIZE_DIGITS || (digits == 0 && (whole || !line.is_empty())) || !starts_extension || !clean
    {
        return Err(Malformed::Syntax("chunk size"));
    }
    let value = |byte: &u8| u64::from(char::from(*byte).to_digit(16).unwrap_or_default());
    Ok((line[..digits].iter().fold(0, |size, byte| size << 4 | value(byte)), digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Data, trailers and rest of `bytes`, given at once.
    fn decode(framing: Framing, bytes: &[u8]) -> Result<(Vec<u8>, Fields, Vec<u8>), Malformed> {
        let mut decoder = BodyDecoder::new(framing, Limits::default());
        let mut buf = BytesMut::from(bytes);
        let (mut data, mut trailers) = (Vec::new(), Fields::new());
        loop {
            match decoder.decode(&mut buf)? {
                Decoded::Data(piece) => data.extend_from_slice(&piece),
                Decoded::Trailers(fields) => trailers = fields,
                Decoded::End => return Ok((data, trailers, buf.to_vec())),
                Decoded::More => decoder.closed()?,
            }
        }
    }

    #[test]
    fn bodies_end_where_their_framing_says() {
        for (framing, bytes, data, rest) in [
            (Framing::None, &b"next"[..], &b""[..], &b"next"[..]),
            (Framing::Length(3), b"abcnext", b"abc", b"next"),
            (Framing::UntilClose, b"all of it", b"all of it", b""),
            (Framing::Chunked, b"3\r\nabc\r\n0\r\n\r\nnext", b"abc", b"next"),
            (Framing::Chunked, b"0\r\n\r\n", b"", b""),
            (Framing::Chunked, b"A;x=\"y\";z\r\n0123456789\r\n00\r\n\r\n", b"0123456789", b""),
            (Framing::Chunked, b"1 \t; x\r\na\r\n1  \r\nb\r\n0\r\n\r\n", b"ab", b""),
        ] {
            let got = decode(framing, bytes).unwrap();
            assert_eq!((&got.0[..], &got.2[..]), (data, rest), "{}", bytes.escape_ascii());
        }
        let (_, trailers, _) = decode(Framing::Chunked, b"0\r\nX-Sum: 5\r\nb:\r\n\r\n").unwrap();
        assert_eq!(trailers.get("x-sum"), Some(&b"5"[..]));
        assert_eq!(trailers.len(), 2);
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        for (framing, bytes) in [
            (Framing::Length(4), &b"abc"[..]),
            (Framing::Chunked, b"3\r\nabc\r\n"),
            (Framing::Chunked, b"0\r\n"),
        ] {
            assert_eq!(decode(framing, bytes), Err(Malformed::Truncated), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn extensions_are_bounded() {
        let line = |len: usize| [b"1;".as_slice(), &vec![b'x'; len], b"\r\na\r\n"].concat();
        let mut long = line(2000);
        long.extend_from_slice(b"0\r\n\r\n");
        assert_eq!(decode(Framing::Chunked, &long), Err(Malformed::Syntax("chunk extension too long")));
        let mut many = line(500).repeat(40);
        many.extend_from_slice(b"0\r\n\r\n");
        assert_eq!(decode(Framing::Chunked, &many), Err(Malformed::Syntax("chunk extensions too long")));
    }
}
