//! Lines, their way to the disk, and a disk that is full.

use std::borrow::Cow;
use std::path::Path;
use std::time::{Instant, SystemTime};

use super::*;
use crate::http::head::{RequestHead, ResponseHead, Version};
use crate::telemetry::record::{Downstream, Flags, RequestRecord};

fn record() -> RequestRecord<'static> {
    let downstream = Downstream {
        connection_id: 7,
        local: "10.0.0.1:80".parse().expect("address"),
        remote: "10.0.0.2:40000".parse().expect("address"),
        direct_remote: "10.0.0.2:40000".parse().expect("address"),
        server_name: None,
        identity: None,
        own_identity: None,
    };
    let mut record = RequestRecord::new(downstream, Some(Version::Http11), Instant::now());
    record.started_at = Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_323_045_678));
    record.status = 503;
    record.flags.add(Flags::NO_HEALTHY_UPSTREAM);
    record.details = Cow::Borrowed("no_healthy_upstream");
    record.cluster_name = Some("outbound|80||a");
    (record.received, record.sent, record.complete) = (1, 19, Some(Duration::from_millis(4)));
    record
}

fn line(format: &AccessLogFormat) -> String {
    let record = record();
    let mut request = RequestHead::new();
    request.set_path(b"/a\"b");
    request.set_authority(b"a.example");
    request.fields.append("user-agent", b"curl/8");
    let response = ResponseHead::new(503);
    let context =
        Context { record: &record, request: Some(&request), response: Some(&response), trailers: None };
    let mut out = Vec::new();
    format.write(&context, &mut out);
    String::from_utf8(out).expect("text")
}

fn to_file(path: &Path) -> AccessLogConfig {
    let sink = AccessLogSink::File(path.to_str().expect("path").into());
    AccessLogConfig { sink, format: AccessLogFormat::Default }
}

fn log(gathered: &Arc<Gathered>, config: &AccessLogConfig) {
    let record = record();
    gathered.log(config, &Context { record: &record, request: None, response: None, trailers: None });
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_default_line_is_istios() {
    assert_eq!(
        line(&AccessLogFormat::Default),
        "[2026-01-02T03:04:05.678Z] \"GET /a\\u0022b HTTP/1.1\" 503 UH no_healthy_upstream - \"-\" 1 19 4 - \"-\" \"curl/8\" \
         \"-\" \"a.example\" \"-\" outbound|80||a - 10.0.0.1:80 10.0.0.2:40000 - -\n"
    );
}

#[test]
fn nobody_writes_lines_of_their_own() {
    let written = |format: &str, record: &RequestRecord<'_>, request: Option<&RequestHead>| {
        let format = AccessLogFormat::Text(Template::parse(format).expect("format"));
        let mut out = Vec::new();
        format.write(&Context { record, request, response: None, trailers: None }, &mut out);
        String::from_utf8(out).expect("text")
    };
    // A server name may be anything that is ASCII.
    let mut record = record();
    for (name, logged) in [
        ("a.example", "a.example"),
        ("a\" 200 - \"b", "a\\u0022 200 - \\u0022b"),
        ("c:\\x", "c:\\u005cx"),
        ("a\r\n[2026] \"GET", "a\\u000d\\u000a[2026] \\u0022GET"),
        ("\u{1b}[2K\u{7f}\u{9b}2J", "\\u001b[2K\\u007f\\u009b2J"),
    ] {
        record.downstream.server_name = Some(name);
        assert_eq!(written("%REQUESTED_SERVER_NAME%\n", &record, None), format!("{logged}\n"));
    }
    // The value of a header may be no text.
    let mut request = RequestHead::new();
    request.fields.append("user-agent", b"\xc3\xa9 \x9b2J\xff");
    assert_eq!(written("%REQ(USER-AGENT)%", &record, Some(&request)), "\u{e9} \\u009b2J\\u00ff");
}

#[test]
fn json_keeps_kinds_and_escapes() {
    let field = |key: &str, text: &str| (Box::from(key), Template::parse(text).expect("format"));
    let format = AccessLogFormat::Json(Box::new([
        field("code", "%RESPONSE_CODE%"),
        field("path", "%REQ(:PATH)%"),
        field("absent", "%REQ(X-ABSENT)%"),
        field("mixed", "%RESPONSE_CODE% %REQ(X-ABSENT)%"),
        field("q\"", "fixed"),
    ]));
    assert_eq!(
        line(&format),
        "{\"code\":503,\"path\":\"/a\\\"b\",\"absent\":null,\"mixed\":\"503 -\",\"q\\\"\":\"fixed\"}\n"
    );
}

#[tokio::test(start_paused = true)]
async fn lines_are_handed_over_after_a_second_and_nothing_ticks_before_the_next() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("access.log");
    let logs = AccessLogs::default();
    let gathered = logs.worker();
    let config = to_file(&path);
    log(&gathered, &config);
    log(&gathered, &config);
    tokio::time::sleep(FLUSH_AFTER / 2).await;
    assert!(logs.0.writer.lock().is_none(), "no thread before something is to be written");
    tokio::time::sleep(FLUSH_AFTER).await;
    wait_for("both lines", || logs.counts().written.load(Relaxed) == 2);
    assert_eq!(std::fs::read_to_string(&path).expect("file").lines().count(), 2);
    log(&gathered, &config);
    logs.finish(Duration::from_secs(20));
    assert_eq!(std::fs::read_to_string(&path).expect("file").lines().count(), 3, "the end flushes");
}

#[tokio::test]
async fn a_full_chunk_does_not_wait() {
    let folder = tempfile::tempdir().expect("folder");
    let config = to_file(&folder.path().join("access.log"));
    let logs = AccessLogs::default();
    let gathered = logs.worker();
    for _ in 0..1 + FLUSH_BYTES / 100 {
        log(&gathered, &config);
    }
    wait_for("a chunk", || logs.counts().written.load(Relaxed) > 0);
}

#[tokio::test]
async fn a_full_disk_costs_lines_and_nothing_else() {
    let logs = AccessLogs::default();
    let gathered = logs.worker();
    let full = to_file(Path::new("/dev/full"));
    for _ in 0..10 {
        log(&gathered, &full);
    }
    gathered.flush();
    wait_for("the loss is counted", || logs.counts().dropped.load(Relaxed) == 10);
    let folder = tempfile::tempdir().expect("folder");
    log(&gathered, &to_file(&folder.path().join("good.log")));
    log(&gathered, &to_file(&folder.path().join("missing/folder.log")));
    gathered.flush();
    wait_for("other files go on", || logs.counts().written.load(Relaxed) == 1);
    wait_for("a missing folder is a loss", || logs.counts().dropped.load(Relaxed) == 11);
}

#[tokio::test]
async fn a_disk_that_hangs_does_not_hold_up_requests() {
    // A pipe that nobody reads takes 64 KiB and then hangs, as a dead network disk does.
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("pipe");
    let _end = OpenOptions::new().read(true).write(true).open(&path).expect("pipe");
    let logs = AccessLogs::default();
    let gathered = logs.worker();
    let config = to_file(&path);
    let begun = Instant::now();
    for _ in 0..(CHUNKS + 8) * FLUSH_BYTES / 100 {
        log(&gathered, &config);
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "requests waited for the disk");
    assert!(logs.counts().dropped.load(Relaxed) > 0, "beyond the bound lines are dropped");
    let begun = Instant::now();
    logs.finish(Duration::from_millis(50));
    assert!(begun.elapsed() < Duration::from_secs(20), "the end does not wait for ever");
}
