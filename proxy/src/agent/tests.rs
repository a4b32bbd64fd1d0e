//! SDS as Envoy asks for it: over a socket, one stream at a time.

use std::path::Path;
use std::time::Duration;

use osier_proto::types::SECRET;
use osier_proto::types::core::{DataSource, Node, data_source::Specifier};
use osier_proto::types::discovery::{DiscoveryRequest, DiscoveryResponse};
use osier_proto::types::secret_discovery::secret_discovery_service_client::SecretDiscoveryServiceClient;
use osier_proto::types::tls::{Secret, secret};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Endpoint, Uri};
use tower::service_fn;

use super::files::Files;
use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

/// A stream of a client.
struct Asking {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: tonic::Streaming<DiscoveryResponse>,
}

impl Asking {
    /// Asks for one name, as Envoy does.
    async fn of(socket: &Path, name: &str) -> Self {
        let path = socket.to_path_buf();
        let connect = service_fn(move |_: Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(connect).await.unwrap();
        let (requests, receiver) = mpsc::channel(4);
        let first = DiscoveryRequest {
            node: Some(Node { id: "envoy".into(), ..Node::default() }),
            type_url: SECRET.into(),
            resource_names: vec![name.into()],
            ..DiscoveryRequest::default()
        };
        requests.send(first).await.unwrap();
        let mut client = SecretDiscoveryServiceClient::new(channel);
        let responses = client.stream_secrets(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Self { requests, responses }
    }

    /// The next response, acknowledged.
    async fn next(&mut self) -> Vec<Secret> {
        let response =
            timeout(PATIENCE, self.responses.message()).await.expect("an answer").unwrap().unwrap();
        let ack = DiscoveryRequest {
            version_info: response.version_info.clone(),
            response_nonce: response.nonce.clone(),
            type_url: SECRET.into(),
            ..DiscoveryRequest::default()
        };
        let names: Vec<Secret> = response.resources.iter().map(|any| any.unpack().unwrap()).collect();
        let ack = DiscoveryRequest { resource_names: names.iter().map(|s| s.name.clone()).collect(), ..ack };
        self.requests.send(ack).await.unwrap();
        names
    }
}

fn text(source: Option<&DataSource>) -> String {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::InlineBytes(bytes)) => String::from_utf8(bytes.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn shown(secrets: &[Secret]) -> String {
    let one = |secret: &Secret| match secret.r#type.as_ref().unwrap() {
        secret::Type::TlsCertificate(it) => {
            format!(
                "{}={}{}",
                secret.name,
                text(it.certificate_chain.as_ref()),
                text(it.private_key.as_ref())
            )
        }
        secret::Type::ValidationContext(it) => format!("{}={}", secret.name, text(it.trusted_ca.as_ref())),
    };
    secrets.iter().map(one).collect()
}

fn pem(word: &str) -> Option<Arc<Pem>> {
    let part = |what: &str| format!("{what}-{word} ");
    Some(Arc::new(Pem { chain: part("chain"), key: part("key"), roots: part("roots") }))
}

/// A certificate that signs itself, and its key.
fn self_signed() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["a".into()]).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

struct Started {
    issued: watch::Sender<Option<Arc<Pem>>>,
    folder: tempfile::TempDir,
}

impl Started {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (issued, current) = watch::channel(None);
        let socket = sds::bind(&folder.path().join("deep/socket")).unwrap();
        tokio::spawn(sds::serve(socket, current, Arc::<Files>::default()));
        Self { issued, folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("deep/socket")
    }
}

#[tokio::test]
async fn names_of_the_mesh_are_answered_when_there_is_a_certificate_and_again_with_each() {
    let agent = Started::new();
    // Who asks early waits: told "there is none" it would go on without.
    let early = async { Asking::of(&agent.socket(), "default").await.next().await };
    let mut early = Box::pin(early);
    assert!(timeout(Duration::from_millis(100), &mut early).await.is_err());
    agent.issued.send_replace(pem("one"));
    assert_eq!(shown(&early.await), "default=chain-one key-one ");
    let mut roots = Asking::of(&agent.socket(), "ROOTCA").await;
    assert_eq!(shown(&roots.next().await), "ROOTCA=roots-one ");
    let mut own = Asking::of(&agent.socket(), "default").await;
    assert_eq!(shown(&own.next().await), "default=chain-one key-one ");
    agent.issued.send_replace(pem("two"));
    assert_eq!(shown(&own.next().await), "default=chain-two key-two ");
    assert_eq!(shown(&roots.next().await), "ROOTCA=roots-two ");
}

#[tokio::test]
async fn files_are_served_as_they_are_and_what_is_no_use_is_not() {
    let agent = Started::new();
    let at = |name: &str| agent.folder.path().join(name);
    let ((chain, key), (other, other_key)) = (self_signed(), self_signed());
    for (name, text) in [("chain", &chain), ("key", &key)] {
        std::fs::write(at(name), text).unwrap();
    }
    let name = format!("file-cert:{}~{}", at("chain").display(), at("key").display());
    let mut asking = Asking::of(&agent.socket(), &name).await;
    assert_eq!(shown(&asking.next().await), format!("{name}={chain}{key}"));
    // Halfway the key doesn't fit: nothing is sent.
    std::fs::write(at("chain"), &other).unwrap();
    assert!(timeout(Duration::from_millis(500), asking.responses.message()).await.is_err());
    std::fs::write(at("key"), &other_key).unwrap();
    assert_eq!(shown(&asking.next().await), format!("{name}={other}{other_key}"));

    let missing = format!("file-root:{}", at("roots").display());
    let mut asking = Asking::of(&agent.socket(), &missing).await;
    assert!(timeout(Duration::from_millis(300), asking.responses.message()).await.is_err(), "no such file");
    std::fs::write(at("roots"), &chain).unwrap();
    assert_eq!(shown(&asking.next().await), format!("{missing}={chain}"));
    let mut asking = Asking::of(&agent.socket(), "kubernetes://a/b").await;
    let silent = timeout(Duration::from_millis(300), asking.responses.message()).await;
    assert!(silent.is_err(), "that is the control plane's");
}

#[tokio::test]
async fn a_socket_in_use_is_left_alone_and_a_forgotten_one_replaced() {
    let agent = Started::new();
    let error = sds::bind(&agent.socket()).unwrap_err();
    assert!(error.to_string().contains("somebody serves there"), "{error}");
    let forgotten = agent.folder.path().join("forgotten");
    drop(sds::bind(&forgotten).unwrap());
    assert!(forgotten.exists());
    drop(sds::bind(&forgotten).unwrap());
}

#[tokio::test]
async fn what_is_no_socket_stays_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    std::fs::write(&path, "text").unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for path in [&path, &link] {
        let error = sds::bind(path).unwrap_err();
        assert!(error.to_string().contains("is no socket"), "{error}");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "text");
    }
}

