//! What becomes of connections when certificates and roots change under them.

use ::h2::Reason;
use rcgen::{CertificateParams, KeyPair};

use super::h2::{client, get, in_time, manager, post, read};
use super::*;
use crate::config::tls::{Secret, SecretHandle, Trust};
use crate::identity::test_support::{Root, believing, roots};

/// A server whose client has a certificate of `old`.
struct Ground {
    site: Site,
    trust: Arc<SecretHandle>,
    own: Arc<SecretHandle>,
    old: Root,
    new: Root,
}

impl Ground {
    async fn start() -> Self {
        let (old, new) = (Root::new("old"), Root::new("new"));
        let (trust, own) = (believing(&[&old]), SecretHandle::empty("default"));
        let vouch = old.vouches_by(&trust, Some(&own));
        let site = Site::vouched(manager(), Some(vouch)).await;
        Self { site, trust, own, old, new }
    }

    fn believe(&self, roots: Arc<Trust>) {
        self.trust.publish(Secret::Trust(roots));
        self.site.worker.shared.snapshot.nudge();
    }

    fn only_new(&self) -> Arc<Trust> {
        roots(&[&self.new])
    }

    fn both(&self) -> Arc<Trust> {
        roots(&[&self.new, &self.old])
    }

    /// Another certificate of our own, of another root.
    fn succeed(&self) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::default().self_signed(&key).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = crate::config::tls::provider();
        let certified = rustls::sign::CertifiedKey::from_der(vec![certificate.der().clone()], key, &provider);
        self.own.succeed(Arc::new(certified.unwrap()));
        self.site.worker.shared.snapshot.nudge();
    }
}

const ASK: &str = "GET /x HTTP/1.1\r\nhost: a\r\n\r\n";
const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nGET /x";
const LAST_ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nGET /x";

#[tokio::test]
async fn http1_goes_on_while_a_root_vouches_and_is_reset_when_none_does() {
    let ground = Ground::start().await;
    let (mut idle, mut busy) = (ground.site.client().await, ground.site.client().await);
    for client in [&mut idle, &mut busy] {
        client.send(ASK).await;
        client.expect(ANSWER).await;
    }
    ground.believe(ground.both());
    for client in [&mut idle, &mut busy] {
        client.send(ASK).await;
        client.expect(ANSWER).await;
    }
    busy.send("GET /hang HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut ground = ground;
    assert_eq!(ground.site.event().await, "hanging");
    ground.believe(ground.only_new());
    for client in [&mut idle, &mut busy] {
        assert_eq!(client.rest().await, (String::new(), Some(std::io::ErrorKind::ConnectionReset)));
    }
}

#[tokio::test]
async fn http1_ends_politely_where_we_are_another() {
    let ground = Ground::start().await;
    let mut client = ground.site.client().await;
    client.send(ASK).await;
    client.expect(ANSWER).await;
    ground.succeed();
    client.send(ASK).await;
    client.expect(LAST_ANSWER).await;
    assert_eq!(client.rest().await, (String::new(), None));
}

#[tokio::test]
async fn http2_ends_politely_where_we_are_another_and_at_once_where_nobody_vouches() {
    let ground = Ground::start().await;
    let (mut client, driver) = client(&ground.site).await;
    let (reply, mut send) = client.send_request(post("/echo"), false).unwrap();
    send.send_data(Bytes::from_static(b"before "), false).unwrap();
    let reply = in_time(reply).await.unwrap();
    ground.believe(ground.both());
    let (more, _) = client.send_request(get("/x"), true).unwrap();
    assert_eq!(in_time(more).await.unwrap().status(), 200, "nothing has changed for it");
    ground.succeed();
    let refused = async {
        while client.clone().ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    in_time(refused).await;
    send.send_data(Bytes::from_static(b"after"), false).unwrap();
    ground.believe(ground.only_new());
    let cut = in_time(read(reply.into_body())).await.unwrap_err();
    let ended = in_time(driver).await.unwrap().unwrap_err();
    let told = |error: &::h2::Error| error.reason() == Some(Reason::INADEQUATE_SECURITY) || error.is_io();
    assert!(told(&cut) && told(&ended), "{cut:?} {ended:?}");
    let mut ground = ground;
    assert!(matches!(ground.site.ended().await, Ended::Closed));
}
