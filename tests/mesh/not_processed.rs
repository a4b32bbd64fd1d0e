//! An application stops to listen while its sidecar drains and peers still pick it: with retries off no request fails.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::thread::JoinHandle;

use osier_tests::backend::Backend;
use osier_tests::mesh::{Pilot, Sidecar, service};
use osier_tests::raw;
use osier_tests::wait;
use socket2::SockRef;

const RULES: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: default}
spec:
  hosts: [web]
  http: [{retries: {attempts: 0}, route: [{destination: {host: web}}]}]
";

/// An application that can stop: one answer for each connection.
struct Application {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Application {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let accepting = listener.try_clone().expect("a handle");
        let thread = std::thread::spawn(move || {
            while let Ok((mut stream, _)) = accepting.accept() {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                let _ = stream.write_all(
                    b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\nconnection: close\r\n\r\nbackend old",
                );
            }
        });
        Self { listener, thread: Some(thread) }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("an address")
    }

    fn stop(&mut self) {
        // Wakes who accepts; what follows is refused once the last handle is closed.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the thread ends well");
        }
    }
}

fn answers(client: &Sidecar, count: u32, post: bool) -> Vec<String> {
    let ask = |_| match post {
        false => client.ask("web"),
        true => {
            let body = "hello";
            let request = format!(
                "POST http://web/ HTTP/1.1\r\nhost: web\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let answer = raw::exchange(client.proxy(), "POST", request.as_bytes()).unwrap_or_default();
            match (answer.status(), answer.text()) {
                (200, text) => {
                    text.lines().next().unwrap_or_default().trim_start_matches("backend ").to_owned()
                }
                (status, text) => format!("{status} {text}"),
            }
        }
    };
    (0..count).map(ask).collect()
}

#[test]
fn an_application_that_stops_while_draining_fails_no_request() {
    for port_name in ["http", "http2"] {
        let pilot = Pilot::start(&[("web.yaml", &service("web", port_name, 80)), ("rules.yaml", RULES)], &[]);
        let new = Backend::start("new");
        let mut old = Application::start();
        let _serving = Sidecar::start(&pilot, "web", "v1", Some(new.address));
        let leaving = Sidecar::start(&pilot, "web", "v2", Some(old.address()));
        let client = Sidecar::start(&pilot, "client", "v1", None);
        // Over HTTP/2 the old one, which doesn't speak it, would only spoil the answers.
        if port_name == "http" {
            wait::until("both are asked", || {
                let names = answers(&client, 10, false);
                ["old", "new"].iter().all(|name| names.iter().any(|it| it == name)).then_some(())
            });
        }
        let drained = "POST /drain_listeners?inboundonly&graceful&skip_exit HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        let drained = raw::exchange(leaving.admin(), "POST", drained.as_bytes()).expect("an answer");
        assert_eq!(drained.status(), 200);
        old.stop();
        drop(old);
        wait::until("only the new one answers", || {
            answers(&client, 10, false).iter().all(|name| name == "new").then_some(())
        });
        for post in [false, true] {
            let names = answers(&client, 100, post);
            assert!(names.iter().all(|name| name == "new"), "{port_name}, POST: {post}: {names:?}");
        }
        let text = leaving.admin_get("/stats/prometheus").text();
        let refused = text.lines().filter(|line| line.starts_with("istio_requests_total{"));
        let refused =
            refused.filter(|line| line.contains("reporter=\"destination\"") && line.contains("\"UF\""));
        let count: f64 = refused.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
        assert!(count >= 20.0, "it was asked, and gave back: {text}");
    }
}
