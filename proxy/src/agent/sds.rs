//! SDS on a Unix domain socket: the workload's certificate (`default`), the mesh's roots (`ROOTCA`), and files by their names.
//!
//! A stream is answered when there is something to send, and where names of the mesh are asked for, when there is a certificate: an answer
//! without them would say that there is none. What doesn't exist, or is a file of no use, is sent when it has become something.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use osier_proto::transport::{self, Handler, Link};
use osier_proto::types::SECRET;
use osier_proto::types::core::{DataSource, data_source::Specifier};
use osier_proto::types::tls::{CertificateValidationContext, Secret, TlsCertificate, secret};
use osier_proto::xds::Resource;
use osier_proto::xds::server::{Options, Scope, Step, Stream};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::Status;

use super::Current;
use super::files::{Asked, Files};
use crate::config::tls::{OWN, ROOTS};
use crate::identity::files::FileSecret;
use crate::identity::request::Pem;

/// Who may open the socket: its user, and the group that a pod's containers have in common.
const MODE: u32 = 0o660;

/// Opens the socket. One that nobody serves any more gives way; nothing else does.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o750).create(folder)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody serves there already"));
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "is there, and is no socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let socket = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
    Ok(socket)
}

/// Serves whoever comes, and keeps the files that they ask for.
pub async fn serve(
    socket: UnixListener,
    current: Current,
    files: Arc<Files>,
) -> Result<(), tonic::transport::Error> {
    let service = transport::secret_service(Agent { current, files: files.clone() });
    let incoming = UnixListenerStream::new(socket);
    tokio::select! {
        served = transport::server().add_service(service).serve_with_incoming(incoming) => served,
        never = files.keep() => match never {},
    }
}

/// Takes streams in.
struct Agent {
    current: Current,
    files: Arc<Files>,
}

impl Handler for Agent {
    async fn serve(&self, link: Link) -> Result<(), Status> {
        let served = Served {
            stream: Stream::new(link.variant, Options::default()),
            current: self.current.clone(),
            files: Asked::new(self.files.clone()),
        };
        served.run(link).await
    }
}

/// One stream.
struct Served {
    stream: Stream,
    current: Current,
    files: Asked,
}

impl Served {
    async fn run(mut self, mut link: Link) -> Result<(), Status> {
        loop {
            if self.has_something() {
                self.send(&link).await;
            }
            tokio::select! {
                request = link.request() => match request? {
                    Some(request) => {
                        let reaction = self.stream.on_request(request, Instant::now());
                        reaction.map_err(|error| Status::invalid_argument(error.to_string()))?;
                        let names = self.stream.names(SECRET);
                        self.files.only(names.filter(|name| FileSecret::parse(name).is_some()).cloned().collect());
                    }
                    None => return Ok(()),
                },
                changed = self.current.changed() => {
                    if changed.is_err() {
                        return Err(Status::unavailable("the agent is going down"));
                    }
                    self.push();
                }
                () = self.files.changed() => self.push(),
            }
        }
    }

    /// True where an answer has a resource, and lacks none of the mesh. What was sent once stays, so it never becomes false again for
    /// the same names.
    fn has_something(&self) -> bool {
        let is_of_mesh = |name: &str| [OWN, ROOTS].contains(&name);
        let has_own = self.current.borrow().is_some();
        let mut any = false;
        for name in self.stream.names(SECRET) {
            match is_of_mesh(name) {
                true if !has_own => return false,
                true => any = true,
                false => any |= self.files.get(name).is_some(),
            }
        }
        any
    }

    /// Offers everything that the client asks for; what hasn't changed isn't sent.
    fn push(&mut self) {
        let names: Vec<Arc<str>> = self.stream.names(SECRET).cloned().collect();
        let resources = self.generate(&names);
        self.stream.push(SECRET, Scope::Names(names), resources);
    }

    async fn send(&mut self, link: &Link) {
        while link.ready().await {
            match self.stream.next(Instant::now()) {
                Some(Step::Generate(want)) => {
                    let resources = match &want.scope {
                        Scope::Names(names) if *want.type_url == *SECRET => self.generate(names),
                        // Nobody can have all, nor other things.
                        _ => Vec::new(),
                    };
                    self.stream.answer(want, resources);
                }
                Some(Step::Send(response)) => {
                    if !link.send(response).await {
                        return;
                    }
                }
                None => return,
            }
        }
    }

    fn generate(&self, names: &[Arc<str>]) -> Vec<Resource> {
        let found = |name: &Arc<str>| Some(Resource::new(name.clone(), &*self.secret(name)?));
        names.iter().filter_map(found).collect()
    }

    fn secret(&self, name: &Arc<str>) -> Option<Arc<Secret>> {
        let pem = || self.current.borrow().clone();
        match &**name {
            OWN => pem().map(|pem| Arc::new(certificate(&pem))),
            ROOTS => pem().map(|pem| Arc::new(roots(&pem))),
            _ => self.files.get(name),
        }
    }
}

fn inline(text: &str) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineBytes(text.as_bytes().to_vec().into())) })
}

fn certificate(pem: &Pem) -> Secret {
    let certificate = TlsCertificate { certificate_chain: inline(&pem.chain), private_key: inline(&pem.key) };
    Secret { name: OWN.into(), r#type: Some(secret::Type::TlsCertificate(certificate)) }
}

fn roots(pem: &Pem) -> Secret {
    let context = CertificateValidationContext { trusted_ca: inline(&pem.roots), ..Default::default() };
    Secret { name: ROOTS.into(), r#type: Some(secret::Type::ValidationContext(context)) }
}
