//! A workload with policies: namespace `foo`, label `app: api`, HTTP on port 8080 (service port 80), TCP on port 9000.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use osier_pilot::r#gen;
use osier_pilot::r#gen::key::{Key, ResourceType};
use osier_pilot::source::folder::Folder;
use osier_pilot::store::Store;
use osier_pilot::xds::node::Client;
use osier_proto::types::core::Node;
use osier_proxy::authz::counters::Counters;
use osier_proxy::authz::{self, Facts};
use osier_proxy::compile::{self, Context};
use osier_proxy::config::listener::{
    ConnectionInputs, FilterChain, HttpManager, Listener, NetworkAction, TcpProxy, TransportProtocol,
};
use osier_proxy::config::snapshot::Clusters;
use osier_proxy::http::filters::forwarded;
use osier_proxy::http::head::RequestHead;
use osier_proxy::http::normalize::{Normalized, normalize};
use osier_proxy::jwt::Tokens;
use osier_proxy::jwt::cache::TokenCache;

/// The HTTP port of the workload.
pub const HTTP: u16 = 8080;
/// Its TCP port.
pub const TCP: u16 = 9000;
/// A port of which no service says what it speaks. Opaque bytes are sent to it.
pub const UNDECLARED: u16 = 7000;
/// Its address.
pub const ADDRESS: &str = "10.1.0.9";

const WORKLOAD: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: api, namespace: foo}
spec:
  clusterIP: 10.96.0.2
  selector: {app: api}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: tcp, port: 9000}
---
apiVersion: v1
kind: Pod
metadata: {name: api-0, namespace: foo, labels: {app: api}}
spec: {containers: [{name: app, image: app}]}
status: {phase: Running, podIP: 10.1.0.9, conditions: [{type: Ready, status: "True"}]}
---
"#;

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question {
    /// Port of the workload that the connection was going to.
    pub port: u16,
    /// Names of the client's certificate; none for plaintext.
    pub peer: Vec<Arc<str>>,
    /// The other end of the connection.
    pub source: IpAddr,
    /// SNI.
    pub server_name: Option<Arc<str>>,
    /// The request, on an HTTP port.
    pub method: String,
    /// Its path.
    pub path: String,
    /// Its `Host`.
    pub host: String,
    /// Its other header lines.
    pub headers: Vec<(String, String)>,
}

impl Default for Question {
    fn default() -> Self {
        Self {
            port: HTTP,
            peer: Vec::new(),
            source: [10, 0, 0, 9].into(),
            server_name: None,
            method: "GET".into(),
            path: "/".into(),
            host: "api.foo".into(),
            headers: Vec::new(),
        }
    }
}

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Allowed,
    /// 403, or the connection is closed.
    Denied,
}

/// The workload's listener as its proxy has it.
pub struct Shop {
    listener: Listener,
    /// What was counted.
    pub counters: Counters,
}

