//! A backend that resets, stalls, answers early or answers nonsense: what its client sees through two sidecars, and what each
//! sidecar says of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use osier_tests::mesh::{Pilot, Sidecar, service};
use osier_tests::raw::{After, Connection, Response};
use osier_tests::{process, wait};

use crate::disk::access_log;

/// A backend that does what the first word of the path says.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || misbehave(stream));
        }
    });
    address
}

/// The end of a socket by RST.
fn reset(stream: &TcpStream) {
    nix::sys::socket::setsockopt(
        stream,
        nix::sys::socket::sockopt::Linger,
        &nix::libc::linger { l_onoff: 1, l_linger: 0 },
    )
    .expect("linger can be set");
}

fn misbehave(stream: TcpStream) {
    let mut reader = BufReader::new(&stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).is_ok_and(|read| read > 0) {
                continue;
            }
            return;
        }
        let path = head.split(' ').nth(1).unwrap_or("").to_owned();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let say = |text: &str| (&stream).write_all(text.as_bytes()).is_ok();
        let rest_of_request = |reader: &mut BufReader<&TcpStream>| {
            let mut body = vec![0; length.unwrap_or(0)];
            reader.read_exact(&mut body).is_ok()
        };
        match path.as_str() {
            "/reset" => return reset(&stream),
            "/close" => return,
            "/reset-in-body" => {
                say("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf ");
                // Long enough for the half to be on its way: a reset overtakes what waits in buffers.
                std::thread::sleep(Duration::from_millis(100));
                return reset(&stream);
            }
            "/close-in-body" => {
                say("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf ");
                return;
            }
            "/close-in-chunk" => {
                say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\nhalf");
                return;
            }
            "/nonsense" => {
                say("ICY 200 OK\r\n\r\n");
                return;
            }
            "/two-lengths" => {
                say("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab");
            }
            "/stall" => {
                // Until the other side has had enough.
                let _ = reader.read(&mut [0]);
                return;
            }
            "/early" => {
                say("HTTP/1.1 413 Too Much\r\ncontent-length: 4\r\n\r\nstop");
                let _ = stream.shutdown(Shutdown::Write);
                // What was sent meanwhile is taken off the wire, so that nothing is reset.
                let _ = std::io::copy(&mut reader, &mut std::io::sink());
                return;
            }
            "/early-and-reset" => {
                say("HTTP/1.1 413 Too Much\r\ncontent-length: 4\r\nconnection: close\r\n\r\nstop");
                return;
            }
            _ => {
                if !rest_of_request(&mut reader) || !say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok") {
                    return;
                }
            }
        }
    }
}

/// One line of a sidecar's access log.
type Line = serde_json::Value;

struct Mesh {
    server: Sidecar,
    client: Sidecar,
    host: String,
    _pilot: Pilot,
}

impl Mesh {
    fn start() -> Self {
        let port = process::free_address().port();
        let format = r#"    accessLogEncoding: JSON
    accessLogFormat: '{"id": "%REQ(X-REQUEST-ID)%", "code": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%", "details": "%RESPONSE_CODE_DETAILS%"}'
"#;
        let rules = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: odd, namespace: default}
spec:
  hosts: [odd]
  http:
  - timeout: 500ms
    retries: {attempts: 0}
    route: [{destination: {host: odd}}]
";
        let files = [
            ("mesh.yaml", access_log("/dev/stdout", format)),
            ("service.yaml", service("odd", "http", port)),
            ("rules.yaml", rules.into()),
        ];
        let pilot = Pilot::start(&files.each_ref().map(|(name, text)| (*name, &**text)), &[]);
        let server = Sidecar::start(&pilot, "odd", "v1", Some(backend()));
        let client = Sidecar::start(&pilot, "client", "v1", None);
        let mesh = Self { server, client, host: format!("odd:{port}"), _pilot: pilot };
        wait::until("the service answers", || {
            (mesh.client.get(&mesh.host, "/", "").status() == 200).then_some(())
        });
        mesh
    }

    /// Sends a request with an id of its own. Gives the answer, and what became of the connection.
    fn send(&self, id: &str, method: &str, path: &str, body: &[u8]) -> (Option<Response>, After) {
        let mut connection = Connection::open(self.client.proxy());
        let Self { host, .. } = self;
        let head = format!(
            "{method} http://{host}{path} HTTP/1.1\r\nhost: {host}\r\nx-request-id: {id}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        connection.send(head.as_bytes());
        connection.send(body);
        let answer = connection.receive(method);
        (answer, connection.after(Duration::from_millis(100)))
    }

    /// What the client's and the server's sidecar say of a request.
    fn lines(&self, id: &str) -> [Line; 2] {
        [&self.client, &self.server].map(|sidecar| {
            wait::until(&format!("{id} is logged"), || {
                let of_request =
                    |line: &str| serde_json::from_str(line).ok().filter(|line: &Line| line["id"] == id);
                sidecar.program.output().lines().find_map(of_request)
            })
        })
    }
}

