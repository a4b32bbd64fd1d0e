//! A control plane that sends everything (`--config`), and one that misbehaves. What was in force stays.

use osier_proto::types::discovery::DeltaDiscoveryResponse;

use super::fake::{Proxy, Server, Session, proxy, resource};
use super::*;

/// A proxy with one cluster and one listener in force.
async fn running() -> (Server, Session, Proxy) {
    let mut server = Server::start().await;
    let proxy = proxy(&server.target, Mode::All);
    assert_eq!(proxy.xds.progress(), Progress::Waiting);
    let mut session = server.session().await;
    let first = session.request().await.unwrap();
    assert_eq!(first.node.as_ref().unwrap().id, "sidecar~10.0.0.1~a.b~b.svc");
    let features = first.node.unwrap().client_features;
    assert_eq!(features, osier_proto::schema::UNDERSTOOD, "no word of on-demand");
    session.send(Kind::Listener, &[("l", http_listener("l", "127.0.0.1:80", "r"))], &[]).await;
    session.send(Kind::Cluster, &[("c", eds_cluster("c", ""))], &[]).await;
    // Whether both responses are looked at in one go or one by one decides which of these is asked for first.
    let (mut endpoints, mut table) = (false, false);
    while !(endpoints && table) {
        let request = session.request().await.unwrap();
        let asks = |kind: Kind, name: &str| {
            request.type_url == kind.type_url() && request.resource_names_subscribe == [name]
        };
        endpoints |= asks(Kind::Assignment, "c");
        table |= asks(Kind::Routes, "r");
    }
    session.send(Kind::Assignment, &[("c", assignment("c", &[1]))], &[]).await;
    assert!(proxy.snapshot.load().listeners.is_empty(), "not before its routes");
    let nonce = session.send(Kind::Routes, &[("r", routes("r", "c"))], &[]).await;
    assert_eq!(session.verdict(Kind::Routes, &nonce).await, None);
    tokio::time::timeout(LONG, proxy.xds.ready()).await.unwrap();
    assert!(proxy.snapshot.load().listeners.contains_key("l"));
    assert!(proxy.clusters.get("c").unwrap().current.load().is_some());
    (server, session, proxy)
}

fn timeout_of(proxy: &Proxy, name: &str) -> Option<u64> {
    Some(proxy.clusters.get(name)?.current.load_full()?.spec.connect_timeout.as_secs())
}

fn cluster(name: &str, seconds: u64) -> Any {
    pack::<cluster::Cluster>(&format!("{{name: \"{name}\", connect_timeout: {seconds}s}}"))
}

#[tokio::test]
async fn listeners_wait_for_the_first_clusters() {
    let mut server = Server::start().await;
    let proxy = proxy(&server.target, Mode::All);
    let mut session = server.session().await;
    let nonce = session.send(Kind::Listener, &[("l", tcp_listener("l", "127.0.0.1:80", "c", ""))], &[]).await;
    assert_eq!(session.verdict(Kind::Listener, &nonce).await, None, "accepted, and told so at once");
    assert!(proxy.snapshot.load().listeners.is_empty());
    session.send(Kind::Cluster, &[("c", cluster("c", 1))], &[]).await;
    tokio::time::timeout(LONG, proxy.xds.ready()).await.unwrap();
    assert!(proxy.snapshot.load().listeners.contains_key("l"));
}

#[tokio::test]
async fn a_bad_resource_between_good_ones_is_named_and_the_good_ones_apply() {
    let (_server, mut session, proxy) = running().await;
    session.send(Kind::Cluster, &[("b", cluster("b", 1))], &[]).await;
    eventually("b", || timeout_of(&proxy, "b")).await;
    let resources = [("a", cluster("a", 2)), ("b", cluster("b", 0)), ("d", cluster("d", 4))];
    let nonce = session.send(Kind::Cluster, &resources, &[]).await;
    let text = session.verdict(Kind::Cluster, &nonce).await.expect("a NACK");
    assert_eq!(text, "b: connect_timeout: must be at least 1ms");
    assert_eq!(timeout_of(&proxy, "a"), Some(2));
    assert_eq!(timeout_of(&proxy, "b"), Some(1), "the last good version serves");
    assert_eq!(timeout_of(&proxy, "d"), Some(4));

    let dump = proxy.xds.config_dump(DumpQuery::default()).await.unwrap();
    let text = dump.to_string();
    assert!(text.contains("must be at least 1ms"), "{text}");
    let nonce = session.send(Kind::Cluster, &[("b", cluster("b", 9))], &[]).await;
    assert_eq!(session.verdict(Kind::Cluster, &nonce).await, None);
    assert_eq!(timeout_of(&proxy, "b"), Some(9));
}

