//! What must hold for any bytes that an HTTP/1 peer sends. Shared by the fuzz target and by `proxy/tests/http1_corpus.rs`.
//!
//! The first byte of an input says which side reads (and the method that a response answers), the second how large the
//! pieces are that arrive; the rest is the stream. Checked: nothing panics; pieces don't matter; and every message that is
//! accepted is written so that it reads back as the same one message, with nothing left over. The last is what makes
//! smuggling impossible, whatever the peer sent.

use bytes::BytesMut;
use osier_proxy::http::body::BodyLength;
use osier_proxy::http::fields::Fields;
use osier_proxy::http::h1::encode::{self, HeadStyle};
use osier_proxy::http::h1::{
    BodyDecoder, BodyEncoder, Decoded, Framing, HeadScan, Limits, Malformed, RequestRules, parse_request,
    parse_response,
};
use osier_proxy::http::head::{Known, Method, RequestHead, ResponseHead};

/// Small, so that inputs reach them.
const LIMITS: Limits = Limits { max_head_bytes: 4096, max_headers: 30 };

/// Checks one input.
pub fn check(input: &[u8]) {
    let [side, piece, stream @ ..] = input else { return };
    let side = match side % 5 {
        0 | 1 => Side::Request,
        2 => Side::Response(Method::Get),
        3 => Side::Response(Method::Head),
        _ => Side::Response(Method::Connect),
    };
    let whole = read(side, [stream]);
    let piece = usize::from(*piece).max(1);
    assert_eq!(read(side, stream.chunks(piece)), whole, "pieces of {piece} bytes read differently");
    for message in &whole.messages {
        message.check(side);
    }
}

#[derive(Debug, Clone, Copy)]
enum Side {
    Request,
    Response(Method),
}

#[derive(Debug, Clone)]
enum Head {
    Request(Box<RequestHead>),
    Response(ResponseHead),
}

impl Head {
    fn fields(&self) -> &Fields {
        match self {
            Self::Request(head) => &head.fields,
            Self::Response(head) => &head.fields,
        }
    }
}

/// One message that was accepted.
#[derive(Debug, Clone)]
struct Message {
    head: Head,
    framing: Framing,
    body: Vec<u8>,
    trailers: Fields,
    complete: bool,
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        format!("{:?}", self.head) == format!("{:?}", other.head)
            && self.framing == other.framing
            && self.body == other.body
            && self.trailers == other.trailers
            && self.complete == other.complete
    }
}

/// All that a stream said.
#[derive(Debug, PartialEq, Default)]
struct Story {
    messages: Vec<Message>,
    error: Option<Malformed>,
    left: usize,
}

fn read<'p>(side: Side, pieces: impl IntoIterator<Item = &'p [u8]>) -> Story {
    let mut reader =
        Reader { side, buf: BytesMut::new(), scan: HeadScan::default(), body: None, story: Story::default() };
    for piece in pieces {
        reader.buf.extend_from_slice(piece);
        loop {
            match reader.step() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    reader.story.error = Some(error);
                    return reader.story;
                }
            }
        }
    }
    if let (Some(body), Some(message)) = (&mut reader.body, reader.story.messages.last_mut()) {
        message.complete = body.closed().is_ok();
    }
    reader.story.left = reader.buf.len();
    reader.story
}

struct Reader {
    side: Side,
    buf: BytesMut,
    scan: HeadScan,
    body: Option<BodyDecoder>,
    story: Story,
}

