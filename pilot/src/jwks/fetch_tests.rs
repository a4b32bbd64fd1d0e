//! Fetches from servers that answer, and from those that don't, answer nonsense, or lead astray.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const KEYS: &str = r#"{"keys":[{"k":"c2VjcmV0","kty":"oct"}]}"#;

/// A server that gives its answers in turn, the last again and again, and counts who asks. `{me}` is its own address.
async fn server(answers: Vec<String>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
    let count = asked.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let turn = count.fetch_add(1, Relaxed).min(answers.len() - 1);
            let answer = answers[turn].replace("{me}", &address.to_string());
            tokio::spawn(async move {
                let mut read = Vec::new();
                while !read.ends_with(b"\r\n\r\n") {
                    let mut piece = [0; 1024];
                    match stream.read(&mut piece).await {
                        Ok(length) if length > 0 => read.extend_from_slice(&piece[..length]),
                        _ => return,
                    }
                }
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    (address, asked)
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{body}")
}

fn redirect(to: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n")
}

async fn fetch(fetcher: &Fetcher, uri: String) -> Result<String, String> {
    let location = KeyLocation::Uri(uri.into());
    let fetched = fetcher.fetch(&location, Duration::from_secs(5)).await;
    fetched.map(|keys| keys.to_string()).map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_key_set_arrives() {
    let (address, _) = server(vec![ok(&format!(" {KEYS}\n"))]).await;
    let fetcher = Fetcher::new(&[]);
    assert_eq!(fetch(&fetcher, format!("http://{address}/keys")).await.as_deref(), Ok(KEYS));
    let (address, asked) = server(vec![redirect("/a"), redirect("http://{me}/b"), ok(KEYS)]).await;
    assert_eq!(fetch(&fetcher, format!("http://{address}/keys")).await.as_deref(), Ok(KEYS));
    assert_eq!(asked.load(Relaxed), 3);
    // An issuer says where its keys are.
    let (address, asked) = server(vec![ok("{\"jwks_uri\": \"http://{me}/keys\"}"), ok(KEYS)]).await;
    let issuer = KeyLocation::Issuer(format!("http://{address}/").into());
    let fetched = fetcher.fetch(&issuer, Duration::from_secs(5)).await;
    assert_eq!((&*fetched.unwrap(), asked.load(Relaxed)), (KEYS, 2));
}

#[tokio::test]
async fn what_is_no_key_set_is_none() {
    let fetcher = Fetcher::new(&[]);
    let huge = format!("{{\"keys\": [{}]}}", " ".repeat(MAX_BODY));
    let endless = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned()
        + &format!("10000\r\n{}\r\n", "x".repeat(0x10000)).repeat(9);
    for (answer, wanted) in [
        (ok("<html>no such page</html>"), "what {me} answers is no JSON object"),
        (ok("{\"keys\": []}"), "what {me} answers has no key of a known type (RSA, EC, OKP, oct)"),
        (ok(&huge), "{me} answers with more than 524288 bytes"),
        (endless, "{me} answers with more than 524288 bytes"),
        (
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".into(),
            "{me} answers 503 Service Unavailable",
        ),
        ("HTTP/1.1 304 Not Modified\r\n\r\n".into(), "{me} answers 304 Not Modified"),
        (redirect("/again"), "more than 5 redirects"),
        (
            redirect("file:///etc/passwd"),
            "{me} redirects to \"file:///etc/passwd\", which is neither http:// nor https://",
        ),
        ("SSH-2.0-OpenSSH\r\n".into(), "HTTP with {me}: invalid HTTP version parsed"),
    ] {
        let (address, _) = server(vec![answer]).await;
        let error = fetch(&fetcher, format!("http://{address}/keys")).await.unwrap_err();
        assert_eq!(error, wanted.replace("{me}", &address.to_string()));
    }
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = fetch(&fetcher, format!("http://{nobody}/")).await.unwrap_err();
    assert!(error.starts_with(&format!("cannot connect to {nobody}: ")), "{error}");
    let error = fetch(&fetcher, "http://nowhere.invalid/".into()).await.unwrap_err();
    assert!(error.starts_with("cannot find the address of nowhere.invalid: "), "{error}");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { listener.accept().await.map(drop) });
    let error = fetch(&fetcher, format!("https://{address}/")).await.unwrap_err();
    assert!(error.starts_with("TLS with ") || error.starts_with("there are no root"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let location = KeyLocation::Uri(format!("http://{address}/").into());
    let error = Fetcher::new(&[]).fetch(&location, Duration::from_secs(3)).await.unwrap_err();
    assert_eq!(error.to_string(), "no answer within 3s");
}

#[tokio::test]
async fn blocked_addresses_are_not_asked() {
    let (target, asked) = server(vec![ok(KEYS)]).await;
    let fetcher = Fetcher::new(&["127.0.0.2/32".parse().unwrap(), "::ffff:0:0/96".parse().unwrap()]);
    assert!(fetch(&fetcher, format!("http://{target}/")).await.is_ok(), "ranges of IPv4 are written as such");
    let port = target.port();
    let fetcher = Fetcher::new(&["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "[::1]", "127.1"] {
        let error = fetch(&fetcher, format!("http://{host}:{port}/")).await.unwrap_err();
        assert!(error.contains("which is blocked (BLOCKED_CIDRS_IN_JWKS_URIS)"), "{host}: {error}");
    }
    assert_eq!(asked.load(Relaxed), 1);
    // A redirect leads nowhere else than a URI does, nor does what an issuer says.
    let inner = TcpListener::bind("127.0.0.2:0").await.unwrap().local_addr().unwrap();
    let fetcher = Fetcher::new(&["127.0.0.2/32".parse().unwrap()]);
    let (outer, _) = server(vec![redirect(&format!("http://{inner}/"))]).await;
    let error = fetch(&fetcher, format!("http://{outer}/")).await.unwrap_err();
    assert_eq!(error, "127.0.0.2 is at 127.0.0.2, which is blocked (BLOCKED_CIDRS_IN_JWKS_URIS)");
    let (issuer, _) = server(vec![ok(&format!("{{\"jwks_uri\": \"http://{inner}/\"}}"))]).await;
    let location = KeyLocation::Issuer(format!("http://{issuer}").into());
    let error = fetcher.fetch(&location, Duration::from_secs(5)).await.unwrap_err();
    assert!(matches!(error, FetchError::Blocked(..)), "{error}");
}
