//! Access logs: lines are formatted on the worker, gathered there, and written by one thread.
//!
//! A line is handed over with many others, after [`FLUSH_AFTER`] or [`FLUSH_BYTES`], so that a request costs neither a system
//! call nor a wake-up of the writer. The timer is armed by the first line and not again before the next one: a silent proxy
//! has no timer. The way to the writer is bounded; when a disk is full or hangs, lines are dropped and counted, and requests
//! go on.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::config::listener::{AccessLogConfig, AccessLogFormat, AccessLogSink};
use crate::http::template::{Context, Template};

/// A line waits at most so long on its worker.
pub const FLUSH_AFTER: Duration = Duration::from_secs(1);

/// A worker hands over when it has gathered so much.
pub const FLUSH_BYTES: usize = 64 * 1024;

/// Chunks on their way to the writer; with [`FLUSH_BYTES`] each, 1 MiB.
const CHUNKS: usize = 16;

/// Istio's default line.
const ISTIO_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
    \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
    \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% \
    %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

static ISTIO_TEMPLATE: LazyLock<Template> =
    LazyLock::new(|| Template::parse(ISTIO_FORMAT).expect("a constant that a test parses"));

/// All access logs of the process.
#[derive(Debug, Clone, Default)]
pub struct AccessLogs(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    writer: Mutex<Option<Writer>>,
    gathered: Mutex<Vec<Weak<Gathered>>>,
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct Writer {
    chunks: SyncSender<Chunk>,
    thread: std::thread::JoinHandle<()>,
}

/// Lines written and lost since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Lines that reached their file.
    pub written: AtomicU64,
    /// Lines that were dropped: the writer was behind, or the file could not be written.
    pub dropped: AtomicU64,
}

/// Lines for one file.
#[derive(Debug)]
struct Chunk {
    sink: AccessLogSink,
    bytes: Vec<u8>,
    lines: u64,
}

/// What one worker has gathered for the writer.
#[derive(Debug)]
pub struct Gathered {
    logs: AccessLogs,
    chunks: Mutex<Vec<Chunk>>,
}

impl AccessLogs {
    /// A new worker's part.
    pub fn worker(&self) -> Arc<Gathered> {
        let gathered = Arc::new(Gathered { logs: self.clone(), chunks: Mutex::default() });
        self.0.gathered.lock().push(Arc::downgrade(&gathered));
        gathered
    }

    /// Lines written and lost.
    pub fn counts(&self) -> &Counts {
        &self.0.counts
    }

    /// Hands over everything gathered and waits, at most `limit`, until it is written. The end of the process.
    pub fn finish(&self, limit: Duration) {
        for gathered in self.0.gathered.lock().iter().filter_map(Weak::upgrade) {
            gathered.flush();
        }
        let Some(Writer { chunks, thread }) = self.0.writer.lock().take() else { return };
        drop(chunks);
        let begun = std::time::Instant::now();
        // A hanging disk must not keep the process alive, and joining has no time-out.
        while !thread.is_finished() && begun.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Never waits.
    fn hand_over(&self, chunk: Chunk) {
        let mut writer = self.0.writer.lock();
        let writer = writer.get_or_insert_with(|| Writer::start(self.0.counts.clone()));
        if let Err(TrySendError::Full(chunk) | TrySendError::Disconnected(chunk)) =
            writer.chunks.try_send(chunk)
        {
            self.0.counts.dropped.fetch_add(chunk.lines, Relaxed);
        }
    }
}

impl Gathered {
    /// Writes one line for `context`. Call it on the worker's runtime.
    pub fn log(self: &Arc<Self>, log: &AccessLogConfig, context: &Context<'_>) {
        let mut chunks = self.chunks.lock();
        let was_empty = chunks.is_empty();
        let index = chunks.iter().position(|chunk| chunk.sink == log.sink).unwrap_or_else(|| {
            chunks.push(Chunk { sink: log.sink.clone(), bytes: Vec::with_capacity(1024), lines: 0 });
            chunks.len() - 1
        });
        let chunk = &mut chunks[index];
        log.format.write(context, &mut chunk.bytes);
        chunk.lines += 1;
        if chunk.bytes.len() >= FLUSH_BYTES {
            let full = chunks.swap_remove(index);
            drop(chunks);
            self.logs.hand_over(full);
        } else if was_empty {
            drop(chunks);
            let gathered = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(FLUSH_AFTER).await;
                gathered.flush();
            });
        }
    }

    fn flush(&self) {
        let chunks = std::mem::take(&mut *self.chunks.lock());
        chunks.into_iter().for_each(|chunk| self.logs.hand_over(chunk));
    }
}

