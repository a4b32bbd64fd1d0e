//! HTTP/1.1 as bytes: what was sent is exactly what the test says, and the whole answer is read.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// How long a peer may be silent.
const SILENCE: Duration = Duration::from_secs(10);

/// One answer as it came.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Response {
    /// First line, without its end.
    pub line: String,
    /// Header lines in order, names as sent.
    pub headers: Vec<(String, String)>,
    /// Body with the framing taken off.
    pub body: Vec<u8>,
    /// Trailers.
    pub trailers: Vec<(String, String)>,
}

impl Response {
    /// Status code; 0 where the line has none.
    pub fn status(&self) -> u16 {
        self.line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    /// First value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// What a connection did after a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    /// It can be used again.
    Open,
    /// The peer closed it.
    Closed,
}

/// A connection that speaks raw HTTP/1.1.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects.
    pub fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address)
            .unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"));
        stream.set_read_timeout(Some(SILENCE)).expect("a time-out can be set");
        stream.set_nodelay(true).expect("nodelay can be set");
        Self { stream, buffer: Vec::new() }
    }

    /// Writes bytes; a peer that has closed already is no error here: its answer counts.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Ends our side.
    pub fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Reads one answer to a request with this method. `None` when the connection ended before one began.
    pub fn receive(&mut self, method: &str) -> Option<Response> {
        let head = self.read_head()?;
        let mut lines = head.split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let mut response =
            Response { line, headers: lines.filter_map(field).collect(), ..Response::default() };
        let status = response.status();
        if method == "HEAD" || (100..200).contains(&status) || status == 204 || status == 304 {
            return Some(response);
        }
        if response.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            self.read_chunks(&mut response);
        } else if let Some(length) = response.header("content-length").and_then(|value| value.parse().ok()) {
            while self.buffer.len() < length && self.fill() {}
            response.body = self.take(length);
        } else if !(method == "CONNECT" && status == 200) {
            while self.fill() {}
            response.body = std::mem::take(&mut self.buffer);
        }
        Some(response)
    }

    /// Whether the peer has closed, or closes within a moment.
    pub fn after(&mut self, moment: Duration) -> After {
        self.stream.set_read_timeout(Some(moment)).expect("a time-out can be set");
        let mut byte = [0];
        let after = match self.stream.read(&mut byte) {
            Ok(0) => After::Closed,
            Ok(_) => {
                self.buffer.push(byte[0]);
                After::Open
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => After::Open,
            Err(_) => After::Closed,
        };
        self.stream.set_read_timeout(Some(SILENCE)).expect("a time-out can be set");
        after
    }

    fn read_head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = self.take(end + 4);
                return Some(String::from_utf8_lossy(&head[..end]).into_owned());
            }
            if !self.fill() {
                return None;
            }
        }
    }

    fn read_chunks(&mut self, response: &mut Response) {
        while let Some(line) = self.read_line() {
            let Ok(size) = usize::from_str_radix(line.split(';').next().unwrap_or("").trim(), 16) else {
                return;
            };
            if size == 0 {
                while let Some(line) = self.read_line().filter(|line| !line.is_empty()) {
                    response.trailers.extend(field(&line));
                }
                return;
            }
            while self.buffer.len() < size + 2 && self.fill() {}
            let chunk = self.take(size + 2);
            response.body.extend_from_slice(&chunk[..size.min(chunk.len())]);
        }
    }

    fn read_line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                let line = self.take(end + 2);
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.fill() {
                return None;
            }
        }
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let length = length.min(self.buffer.len());
        self.buffer.drain(..length).collect()
    }

    /// Reads more; false at the end of the connection, and when the peer is silent for too long.
    fn fill(&mut self) -> bool {
        let mut block = [0; 16 * 1024];
        match self.stream.read(&mut block) {
            Ok(0) | Err(_) => false,
            Ok(read) => {
                self.buffer.extend_from_slice(&block[..read]);
                true
            }
        }
    }
}

fn field(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    Some((name.to_owned(), value.trim().to_owned()))
}

/// One request on a connection of its own.
pub fn exchange(address: SocketAddr, method: &str, bytes: &[u8]) -> Option<Response> {
    let mut connection = Connection::open(address);
    connection.send(bytes);
    connection.receive(method)
}