#[tokio::test]
async fn undeclared_fields_are_refused_by_name() {
    let (_server, mut session, proxy) = running().await;
    let mut body = cluster("x", 1);
    // Field 19 of Cluster: outlier_detection.
    body.value = [&body.value[..], &[0x9a, 0x01, 0x00]].concat().into();
    let nonce = session.send(Kind::Cluster, &[("x", body)], &[]).await;
    let text = session.verdict(Kind::Cluster, &nonce).await.unwrap();
    assert!(text.contains("outlier_detection"), "{text}");
    assert_eq!(timeout_of(&proxy, "x"), None);
}

#[tokio::test]
async fn an_unknown_type_is_refused_and_the_stream_goes_on() {
    let (_server, mut session, proxy) = running().await;
    let body = pack::<osier_proto::types::core::Pipe>("{path: /x}");
    let response = DeltaDiscoveryResponse {
        type_url: body.type_url.clone(),
        nonce: "odd".into(),
        resources: vec![resource("p", &body)],
        ..Default::default()
    };
    session.send_raw(response).await;
    let verdict = loop {
        let request = session.request().await.unwrap();
        if request.response_nonce == "odd" {
            break request;
        }
    };
    assert!(verdict.error_detail.unwrap().message.contains("not supported"));
    // A resource that isn't of its response's type.
    let nonce = session.send(Kind::Cluster, &[("p", body), ("q", cluster("q", 3))], &[]).await;
    assert!(session.verdict(Kind::Cluster, &nonce).await.unwrap().starts_with("p: is a"));
    assert_eq!(timeout_of(&proxy, "q"), Some(3));
}

#[tokio::test]
async fn odd_nonces_are_given_back_as_they_came() {
    let (_server, mut session, proxy) = running().await;
    for nonce in ["", "same", "same", "1"] {
        let response = DeltaDiscoveryResponse {
            type_url: types::CLUSTER.into(),
            nonce: nonce.into(),
            resources: vec![resource("n", &cluster("n", 1))],
            ..Default::default()
        };
        session.send_raw(response).await;
    }
    let nonce = session.send(Kind::Cluster, &[("m", cluster("m", 2))], &[]).await;
    assert_eq!(session.verdict(Kind::Cluster, &nonce).await, None);
    assert_eq!((timeout_of(&proxy, "n"), timeout_of(&proxy, "m")), (Some(1), Some(2)));
}

#[tokio::test]
async fn a_name_that_is_there_twice_is_refused() {
    let (_server, mut session, proxy) = running().await;
    let twice = [("t", cluster("t", 1)), ("t", cluster("t", 2)), ("u", cluster("u", 3))];
    let nonce = session.send(Kind::Cluster, &twice, &[]).await;
    assert_eq!(session.verdict(Kind::Cluster, &nonce).await.unwrap(), "t: is twice in one response");
    assert_eq!(timeout_of(&proxy, "u"), Some(3));
}

#[tokio::test]
async fn a_huge_response_arrives() {
    let (_server, mut session, proxy) = running().await;
    let padding = "x".repeat(1000);
    let names: Vec<_> = (0..6000).map(|n| format!("huge-{n}")).collect();
    let body = |name: &str| pack::<cluster::Cluster>(&format!("{{name: {name}, alt_stat_name: {padding}}}"));
    let resources: Vec<_> = names.iter().map(|n| (n.as_str(), body(n))).collect();
    let nonce = session.send(Kind::Cluster, &resources, &[]).await;
    assert_eq!(session.verdict(Kind::Cluster, &nonce).await, None);
    assert!(timeout_of(&proxy, "huge-5999").is_some());
}

#[tokio::test]
async fn what_is_in_force_stays_when_the_control_plane_goes() {
    let (mut server, session, proxy) = running().await;
    let generation = proxy.snapshot.generation();
    let cluster = proxy.clusters.get("c").unwrap().current.load_full().unwrap();
    drop(session);
    let mut session = server.session().await;
    // The next stream says what is held; a server with the same content has nothing to send.
    let mut held = std::collections::BTreeSet::new();
    while held.len() < 4 {
        let request = session.request().await.unwrap();
        assert!(request.node.is_some() || !held.is_empty(), "the first request says who we are");
        let names = request.initial_resource_versions.into_keys();
        held.extend(names.map(|name| (name, request.type_url.clone())));
    }
    let expected =
        [("c", Kind::Cluster), ("c", Kind::Assignment), ("l", Kind::Listener), ("r", Kind::Routes)];
    assert_eq!(held, expected.map(|(name, kind)| (name.to_owned(), kind.type_url().to_owned())).into());
    assert_eq!(generation, proxy.snapshot.generation());
    assert!(Arc::ptr_eq(&cluster, &proxy.clusters.get("c").unwrap().current.load_full().unwrap()));
    assert_eq!(proxy.xds.progress(), Progress::Ready);
}