/// What is wanted of a request.
struct Case {
    path: &'static str,
    /// Status and start of the body that the client sees; the connection's end instead of the body's where that is cut.
    sees: (u16, &'static str),
    /// Code and flags in the client's sidecar, and in the server's.
    says: [(u16, &'static str); 2],
    /// Details in the server's sidecar begin like this.
    because: &'static str,
}

const NO_ANSWER: &str = "upstream connect error or disconnect/reset before headers. reset reason: ";

#[test]
fn what_a_client_sees_of_a_backend_that_misbehaves() {
    let mesh = Mesh::start();
    let cases = [
        Case {
            path: "/reset",
            sees: (
                503,
                "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
            ),
            says: [(503, "-"), (503, "UC")],
            because: "upstream_reset_before_response_started{connection_termination",
        },
        Case {
            path: "/close",
            sees: (
                503,
                "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
            ),
            says: [(503, "-"), (503, "UC")],
            because: "upstream_reset_before_response_started{connection_termination",
        },
        Case {
            path: "/reset-in-body",
            sees: (200, "half "),
            says: [(200, "UC"), (200, "UC")],
            because: "upstream_reset_after_response_started{",
        },
        Case {
            path: "/close-in-body",
            sees: (200, "half "),
            says: [(200, "UC"), (200, "UC")],
            because: "upstream_reset_after_response_started{",
        },
        Case {
            path: "/close-in-chunk",
            sees: (200, "half"),
            says: [(200, "UC"), (200, "UC")],
            because: "upstream_reset_after_response_started{",
        },
        Case {
            path: "/nonsense",
            sees: (
                502,
                "upstream connect error or disconnect/reset before headers. reset reason: protocol error",
            ),
            says: [(502, "-"), (502, "UPE")],
            because: "upstream_reset_before_response_started{protocol_error",
        },
        Case {
            path: "/two-lengths",
            sees: (
                502,
                "upstream connect error or disconnect/reset before headers. reset reason: protocol error",
            ),
            says: [(502, "-"), (502, "UPE")],
            because: "upstream_reset_before_response_started{protocol_error",
        },
        Case {
            path: "/stall",
            sees: (504, "upstream request timeout"),
            says: [(504, "UT"), (0, "DC")],
            because: "downstream_remote_disconnect",
        },
    ];
    assert!(cases.iter().any(|case| case.sees.1.starts_with(NO_ANSWER)));
    std::thread::scope(|scope| {
        for (number, case) in cases.iter().enumerate() {
            let mesh = &mesh;
            scope.spawn(move || check(mesh, &format!("case-{number}"), case));
        }
    });
    assert_eq!(mesh.client.get(&mesh.host, "/", "").text(), "ok", "nothing of it stays");
}

fn check(mesh: &Mesh, id: &str, case: &Case) {
    let Case { path, sees, says, because } = case;
    let begun = Instant::now();
    let (answer, after) = mesh.send(id, "GET", path, b"");
    let answer = answer.unwrap_or_else(|| panic!("{path}: no answer"));
    assert!(begun.elapsed() < Duration::from_secs(5), "{path}: {:?}", begun.elapsed());
    assert_eq!((answer.status(), &*answer.text()), *sees, "{path}");
    // An answer of the proxy's own leaves the connection as it is; one that was cut can only be told by the connection's end.
    let wanted = if sees.0 == 200 { After::Closed } else { After::Open };
    assert_eq!(after, wanted, "{path}");
    let lines = mesh.lines(id);
    let said = lines.each_ref().map(|line| {
        let code = line["code"].as_u64().and_then(|code| code.try_into().ok()).unwrap_or(0);
        (code, line["flags"].as_str().unwrap_or("-"))
    });
    assert_eq!(said, *says, "{path}: {lines:?}");
    let details = lines[1]["details"].as_str().unwrap_or_default();
    assert!(details.starts_with(because), "{path}: {details}");
}

/// An answer that comes before the request's end reaches the client whole, whatever becomes of the rest of the request.
#[test]
fn an_early_answer_arrives() {
    let mesh = Mesh::start();
    // More than all buffers on the way hold.
    let body = vec![b'x'; 32 << 20];
    for path in ["/early", "/early-and-reset"] {
        let id = path.trim_start_matches('/');
        let (answer, _) = mesh.send(id, "POST", path, &body);
        let answer = answer.unwrap_or_else(|| panic!("{path}: no answer"));
        assert_eq!((answer.status(), &*answer.text()), (413, "stop"), "{path}");
        let lines = mesh.lines(id);
        assert_eq!(lines[1]["code"], 413, "{path}: {lines:?}");
    }
    assert_eq!(mesh.client.get(&mesh.host, "/", "").text(), "ok", "nothing of it stays");
}
