//! Name tables: one by one where the control plane agreed to on-demand, whole where it knows nothing of that.

use osier_proto::types::NAME_TABLE;
use osier_proto::types::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use super::fake::{Server, Session, pilot, proxy_with, resource, sidecar};
use super::*;
use crate::dns::Directory;
use crate::on_demand::Limits;

fn table(rows: &str) -> Any {
    pack::<types::nds::NameTable>(&format!("{{table: {{{rows}}}}}"))
}

async fn send(session: &mut Session, nonce: &str, resources: &[(&str, Any)], removed: &[&str]) {
    let response = DeltaDiscoveryResponse {
        type_url: NAME_TABLE.into(),
        nonce: nonce.into(),
        resources: resources.iter().map(|(name, body)| resource(name, body)).collect(),
        removed_resources: removed.iter().map(|n| (*n).to_owned()).collect(),
        control_plane: session.identity.clone(),
        ..Default::default()
    };
    session.send_raw(response).await;
}

/// The first listener's answer, which settles what kind of control plane this is.
async fn begin(session: &mut Session) {
    session.request_where(Kind::Listener, |_| true).await;
    let inbound = tcp_listener("virtualInbound", "0.0.0.0:15006", "inbound", "");
    session.send(Kind::Listener, &[("virtualInbound", inbound)], &[]).await;
}

/// The request that speaks about a response.
async fn verdict(session: &mut Session, nonce: &str) -> DeltaDiscoveryRequest {
    loop {
        let request = session.request_of(NAME_TABLE).await;
        if request.response_nonce == nonce {
            return request;
        }
    }
}

/// What is known of a host, once something is.
async fn ips(directory: &Directory, host: &str) -> serde_json::Value {
    eventually(host, || {
        let page = directory.page();
        let absent = page["absent"].as_array().is_some_and(|absent| absent.contains(&host.into()));
        page["table"].get(host).map(|row| row["ips"].clone()).or(absent.then(|| "absent".into()))
    })
    .await
}

#[tokio::test]
async fn on_demand_hosts_are_asked_for_by_name() {
    let mut server = Server::start().await;
    let proxy = proxy_with(&server.target, sidecar(Limits::default()), true);
    let mut session = server.session().await;
    session.identity = pilot();
    begin(&mut session).await;
    eventually("the agreement", || proxy.directory.page()["absent"].as_array().map(drop)).await;
    let _waiting = ["web", "nobody.example.com"].map(|host| proxy.directory.get(host));
    let mut asked = Vec::new();
    while asked.len() < 2 {
        asked.extend(session.request_of(NAME_TABLE).await.resource_names_subscribe);
    }
    assert_eq!(asked, ["web", "nobody.example.com"]);
    send(
        &mut session,
        "n1",
        &[("web", table("web: {ips: [10.96.0.1, \"fd00::1\"]}"))],
        &["nobody.example.com"],
    )
    .await;
    assert_eq!(verdict(&mut session, "n1").await.error_detail, None);
    assert_eq!(ips(&proxy.directory, "web").await, serde_json::json!(["10.96.0.1", "fd00::1"]));
    assert_eq!(ips(&proxy.directory, "nobody.example.com").await, "absent");
    // A refused version changes nothing.
    send(&mut session, "n2", &[("web", table("web: {ips: [10.96.0.300]}"))], &[]).await;
    let refused = verdict(&mut session, "n2").await.error_detail.expect("a NACK");
    assert!(
        refused.message.contains("web: table[\"web\"].ips[0]: `10.96.0.300` is not an IP address"),
        "{refused:?}"
    );
    assert_eq!(ips(&proxy.directory, "web").await, serde_json::json!(["10.96.0.1", "fd00::1"]));
    // What nobody asked for isn't kept; what goes is absent.
    send(&mut session, "n3", &[("other", table("other: {ips: [10.96.0.9]}"))], &["web"]).await;
    assert_eq!(verdict(&mut session, "n3").await.error_detail, None);
    assert_eq!(ips(&proxy.directory, "web").await, "absent");
    assert_eq!(proxy.directory.page()["table"], serde_json::json!({}));
}

#[tokio::test]
async fn others_are_asked_for_all_hosts_at_once() {
    let mut server = Server::start().await;
    let proxy = proxy_with(&server.target, sidecar(Limits::default()), true);
    let mut first = server.session().await;
    begin(&mut first).await;
    let mut session = server.session().await;
    let request = session.request_of(NAME_TABLE).await;
    assert!(request.resource_names_subscribe.is_empty(), "{request:?}");
    let rows = "web.default.svc.cluster.local: {ips: [10.96.0.1], registry: Kubernetes, shortname: web, namespace: default}";
    send(&mut session, "n1", &[("", table(rows))], &[]).await;
    assert_eq!(verdict(&mut session, "n1").await.error_detail, None);
    assert_eq!(ips(&proxy.directory, "web.default").await, serde_json::json!(["10.96.0.1"]));
    let rows = "api.example.com: {ips: [240.240.0.1]}";
    send(&mut session, "n2", &[("", table(rows))], &[]).await;
    assert_eq!(ips(&proxy.directory, "api.example.com").await, serde_json::json!(["240.240.0.1"]));
    assert_eq!(proxy.directory.page()["table"].as_object().map(|table| table.len()), Some(1));
}