#[tokio::test]
async fn everything_sent_again_changes_nothing() {
    let (_server, mut session, proxy) = running().await;
    let generation = proxy.snapshot.generation();
    let cluster = proxy.clusters.get("c").unwrap().current.load_full().unwrap();
    let endpoints = cluster.endpoints.load_full();
    // Under other versions: equal content still changes nothing.
    for (kind, name, body) in [
        (Kind::Cluster, "c", eds_cluster("c", "")),
        (Kind::Assignment, "c", assignment("c", &[1])),
        (Kind::Listener, "l", http_listener("l", "127.0.0.1:80", "r")),
        (Kind::Routes, "r", routes("r", "c")),
    ] {
        let mut again = resource(name, &body);
        again.version = "another".into();
        let nonce = format!("again-{name}-{kind:?}");
        let response = DeltaDiscoveryResponse {
            type_url: kind.type_url().into(),
            nonce: nonce.clone(),
            resources: vec![again],
            ..Default::default()
        };
        session.send_raw(response).await;
        assert_eq!(session.verdict(kind, &nonce).await, None);
    }
    assert_eq!(generation, proxy.snapshot.generation());
    assert!(Arc::ptr_eq(&cluster, &proxy.clusters.get("c").unwrap().current.load_full().unwrap()));
    assert!(Arc::ptr_eq(&endpoints, &cluster.endpoints.load_full()));
}

#[tokio::test]
async fn removals_take_effect() {
    let (_server, mut session, proxy) = running().await;
    let nonce = session.send(Kind::Listener, &[], &["l"]).await;
    assert_eq!(session.verdict(Kind::Listener, &nonce).await, None);
    assert!(proxy.snapshot.load().listeners.is_empty());
    session.request_where(Kind::Routes, |r| r.resource_names_unsubscribe == ["r"]).await;
    let nonce = session.send(Kind::Cluster, &[], &["c"]).await;
    assert_eq!(session.verdict(Kind::Cluster, &nonce).await, None);
    session.request_where(Kind::Assignment, |r| r.resource_names_unsubscribe == ["c"]).await;
    assert!(proxy.clusters.get("c").is_none_or(|handle| handle.current.load().is_none()));
}

#[tokio::test]
async fn one_listener_can_take_the_address_of_another_in_one_response() {
    let (_server, mut session, proxy) = running().await;
    let resources = [("m", tcp_listener("m", "127.0.0.1:80", "c", ""))];
    let nonce = session.send(Kind::Listener, &resources, &["l"]).await;
    assert_eq!(session.verdict(Kind::Listener, &nonce).await, None);
    let names: Vec<_> = proxy.snapshot.load().listeners.keys().cloned().collect();
    assert_eq!(names, [Arc::from("m")]);
}

#[tokio::test(start_paused = true)]
async fn silence_at_start_ends_the_wait_but_not_the_proxy() {
    // A socket that accepts and says nothing.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let target = crate::bootstrap::XdsTarget::Tcp(address.ip().to_string(), address.port());
    let proxy = proxy(&target, Mode::All);
    tokio::time::timeout(Duration::from_secs(16), proxy.xds.ready()).await.expect("15 s at most");
}

#[tokio::test]
async fn a_unix_socket_serves_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("xds.sock");
    let target = crate::bootstrap::XdsTarget::Unix(path.clone());
    let proxy = proxy(&target, Mode::All);
    // Not there yet: it is tried again.
    eventually("an attempt", || (proxy.xds.stats().figures()[1].1 > 0).then_some(())).await;
    let unix = tokio::net::UnixListener::bind(&path).unwrap();
    let mut server = Server::start().await;
    let crate::bootstrap::XdsTarget::Tcp(host, port) = server.target.clone() else { panic!() };
    tokio::spawn(async move {
        let (mut near, _) = unix.accept().await.unwrap();
        let mut far = tokio::net::TcpStream::connect((host.as_str(), port)).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    });
    let mut session = server.session().await;
    session.send(Kind::Cluster, &[("c", cluster("c", 1))], &[]).await;
    eventually("c", || timeout_of(&proxy, "c")).await;
}