impl Reader {
    /// False where more bytes are needed.
    fn step(&mut self) -> Result<bool, Malformed> {
        let Some(body) = &mut self.body else {
            let Some(end) = self.scan.find(&self.buf, &LIMITS)? else { return Ok(false) };
            let block = self.buf.split_to(end);
            let (head, received) = match self.side {
                Side::Request => {
                    let mut head = RequestHead::new();
                    let received = parse_request(&block, &mut head, &RequestRules::default())?;
                    (Head::Request(Box::new(head)), received)
                }
                Side::Response(method) => {
                    let mut head = ResponseHead::default();
                    let received = parse_response(&block, &mut head, method)?;
                    (Head::Response(head), received)
                }
            };
            self.body = Some(BodyDecoder::new(received.framing, LIMITS));
            let (body, trailers) = (Vec::new(), Fields::new());
            self.story.messages.push(Message {
                head,
                framing: received.framing,
                body,
                trailers,
                complete: false,
            });
            return Ok(true);
        };
        let message = self.story.messages.last_mut().expect("a body follows its head");
        match body.decode(&mut self.buf)? {
            Decoded::More => return Ok(false),
            Decoded::Data(data) => {
                assert!(!data.is_empty(), "a frame without data");
                message.body.extend_from_slice(&data);
            }
            Decoded::Trailers(fields) => message.trailers = fields,
            Decoded::End => {
                message.complete = true;
                self.body = None;
                self.scan = HeadScan::default();
            }
        }
        Ok(true)
    }
}

impl Message {
    fn check(&self, side: Side) {
        for field in self.head.fields().iter().chain(self.trailers.iter()) {
            assert!(!field.name.is_empty() && field.name.iter().all(|b| b.is_ascii_graphic() && *b != b':'));
            assert!(!field.value.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
        }
        for hop in [Known::TransferEncoding, Known::KeepAlive, Known::ProxyConnection] {
            assert!(!self.head.fields().contains(hop), "{hop:?} got through");
        }
        if let Head::Request(head) = &self.head {
            assert!(!head.fields.contains(Known::Host), "Host is the authority");
        }
        if !self.complete {
            return;
        }
        for length in [BodyLength::Known(self.body.len() as u64), BodyLength::Unknown] {
            for preserve_case in [false, true] {
                let bytes = self.written(side, length, preserve_case);
                let story = read(side, [&bytes[..]]);
                assert_eq!((story.error, story.left), (None, 0), "{}", bytes.escape_ascii());
                let [again] = &story.messages[..] else {
                    panic!("{} messages of one: {}", story.messages.len(), bytes.escape_ascii());
                };
                self.check_same(again);
            }
        }
    }

    fn written(&self, side: Side, length: BodyLength, preserve_case: bool) -> Vec<u8> {
        let mut out = BytesMut::new();
        let framing = match &self.head {
            Head::Request(head) => {
                let framing = match self.framing {
                    Framing::None => Framing::None,
                    _ => encode::request_framing(length),
                };
                let style = HeadStyle { preserve_case, ..HeadStyle::default() };
                encode::write_request(&mut out, head, framing, style);
                framing
            }
            Head::Response(head) => {
                let Side::Response(method) = side else { unreachable!("a response is read by a client") };
                let framing = encode::response_framing(method, head.version, head.status, length);
                let style = HeadStyle { preserve_case, version: head.version, ..HeadStyle::default() };
                encode::write_response(&mut out, head, framing, style);
                framing
            }
        };
        let mut encoder = BodyEncoder::new(framing);
        for piece in self.body.chunks(7) {
            encoder.piece(piece, &mut out).expect("the announced length");
        }
        encoder.end(Some(&self.trailers), preserve_case, &mut out).expect("the announced length");
        out.to_vec()
    }

    fn check_same(&self, again: &Self) {
        assert!(again.complete);
        assert_eq!(again.body, self.body);
        match (&self.head, &again.head) {
            (Head::Request(old), Head::Request(new)) => {
                assert_eq!(old.method_str(), new.method_str());
                assert_eq!(old.authority(), new.authority());
                assert_eq!(old.path(), new.path());
            }
            (Head::Response(old), Head::Response(new)) => assert_eq!(old.status, new.status),
            _ => unreachable!("sides don't change"),
        }
        let plain = |fields: &Fields| {
            let mut fields = fields.clone();
            fields.remove(Known::ContentLength);
            // Kept fields are made anew at the end, so their place may differ.
            fields.remove(Known::Connection);
            fields.remove(Known::Te);
            fields
        };
        assert_eq!(plain(self.head.fields()), plain(again.head.fields()));
    }
}
