//! TLS over real sockets, against rustls' client as tokio drives it.

use bytes::BytesMut;
use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as Client;

use super::*;
use crate::io::Stream;

fn configs() -> (Arc<ServerConfig>, TlsConnector) {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["a.example".into()]).unwrap().self_signed(&key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(client).into())
}

/// Both ends after a handshake, of which the first `ahead` bytes were read before it.
async fn pair(ahead: usize) -> (Stream, Client<TcpStream>) {
    let (server, client) = configs();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (tcp, accepted) = tokio::join!(connecting, listener.accept());
    let accept = async {
        let accepted = accepted.unwrap().0;
        let mut received = vec![0; ahead];
        let plain = Stream::from(accepted);
        let mut at = 0;
        while at < ahead {
            at += plain.read(&mut received[at..]).await.unwrap();
        }
        let Stream::Plain(accepted) = plain else { unreachable!("it is plain") };
        TlsStream::accept(accepted, &received, server).await.unwrap()
    };
    let connect = client.connect(ServerName::try_from("a.example").unwrap(), tcp.unwrap());
    let (accepted, connected) = tokio::join!(accept, connect);
    (Stream::Tls(Box::new(accepted)), connected.unwrap())
}

#[tokio::test]
async fn large_amounts_go_both_ways_at_once_and_end_politely() {
    for ahead in [0, 1, 100] {
        let (ours, theirs) = pair(ahead).await;
        let sent: Vec<u8> = (0..4 << 20).map(|at: u32| (at / 7) as u8).collect();
        let (mut from_us, mut to_us) = tokio::io::split(theirs);
        let echo = async {
            let mut buf = BytesMut::new();
            loop {
                buf.reserve(50_000);
                if ours.read_buf(&mut buf).await.unwrap() == 0 {
                    return ours.shutdown_write().unwrap();
                }
                ours.write_buf(&mut buf).await.unwrap();
            }
        };
        let send = async {
            to_us.write_all(&sent).await.unwrap();
            to_us.shutdown().await.unwrap();
        };
        let receive = async {
            let mut got = Vec::new();
            from_us.read_to_end(&mut got).await.unwrap();
            got
        };
        let (_, _, got) = tokio::join!(echo, send, receive);
        assert!(got == sent, "{ahead}");
    }
}

#[tokio::test]
async fn what_the_socket_does_not_take_leaves_while_somebody_waits_to_read() {
    let (ours, mut theirs) = pair(0).await;
    let mut written = 0;
    // Until neither the socket nor the session takes more.
    loop {
        match ours.try_write(&[7; 65536]) {
            Ok(count) => written += count,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                break;
            }
        }
    }
    let Stream::Tls(tls) = &ours else { unreachable!("it is TLS") };
    assert!(tls.holds_back());
    let mut got = vec![0; written];
    let read = async {
        theirs.read_exact(&mut got).await.unwrap();
        theirs.write_all(b"x").await.unwrap();
        theirs.flush().await.unwrap();
    };
    let mut answer = [0; 4];
    let (_, count) = tokio::join!(read, ours.read(&mut answer));
    assert_eq!(count.unwrap(), 1);
    assert!(!tls.holds_back());
}

#[tokio::test]
async fn a_client_that_leaves_without_a_word_is_not_taken_for_one_that_has_finished() {
    let (ours, theirs) = pair(0).await;
    drop(theirs.into_inner().0);
    let error = ours.read(&mut [0; 4]).await.unwrap_err();
    // What it had not read of ours makes the kernel say it more harshly.
    assert!(matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset), "{error}");
}

#[tokio::test]
async fn garbage_is_an_error() {
    let (ours, theirs) = pair(0).await;
    let (mut tcp, _session) = theirs.into_inner();
    tcp.write_all(&[0x17, 3, 3, 0, 20]).await.unwrap();
    tcp.write_all(&[9; 20]).await.unwrap();
    let error = ours.read(&mut [0; 4]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn a_client_hears_the_end_when_the_stream_is_dropped() {
    let (ours, mut theirs) = pair(0).await;
    ours.write_all(b"bye").await.unwrap();
    drop(ours);
    let mut got = Vec::new();
    theirs.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"bye");
}