/// How many watchers of this process watch a folder.
fn watchers_of(folder: &Path) -> usize {
    use std::os::unix::fs::MetadataExt as _;
    let inode = format!(" ino:{:x} ", std::fs::metadata(folder).unwrap().ino());
    let descriptors = std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    // Other tests close theirs meanwhile.
    let told = descriptors.filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    told.filter(|text| text.lines().any(|line| line.starts_with("inotify ") && line.contains(&inode))).count()
}

#[tokio::test]
async fn streams_share_one_watcher_that_ends_with_the_last_of_them() {
    let agent = Started::new();
    let folder = agent.folder.path().join("certificates");
    std::fs::create_dir(&folder).unwrap();
    let (one, other) = (self_signed().0, self_signed().0);
    for name in ["a", "b"] {
        std::fs::write(folder.join(name), &one).unwrap();
    }
    let name = |file: &str| format!("file-root:{}", folder.join(file).display());
    // Waits for a certificate of the mesh, whatever becomes of files.
    let mut early = Asking::of(&agent.socket(), "default").await;
    let mut streams = Vec::new();
    for file in ["a", "a", "b"] {
        let mut asking = Asking::of(&agent.socket(), &name(file)).await;
        assert_eq!(shown(&asking.next().await), format!("{}={one}", name(file)));
        streams.push(asking);
    }
    assert_eq!(watchers_of(&folder), 1);
    std::fs::write(folder.join("a"), &other).unwrap();
    for asking in &mut streams[..2] {
        assert_eq!(shown(&asking.next().await), format!("{}={other}", name("a")));
    }
    streams.clear();
    let limit = std::time::Instant::now() + PATIENCE;
    while watchers_of(&folder) > 0 {
        assert!(std::time::Instant::now() < limit, "nobody asks for files any more");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut again = Asking::of(&agent.socket(), &name("a")).await;
    assert_eq!(shown(&again.next().await), format!("{}={other}", name("a")));
    agent.issued.send_replace(pem("one"));
    assert_eq!(shown(&early.next().await), "default=chain-one key-one ");
}
