//! Properties that hold for all messages: pieces don't matter, and what is written reads back the same.

use bytes::BytesMut;
use proptest::prelude::*;

use super::encode::{self, HeadStyle};
use super::*;
use crate::http::body::BodyLength;
use crate::http::fields::Fields;
use crate::http::head::{RequestHead, ResponseHead};

/// All that a stream of requests says, until its end or the first error.
#[derive(Debug, Clone, PartialEq, Default)]
struct Story {
    messages: Vec<String>,
    error: Option<Malformed>,
    left: usize,
}

/// Reads `pieces` as a server would.
fn read<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> Story {
    let mut reader = Reader::default();
    for piece in pieces {
        reader.buf.extend_from_slice(piece);
        while reader.story.error.is_none() {
            match reader.step() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => reader.story.error = Some(error),
            }
        }
    }
    if reader.story.error.is_none() {
        reader.story.left = reader.buf.len();
    }
    reader.story
}

#[derive(Default)]
struct Reader {
    buf: BytesMut,
    scan: HeadScan,
    body: Option<BodyDecoder>,
    data: Vec<u8>,
    story: Story,
}

impl Reader {
    /// False where more bytes are needed.
    fn step(&mut self) -> Result<bool, Malformed> {
        let limits = Limits { max_head_bytes: 2000, max_headers: 20 };
        let Some(body) = &mut self.body else {
            let Some(end) = self.scan.find(&self.buf, &limits)? else { return Ok(false) };
            let block = self.buf.split_to(end);
            let mut head = RequestHead::new();
            let received = parse_request(&block, &mut head, &RequestRules::default())?;
            self.story.messages.push(format!("{head:?} {received:?}"));
            self.body = Some(BodyDecoder::new(received.framing, limits));
            return Ok(true);
        };
        match body.decode(&mut self.buf)? {
            Decoded::More => return Ok(false),
            Decoded::Data(piece) => self.data.extend_from_slice(&piece),
            Decoded::Trailers(fields) => self.story.messages.push(format!("{fields:?}")),
            Decoded::End => {
                self.story.messages.push(format!("{:?}", std::mem::take(&mut self.data)));
                self.body = None;
                self.scan = HeadScan::default();
            }
        }
        Ok(true)
    }
}

const STREAMS: &[&[u8]] = &[
    b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n\r\nPOST /b HTTP/1.1\r\nHost: y\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n",
    b"POST /b HTTP/1.1\r\nHost: y\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n1\r\nd\r\n0\r\nA: b\r\n\r\nGET / HTTP/1.0\r\n\r\n",
    b"POST /b HTTP/1.1\r\nHost: y\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcX\r\n",
    b"POST /b HTTP/1.1\r\nHost: y\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\n c\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: y\nB: c\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: y\r\nB: c\rd\r\n\r\n",
];

#[test]
fn cutting_the_input_anywhere_changes_nothing() {
    for stream in STREAMS {
        let whole = read([*stream]);
        assert!(!whole.messages.is_empty() || whole.error.is_some());
        for cut in 0..=stream.len() {
            assert_eq!(read([&stream[..cut], &stream[cut..]]), whole, "{cut}: {}", stream.escape_ascii());
        }
        assert_eq!(read(stream.chunks(1)), whole, "{}", stream.escape_ascii());
    }
}

fn token() -> impl Strategy<Value = String> {
    "[a-zA-Z!#$%&'*+.^_`|~-][a-zA-Z0-9!#$%&'*+.^_`|~-]{0,12}"
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    let inner = prop::collection::vec(prop_oneof![Just(b' '), 0x21..=0x7eu8, 0x80..=0xffu8], 0..20);
    inner.prop_map(|bytes| bytes.trim_ascii().to_vec())
}

fn fields() -> impl Strategy<Value = Fields> {
    prop::collection::vec((token(), value()), 0..8).prop_map(|lines| {
        let mut fields = Fields::new();
        for (name, value) in lines {
            if !matches!(
                &*name.to_ascii_lowercase(),
                "host"
                    | "te"
                    | "connection"
                    | "upgrade"
                    | "keep-alive"
                    | "content-length"
                    | "transfer-encoding"
            ) {
                fields.append(&*name, &value);
            }
        }
        fields
    })
}

fn request_head() -> impl Strategy<Value = RequestHead> {
    (token(), "[a-z0-9.-]{1,10}(:[0-9]{1,4})?", "/[!-~&&[^#]]{0,20}", fields()).prop_map(
        |(method, authority, path, fields)| {
            let mut head = RequestHead::new();
            head.fields = fields;
            head.set_method(if method == "CONNECT" { b"GET" } else { method.as_bytes() });
            head.set_authority(authority.as_bytes());
            head.set_path(path.as_bytes());
            head
        },
    )
}