impl Shop {
    /// The workload under these policies (and mesh configuration).
    pub fn new(policies: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("mesh.yaml"), format!("{WORKLOAD}{policies}")).expect("a file");
        let scan = Folder::new(folder.path(), "cluster.local".into()).scan().expect("a scan");
        let mut store = Store::new("cluster.local".into());
        store.apply(scan.updates);
        let node = serde_json::json!({
            "id": format!("sidecar~{ADDRESS}~api-0.foo~foo.svc.cluster.local"),
            "metadata": {"NAMESPACE": "foo", "INSTANCE_IPS": ADDRESS, "OSIER_SCHEMA": "1"},
        });
        let node: Node = osier_proto::json::from_value(&node).expect("a node");
        let view = Client::parse(Some(&node)).expect("a client").view;
        let key = Key { kind: ResourceType::Listener, name: "virtualInbound".into(), view };
        let made = r#gen::generate(&key, store.snapshot(), |_| None).expect("a listener");
        let counters = Counters::default();
        let compiled = compile::listener::compile(
            "virtualInbound",
            &made.resource.body,
            Context {
                clusters: &Clusters::default(),
                secrets: &Default::default(),
                on_demand: None,
                counters: &counters,
                cluster_exists: &|_| true,
            },
        );
        Self { listener: compiled.expect("the proxy takes what pilot makes").listener, counters }
    }

    /// What becomes of a request or connection.
    pub fn verdict(&self, question: &Question) -> Verdict {
        match self.denial(question) {
            None => Verdict::Allowed,
            Some(_) => Verdict::Denied,
        }
    }

    /// The chain of the workload's HTTP port.
    pub fn manager(&self) -> Arc<HttpManager> {
        match &self.chain(&Self::inputs(&Question::default())).action {
            NetworkAction::Http(manager) => manager.clone(),
            NetworkAction::Tcp(_) => panic!("the port serves HTTP"),
        }
    }

    /// That of its TCP port.
    pub fn tcp(&self) -> Arc<TcpProxy> {
        match &self.chain(&Self::inputs(&Question { port: TCP, ..Question::default() })).action {
            NetworkAction::Tcp(proxy) => proxy.clone(),
            NetworkAction::Http(_) => panic!("the port is opaque"),
        }
    }

    fn chain(&self, inputs: &ConnectionInputs) -> &FilterChain {
        self.listener.chain_for(inputs).expect("a chain")
    }

    fn inputs(question: &Question) -> ConnectionInputs {
        let destination = SocketAddr::new(ADDRESS.parse().expect("an address"), question.port);
        let http = ![TCP, UNDECLARED].contains(&question.port);
        ConnectionInputs {
            source: SocketAddr::new(question.source, 40000),
            destination,
            transport: TransportProtocol::RawBuffer,
            server_name: question.server_name.clone(),
            application_protocols: if http { vec!["http/1.1".into()] } else { Vec::new() },
        }
    }

    /// The policy that denies it, or status and text of the answer to its token.
    pub fn denial(&self, question: &Question) -> Option<String> {
        self.decide(question).err()
    }

    /// The headers of a request that is allowed, as the application gets them: without those that the proxy always sets.
    pub fn forwarded(&self, question: &Question) -> Vec<(String, String)> {
        let head = self.decide(question).expect("it is allowed");
        let always = ["x-forwarded-proto", "x-request-id"];
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let lines = head.fields.iter().map(|field| (text(field.name).to_lowercase(), text(field.value)));
        lines.filter(|(name, _)| !always.contains(&name.as_str())).collect()
    }

    fn decide(&self, question: &Question) -> Result<RequestHead, String> {
        let source = SocketAddr::new(question.source, 40000);
        let inputs = Self::inputs(question);
        let chain = self.chain(&inputs);
        let facts = Facts::new(&inputs, &question.peer, !question.peer.is_empty());
        let manager = match &chain.action {
            NetworkAction::Tcp(proxy) => {
                if let Some(asked) = proxy.authorizers.iter().find(|authorizer| authorizer.is_for(&facts, 0))
                {
                    return Err(format!("ask {}", asked.cluster.name));
                }
                let checked = authz::check(&proxy.authorization, &facts, 0);
                return checked.map(|()| RequestHead::new()).map_err(|denial| denial.policy.to_string());
            }
            NetworkAction::Http(manager) => manager,
        };
        let mut head = RequestHead::new();
        assert!(head.set_method(question.method.as_bytes()), "a method");
        head.set_authority(question.host.as_bytes());
        for (name, value) in &question.headers {
            head.fields.append(name.as_str(), value.as_bytes());
        }
        let origin = forwarded::settle(manager, source, !question.peer.is_empty(), &mut head);
        let Normalized::Path(path) = normalize(question.path.as_bytes(), manager.normalize) else {
            return Err("the path is refused".into());
        };
        head.set_path(&path);
        let unasked = facts.with_request(&head, origin.remote.ip(), &[]);
        if let Some(asked) = manager.authorizers.iter().find(|authorizer| authorizer.is_for(&unasked, 0)) {
            return Err(format!("ask {}", asked.cluster.name));
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
        let tokens = match &manager.authentication {
            Some(filter) => match filter.check(&mut head, &TokenCache::default(), now, 0) {
                Ok(tokens) => tokens,
                Err(refusal) => return Err(format!("{} {refusal}", refusal.status())),
            },
            None => Tokens::new(),
        };
        let facts = facts.with_request(&head, origin.remote.ip(), &tokens);
        authz::check(&manager.authorization, &facts, 0).map_err(|denial| denial.policy.to_string())?;
        Ok(head)
    }
}
