//! Versions that differ: what pilot sends follows the schema that a client announces, and never has a field that it doesn't declare.

use std::time::{Duration, Instant};

use osier_proto::schema::{self, ControlPlaneIdentity};
use osier_proto::transport::{self, Connection};
use osier_proto::types::{self, core::Node};
use osier_proto::xds::client::{Client, Content};
use osier_proto::{Any, unknown};
use osier_tests::mesh::{Pilot, service};
use prost_types::{Struct, Value, value::Kind};

use crate::web::rules;

/// Everything that pilot sends to a stock client which announces this schema, and what pilot says of itself.
fn everything(pilot: &Pilot, announced: Option<&str>) -> (Vec<Any>, ControlPlaneIdentity) {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.into())) };
    let mut fields = vec![("NAMESPACE", text("default")), ("INTERCEPTION_MODE", text("NONE"))];
    fields.extend(announced.map(|version| (schema::VERSION_METADATA_KEY, text(version))));
    let node = Node {
        id: "sidecar~127.0.0.9~skew.default~default.svc.cluster.local".into(),
        metadata: Some(Struct {
            fields: fields.into_iter().map(|(key, value)| (key.into(), value)).collect(),
        }),
        ..Default::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let endpoint = transport::endpoint(&format!("http://{}", pilot.xds)).expect("an address");
        let mut client = Client::incremental(node, 0);
        let mut connection = Connection::open(&endpoint, client.variant()).await.expect("pilot is there");
        client.on_connected();
        client.subscribe_all(types::CLUSTER);
        client.subscribe_all(types::LISTENER);
        client.subscribe(types::ROUTE_CONFIGURATION, "http_proxy");
        let (mut found, mut missing) =
            (Vec::new(), vec![types::CLUSTER, types::LISTENER, types::ROUTE_CONFIGURATION]);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !missing.is_empty() {
            let limit = deadline.saturating_duration_since(Instant::now());
            let next = tokio::time::timeout(limit, connection.next(&mut client)).await;
            let received = next.expect("an answer in time").expect("the stream goes on");
            missing.retain(|type_url| *type_url != &*received.type_url);
            for update in received.updates {
                if let Content::Present { resource, .. } = update.content {
                    found.push(resource);
                }
            }
            client.applied(received.id, vec![]);
        }
        let identity = ControlPlaneIdentity::from_control_plane(client.control_plane());
        (found, identity.expect("pilot says who it is"))
    })
}

/// A client of another make gets nothing of ours, one of an unknown newer version no more than this version declares.
#[test]
fn clients_get_what_their_schema_declares() {
    let text = service("web", "http", 80);
    let pilot = Pilot::start(&[("service.yaml", &text), ("rules.yaml", &rules("v1"))], &[]);
    for (announced, ours) in [(None, false), (Some("1"), true), (Some("99"), true)] {
        let (resources, identity) = everything(&pilot, announced);
        assert_eq!((&*identity.name, identity.schema), ("osier-pilot", schema::VERSION), "{announced:?}");
        let undeclared: Vec<String> =
            resources.iter().flat_map(unknown::unknown_fields).map(|field| field.to_string()).collect();
        assert!(undeclared.is_empty(), "{announced:?}: {undeclared:?}");
        const OURS: &[u8] = b"type.googleapis.com/osier.";
        let has_ours = resources.iter().any(|r| r.value.windows(OURS.len()).any(|window| window == OURS));
        assert_eq!(has_ours, ours, "{announced:?}: {} resources", resources.len());
    }
}
