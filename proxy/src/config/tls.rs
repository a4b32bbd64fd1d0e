//! TLS towards clients: what a filter chain shows them.
//!
//! The certificate is no part of it: a chain holds a [`SecretHandle`], and SDS swaps what is inside. Each handshake takes what is in
//! force then; connections that exist are not touched.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// TLS of a filter chain, ready for handshakes.
#[derive(Debug, Clone)]
pub struct ServerTls(pub Arc<ServerConfig>);

/// A certificate and its key, by the name under which they come. Empty until they came: then handshakes fail.
#[derive(Debug)]
pub struct SecretHandle {
    /// Name of the SDS resource; empty for one that is written in the listener.
    pub name: Arc<str>,
    current: ArcSwapOption<CertifiedKey>,
}

impl SecretHandle {
    /// A handle with what it shall show.
    pub fn new(name: &str, current: Option<Arc<CertifiedKey>>) -> Arc<Self> {
        Arc::new(Self { name: name.into(), current: ArcSwapOption::new(current) })
    }

    /// Puts a certificate in force for new connections.
    pub fn publish(&self, current: Arc<CertifiedKey>) {
        self.current.store(Some(current));
    }
}

impl ResolvesServerCert for SecretHandle {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }
}

/// The handles of all names that listeners refer to.
#[derive(Debug, Default)]
pub struct Secrets(Mutex<HashMap<Arc<str>, Arc<SecretHandle>>>);

impl Secrets {
    /// The handle for `name`, made empty where it is missing.
    pub fn handle(&self, name: &str) -> Arc<SecretHandle> {
        let mut handles = self.0.lock();
        if let Some(found) = handles.get(name) {
            return found.clone();
        }
        let handle = SecretHandle::new(name, None);
        handles.insert(handle.name.clone(), handle.clone());
        handle
    }

    /// Forgets `name`, unless a listener, or a connection that came by an old one, holds it.
    pub fn forget(&self, name: &str) {
        let mut handles = self.0.lock();
        if handles.get(name).is_some_and(|handle| Arc::strong_count(handle) == 1) {
            handles.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::sync::atomic::{AtomicBool, Ordering};

    use rcgen::{CertificateParams, KeyPair};
    use rustls::client::Resumption;
    use rustls::crypto::aws_lc_rs;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};

    use super::*;

    fn certificate() -> (Arc<CertifiedKey>, CertificateDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec!["a.example".into()]).unwrap().self_signed(&key).unwrap();
        let der = certificate.der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let certified = CertifiedKey::from_der(vec![der.clone()], key, &aws_lc_rs::default_provider());
        (Arc::new(certified.unwrap()), der)
    }

    fn server(handle: &Arc<SecretHandle>) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        Arc::new(builder.with_cert_resolver(handle.clone()))
    }

    fn client(roots: &[CertificateDer<'static>]) -> Arc<ClientConfig> {
        let mut store = RootCertStore::empty();
        roots.iter().for_each(|root| store.add(root.clone()).unwrap());
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(store).with_no_client_auth();
        // Who resumes a session goes by the certificate that it saw then.
        config.resumption = Resumption::disabled();
        Arc::new(config)
    }

    type Pair = (ServerConnection, ClientConnection);

    fn carry((server, client): &mut Pair) -> Result<(), rustls::Error> {
        while server.wants_write() || client.wants_write() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut &bytes[..]).unwrap();
            let done = server.process_new_packets();
            bytes.clear();
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut &bytes[..]).unwrap();
            client.process_new_packets()?;
            done?;
        }
        Ok(())
    }

    fn handshake(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Result<Pair, rustls::Error> {
        let name = ServerName::try_from("a.example").unwrap();
        let mut pair = (
            ServerConnection::new(server.clone()).unwrap(),
            ClientConnection::new(client.clone(), name).unwrap(),
        );
        carry(&mut pair).map(|()| pair)
    }

    fn shown((_, client): &Pair) -> CertificateDer<'static> {
        client.peer_certificates().unwrap()[0].clone().into_owned()
    }

    #[test]
    fn a_swap_changes_new_connections_only() {
        let ((old, old_der), (new, new_der)) = (certificate(), certificate());
        let handles = Secrets::default();
        let handle = handles.handle("x");
        let (server, client) = (server(&handle), client(&[old_der.clone(), new_der.clone()]));
        assert!(handshake(&server, &client).is_err(), "there is no certificate yet");
        handle.publish(old);
        let mut before = handshake(&server, &client).unwrap();
        assert_eq!(shown(&before), old_der);
        handles.handle("x").publish(new);
        assert_eq!(shown(&handshake(&server, &client).unwrap()), new_der);
        before.1.writer().write_all(b"still here").unwrap();
        carry(&mut before).unwrap();
        let mut got = [0; 10];
        before.0.reader().read_exact(&mut got).unwrap();
        assert_eq!(&got, b"still here");
        handles.forget("x");
        assert!(Arc::ptr_eq(&handles.handle("x"), &handle), "a listener holds it");
    }

    #[test]
    fn swaps_under_load_fail_no_handshake() {
        let ((old, old_der), (new, new_der)) = (certificate(), certificate());
        let handle = SecretHandle::new("x", Some(old.clone()));
        let (server, client) = (server(&handle), client(&[old_der.clone(), new_der.clone()]));
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    handle.publish(new.clone());
                    handle.publish(old.clone());
                }
            });
            for _ in 0..100 {
                let shown = handshake(&server, &client).map(|pair| shown(&pair));
                assert!(shown.is_ok_and(|shown| shown == old_der || shown == new_der));
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