fn body() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..5)
}

/// Head and body as they are written, and the framing.
fn written(head: &RequestHead, pieces: &[Vec<u8>], chunked: bool, trailers: &Fields, case: bool) -> Vec<u8> {
    let length = pieces.iter().map(|piece| piece.len() as u64).sum();
    let framing =
        encode::request_framing(if chunked { BodyLength::Unknown } else { BodyLength::Known(length) });
    let mut out = BytesMut::new();
    encode::write_request(&mut out, head, framing, HeadStyle { preserve_case: case, ..HeadStyle::default() });
    let mut encoder = BodyEncoder::new(framing);
    for piece in pieces {
        encoder.piece(piece, &mut out).unwrap();
    }
    encoder.end(Some(trailers), case, &mut out).unwrap();
    out.to_vec()
}

proptest! {
    #[test]
    fn requests_read_back_as_written(
        head in request_head(), pieces in body(), chunked: bool, trailers in fields(), case: bool,
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let bytes = written(&head, &pieces, chunked, &trailers, case);
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        at.extend([0, bytes.len()]);
        at.sort_unstable();
        let limits = Limits::default();
        let (mut scan, mut buf, mut decoder) = (HeadScan::default(), BytesMut::new(), None);
        let mut got_head = RequestHead::new();
        let (mut data, mut got_trailers, mut ended) = (Vec::new(), Fields::new(), false);
        for window in at.windows(2) {
            buf.extend_from_slice(&bytes[window[0]..window[1]]);
            if decoder.is_none() {
                let Some(end) = scan.find(&buf, &limits).unwrap() else { continue };
                let received = parse_request(&buf.split_to(end), &mut got_head, &RequestRules::default()).unwrap();
                decoder = Some(BodyDecoder::new(received.framing, limits));
            }
            let Some(decoder) = &mut decoder else { continue };
            loop {
                match decoder.decode(&mut buf).unwrap() {
                    Decoded::More => break,
                    Decoded::Data(piece) => data.extend_from_slice(&piece),
                    Decoded::Trailers(fields) => got_trailers = fields,
                    Decoded::End => { ended = true; break }
                }
            }
        }
        prop_assert!(ended && buf.is_empty());
        prop_assert_eq!(data, pieces.concat());
        prop_assert_eq!(got_head.method_str(), head.method_str());
        prop_assert_eq!(got_head.authority(), head.authority());
        prop_assert_eq!(got_head.path(), head.path());
        got_head.fields.remove("content-length");
        prop_assert_eq!(&got_head.fields, &head.fields);
        if case {
            prop_assert!(got_head.fields.iter().zip(head.fields.iter()).all(|(a, b)| a.name == b.name));
        }
        prop_assert_eq!(got_trailers, if chunked { trailers } else { Fields::new() });
    }

    #[test]
    fn responses_read_back_as_written(status in 200u16..600, fields in fields(), pieces in body()) {
        let head = ResponseHead { fields, ..ResponseHead::new(status) };
        let method = crate::http::head::Method::Get;
        let framing = encode::response_framing(method, head.version, status, BodyLength::Unknown);
        let mut out = BytesMut::new();
        encode::write_response(&mut out, &head, framing, HeadStyle::default());
        let mut encoder = BodyEncoder::new(framing);
        for piece in &pieces {
            encoder.piece(piece, &mut out).unwrap();
        }
        encoder.end(None, false, &mut out).unwrap();
        let end = HeadScan::default().find(&out, &Limits::default()).unwrap().unwrap();
        let mut got = ResponseHead::default();
        let received = parse_response(&out.split_to(end), &mut got, method).unwrap();
        prop_assert_eq!(received, Received { framing, persistent: true });
        prop_assert_eq!((got.status, &got.fields), (status, &head.fields));
        let mut decoder = BodyDecoder::new(framing, Limits::default());
        let mut data = Vec::new();
        while let Decoded::Data(piece) = decoder.decode(&mut out).unwrap() {
            data.extend_from_slice(&piece);
        }
        prop_assert!(decoder.is_done());
        prop_assert_eq!(data, if framing == Framing::None { Vec::new() } else { pieces.concat() });
    }

    #[test]
    fn any_bytes_in_any_pieces_tell_the_same_story(
        start in prop::sample::select(STREAMS), noise in prop::collection::vec(any::<u8>(), 0..60),
        at in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = start.to_vec();
        let at = at.index(bytes.len());
        bytes.splice(at.saturating_sub(noise.len() / 2)..at, noise);
        let cut = cut.index(bytes.len() + 1);
        let whole = read([&bytes[..]]);
        prop_assert_eq!(read([&bytes[..cut], &bytes[cut..]]), whole.clone());
        prop_assert_eq!(read(bytes.chunks(1)), whole);
    }
}