#[tokio::test]
async fn config_dump_shows_what_was_accepted() {
    let (_server, mut session, proxy) = running().await;
    session.send(Kind::Cluster, &[("warm", eds_cluster("warm", "")), ("bad", cluster("bad", 0))], &[]).await;
    eventually("the refusal", || {
        proxy.xds.stats().figures().contains(&("cluster_manager.cds.update_rejected", 1)).then_some(())
    })
    .await;
    let dump = async |query: &str| proxy.xds.config_dump(DumpQuery::parse(query)).await;
    let all = dump("").await.unwrap();
    let kinds: Vec<_> =
        all["configs"].as_array().unwrap().iter().map(|c| c["@type"].as_str().unwrap()).collect();
    let admin = |name: &str| format!("type.googleapis.com/envoy.admin.v3.{name}ConfigDump");
    assert_eq!(kinds, ["Bootstrap", "Clusters", "Listeners", "Routes"].map(admin));
    let clusters = &all["configs"][1];
    assert_eq!(clusters["dynamic_active_clusters"][0]["cluster"]["name"], "c");
    assert_eq!(clusters["dynamic_active_clusters"][0]["client_status"], "ACKED");
    assert!(clusters["dynamic_active_clusters"][0]["last_updated"].as_str().unwrap().ends_with('Z'));
    let warming = &clusters["dynamic_warming_clusters"];
    assert_eq!(warming[0]["error_state"]["failed_configuration"]["name"], "bad");
    assert_eq!(warming[0]["error_state"]["details"], "bad: connect_timeout: must be at least 1ms");
    assert_eq!(warming[1]["cluster"]["name"], "warm");
    let listener = &all["configs"][2]["dynamic_listeners"][0];
    assert_eq!(
        (&listener["name"], &listener["active_state"]["listener"]["name"]),
        (&"l".into(), &"l".into())
    );
    assert_eq!(all["configs"][3]["dynamic_route_configs"][0]["route_config"]["name"], "r");

    let eds = dump("include_eds").await.unwrap();
    assert_eq!(eds["configs"][2]["dynamic_endpoint_configs"][0]["endpoint_config"]["cluster_name"], "c");
    let named = dump("name_regex=^warm$").await.unwrap();
    assert!(named["configs"][1].get("dynamic_active_clusters").is_none());
    let one = dump("resource=dynamic_active_clusters&mask=cluster.name").await.unwrap();
    assert_eq!(
        one,
        serde_json::json!({"configs": [{
            "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.DynamicCluster", "cluster": {"@type": types::CLUSTER, "name": "c"}
        }]})
    );
    let masked = dump("mask=dynamic_listeners.name").await.unwrap();
    assert_eq!(masked["configs"][2]["dynamic_listeners"][0], serde_json::json!({"name": "l"}));
    assert!(matches!(dump("resource=nothing").await, Err(DumpError::NoSuchResource(_))));
    assert!(matches!(dump("name_regex=(").await, Err(DumpError::Regex(_))));
}

#[tokio::test]
async fn what_has_a_time_to_live_goes_when_it_runs_out() {
    let (_server, mut session, proxy) = running().await;
    let mut brief = resource("brief", &cluster("brief", 1));
    brief.ttl = Some(prost_types::Duration { seconds: 0, nanos: 300_000_000 });
    let response = DeltaDiscoveryResponse {
        type_url: types::CLUSTER.into(),
        nonce: "ttl".into(),
        resources: vec![brief],
        ..Default::default()
    };
    session.send_raw(response).await;
    assert_eq!(session.verdict(Kind::Cluster, "ttl").await, None);
    let handle = proxy.clusters.get("brief").expect("in force");
    eventually("its end", || handle.current.load().is_none().then_some(())).await;
    assert_eq!(timeout_of(&proxy, "c"), Some(5), "others stay");
}

