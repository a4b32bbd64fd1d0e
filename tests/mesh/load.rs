//! Steady traffic through a sidecar, each answer judged; bounded to a few hundred requests per second.
//!
//! Strict: a kept connection that ends without having said so counts as a failure, since no change of configuration may do that.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use osier_tests::raw::{Connection, Response};
use osier_tests::wait;
use parking_lot::Mutex;

/// Clients with a kept connection each; one more makes a connection for each request.
const KEPT: usize = 3;
/// Between an answer and the next request.
const PACE: Duration = Duration::from_millis(3);

/// Judges an answer; the second argument belongs to the client that got it, and starts at 0.
type Judge = dyn Fn(&Response, &mut u64) -> Result<(), String> + Send + Sync;

/// Traffic that flows until [`Load::stop`].
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

struct Shared {
    proxy: SocketAddr,
    request: String,
    judge: Box<Judge>,
    stop: AtomicBool,
    succeeded: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Load {
    /// `GET http://<host>/load` through the sidecar at `proxy`, over and over.
    pub fn start(
        proxy: SocketAddr,
        host: &str,
        judge: impl Fn(&Response, &mut u64) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            proxy,
            request: format!("GET http://{host}/load HTTP/1.1\r\nhost: {host}\r\n"),
            judge: Box::new(judge),
            stop: AtomicBool::new(false),
            succeeded: AtomicU64::new(0),
            failures: Mutex::default(),
        });
        let client = |kept| {
            let shared = shared.clone();
            std::thread::spawn(move || shared.run(kept))
        };
        let clients = (0..=KEPT).map(|number| client(number < KEPT)).collect();
        let load = Self { shared, clients };
        load.wait_for(20);
        load
    }

    /// Any answer of this status.
    pub fn status_200(answer: &Response, _: &mut u64) -> Result<(), String> {
        match answer.status() {
            200 => Ok(()),
            status => Err(format!("{status} {:?} {}", answer.headers, answer.text())),
        }
    }

    /// Waits until so many more requests have ended.
    pub fn wait_for(&self, requests: u64) {
        let ended = || self.shared.succeeded.load(Relaxed) + self.shared.failures.lock().len() as u64;
        let goal = ended() + requests;
        wait::until(&format!("{requests} requests"), || (ended() >= goal).then_some(()));
    }

    /// What has failed so far.
    pub fn failures(&self) -> Vec<String> {
        self.shared.failures.lock().clone()
    }

    /// Ends it. Gives the number of requests that succeeded, and what failed.
    pub fn stop(mut self) -> (u64, Vec<String>) {
        self.shared.stop.store(true, Relaxed);
        for client in self.clients.drain(..) {
            client.join().expect("a client of the load does not panic");
        }
        (self.shared.succeeded.load(Relaxed), self.failures())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
    }
}

impl Shared {
    fn run(&self, kept: bool) {
        let begun = Instant::now();
        let (mut connection, mut memory) = (None, 0);
        while !self.stop.load(Relaxed) {
            let mut open = connection.take().unwrap_or_else(|| Connection::open(self.proxy));
            let end = if kept { "\r\n" } else { "connection: close\r\n\r\n" };
            open.send(format!("{}{end}", self.request).as_bytes());
            let judged = match open.receive("GET") {
                Some(answer) => {
                    if answer.header("connection").is_none_or(|value| !value.eq_ignore_ascii_case("close")) {
                        connection = Some(open);
                    }
                    (self.judge)(&answer, &mut memory)
                }
                None => Err("no answer: the connection ended, or was silent for too long".to_owned()),
            };
            match judged {
                Ok(()) => drop(self.succeeded.fetch_add(1, Relaxed)),
                Err(failure) => {
                    let kind = if kept { "kept" } else { "new" };
                    let at = begun.elapsed().as_millis();
                    self.failures.lock().push(format!("after {at} ms, {kind} connection: {failure}"));
                }
            }
            std::thread::sleep(PACE);
        }
    }
}