/// The end of a worker: its last lines are handed over.
impl Drop for Gathered {
    fn drop(&mut self) {
        self.flush();
    }
}

impl AccessLogFormat {
    /// Appends one line, with its end.
    fn write(&self, context: &Context<'_>, out: &mut Vec<u8>) {
        match self {
            Self::Default => ISTIO_TEMPLATE.write_escaped(context, "-", out),
            Self::Text(template) => template.write_escaped(context, "-", out),
            Self::Json(fields) => write_json(fields, context, out),
        }
    }
}

/// A value that is one command keeps its kind: numbers stay numbers, and what is missing is null.
fn write_json(fields: &[(Box<str>, Template)], context: &Context<'_>, out: &mut Vec<u8>) {
    let mut value = Vec::new();
    out.push(b'{');
    for (index, (key, template)) in fields.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_json_text(key, out);
        out.push(b':');
        value.clear();
        match template.as_command() {
            Some(command) if !command.write(context, &mut value) => out.extend_from_slice(b"null"),
            Some(command) if command.is_number() => out.extend_from_slice(&value),
            Some(_) => write_json_text(&String::from_utf8_lossy(&value), out),
            None => {
                template.write(context, "-", &mut value);
                write_json_text(&String::from_utf8_lossy(&value), out);
            }
        }
    }
    out.extend_from_slice(b"}\n");
}

fn write_json_text(text: &str, out: &mut Vec<u8>) {
    // Writing text into memory does not fail.
    let _ = serde_json::to_writer(out, text);
}

impl Writer {
    fn start(counts: Arc<Counts>) -> Self {
        let (chunks, incoming) = sync_channel(CHUNKS);
        let files = Files { open: HashMap::new(), failing: HashMap::new(), counts };
        let run = move || files.run(&incoming);
        let thread = std::thread::Builder::new().name("access-log".into()).spawn(run);
        Self { chunks, thread: thread.expect("the process may start a thread") }
    }
}

/// The writer's side.
struct Files {
    open: HashMap<AccessLogSink, File>,
    /// Lines lost in a row, per file that does not take them.
    failing: HashMap<AccessLogSink, u64>,
    counts: Arc<Counts>,
}

impl Files {
    fn run(mut self, incoming: &Receiver<Chunk>) {
        while let Ok(chunk) = incoming.recv() {
            self.take(&chunk);
        }
    }

    /// Writes a chunk, or counts its lines as lost; says so once when a file begins to fail and once when it is well again.
    fn take(&mut self, chunk: &Chunk) {
        match self.write(chunk) {
            Ok(()) => {
                self.counts.written.fetch_add(chunk.lines, Relaxed);
                if let Some(lost) = self.failing.remove(&chunk.sink) {
                    tracing::warn!(sink = ?chunk.sink, lost, "the access log is written again");
                }
            }
            Err(error) => {
                self.counts.dropped.fetch_add(chunk.lines, Relaxed);
                self.open.remove(&chunk.sink);
                let lost = self.failing.entry(chunk.sink.clone()).or_insert(0);
                if *lost == 0 {
                    tracing::error!(sink = ?chunk.sink, %error, "the access log cannot be written, lines are dropped");
                }
                *lost += chunk.lines;
            }
        }
    }

    fn write(&mut self, chunk: &Chunk) -> io::Result<()> {
        let path = match &chunk.sink {
            AccessLogSink::Stdout => return io::stdout().lock().write_all(&chunk.bytes),
            AccessLogSink::Stderr => return io::stderr().lock().write_all(&chunk.bytes),
            AccessLogSink::File(path) => path,
        };
        if !self.open.contains_key(&chunk.sink) {
            let file = OpenOptions::new().append(true).create(true).open(&**path)?;
            self.open.insert(chunk.sink.clone(), file);
        }
        (&self.open[&chunk.sink]).write_all(&chunk.bytes)
    }
}

#[cfg(test)]
#[path = "access_log_tests.rs"]
mod tests;