#[tokio::test]
async fn a_cluster_waits_for_its_certificates_and_is_in_force_where_there_are_none() {
    let (_server, mut session, proxy) = running().await;
    let tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    let ads = "{ads: {}, resource_api_version: V3, initial_fetch_timeout: 5s}";
    let named = |name: &str| {
        pack::<osier_proto::types::cluster::Cluster>(&format!(
            "{{name: {name}, connect_timeout: 1s, transport_socket: {{name: tls, typed_config: {{\"@type\": {tls}, common_tls_context: \
             {{combined_validation_context: {{default_validation_context: {{}}, validation_context_sds_secret_config: \
             {{name: '{name}-cacert', sds_config: {ads}}}}}}}}}}}}}"
        ))
    };
    session.send(Kind::Cluster, &[("there", named("there")), ("missing", named("missing"))], &[]).await;
    let asked = |r: &osier_proto::types::discovery::DeltaDiscoveryRequest| {
        let mut names = r.resource_names_subscribe.clone();
        names.sort();
        names == ["missing-cacert", "there-cacert"]
    };
    session.request_where(Kind::Secret, asked).await;
    assert_eq!((timeout_of(&proxy, "there"), timeout_of(&proxy, "missing")), (None, None));
    let key = rcgen::KeyPair::generate().unwrap();
    let roots = rcgen::CertificateParams::new(vec!["a".into()]).unwrap().self_signed(&key).unwrap().pem();
    let roots = pack::<osier_proto::types::tls::Secret>(&format!(
        "{{name: there-cacert, validation_context: {{trusted_ca: {{inline_string: {}}}}}}}",
        serde_json::json!(roots)
    ));
    let nonce = session.send(Kind::Secret, &[("there-cacert", roots)], &["missing-cacert"]).await;
    assert_eq!(session.verdict(Kind::Secret, &nonce).await, None);
    eventually("one with roots", || timeout_of(&proxy, "there")).await;
    // Its handshakes fail: nobody vouches for the server.
    eventually("one without", || timeout_of(&proxy, "missing")).await;
    session.send(Kind::Cluster, &[], &["there"]).await;
    session.request_where(Kind::Secret, |r| r.resource_names_unsubscribe == ["there-cacert"]).await;
}

#[tokio::test]
async fn a_listener_waits_for_its_certificate_and_a_broken_one_changes_nothing() {
    let (_server, mut session, proxy) = running().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let chain = rcgen::CertificateParams::new(vec!["a".into()]).unwrap().self_signed(&key).unwrap().pem();
    let (chain, key) = (serde_json::json!(chain), serde_json::json!(key.serialize_pem()));
    let secret = |chain: &serde_json::Value| {
        pack::<osier_proto::types::tls::Secret>(&format!(
            "{{name: k, tls_certificate: {{certificate_chain: {{inline_string: {chain}}}, private_key: {{inline_string: {key}}}}}}}"
        ))
    };
    let tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    let tcp = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    let listener = pack::<osier_proto::types::listener::Listener>(&format!(
        "{{name: t, address: {{socket_address: {{address: 127.0.0.1, port_value: 443}}}}, filter_chains: [{{transport_socket: {{name: \
         tls, typed_config: {{\"@type\": {tls}, common_tls_context: {{tls_certificate_sds_secret_configs: [{{name: k, sds_config: {{ads: {{}}, \
         resource_api_version: V3, initial_fetch_timeout: 0s}}}}]}}}}}}, filters: [{{name: tcp, typed_config: {{\"@type\": {tcp}, stat_prefix: x, \
         cluster: c}}}}]}}]}}"
    ));
    session.send(Kind::Listener, &[("t", listener)], &[]).await;
    session.request_where(Kind::Secret, |r| r.resource_names_subscribe == ["k"]).await;
    assert!(!proxy.snapshot.load().listeners.contains_key("t"), "not before its certificate");
    let nonce = session.send(Kind::Secret, &[("k", secret(&chain))], &[]).await;
    assert_eq!(session.verdict(Kind::Secret, &nonce).await, None);
    eventually("t", || proxy.snapshot.load().listeners.get("t").cloned()).await;
    let nonce = session.send(Kind::Secret, &[("k", secret(&"broken".into()))], &[]).await;
    let text = session.verdict(Kind::Secret, &nonce).await.expect("a NACK");
    assert_eq!(text, "k: tls_certificate.certificate_chain: has no certificate");
    session.send(Kind::Secret, &[], &["k"]).await;
    session.send(Kind::Cluster, &[("later", cluster("later", 1))], &[]).await;
    eventually("later", || timeout_of(&proxy, "later")).await;
    assert!(proxy.snapshot.load().listeners.contains_key("t"));
    let dump = proxy.xds.config_dump(DumpQuery::default()).await.unwrap().to_string();
    assert!(!dump.contains("PRIVATE") && dump.contains("tls_certificate_sds_secret_configs"), "{dump}");
}
