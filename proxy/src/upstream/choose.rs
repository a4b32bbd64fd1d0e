//! From a cluster to an endpoint: waits for the first endpoints, balances, or takes the original destination.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::balance::{Tried, pick};
use super::pool::Pool;
use crate::config::cluster::{Cluster, Discovery, OriginalDst};
use crate::config::endpoint::Endpoint;
use crate::error::{Kind, Progress, ProxyError, Side};
use crate::http::head::RequestHead;

/// How long a request waits for the first endpoints of a cluster.
const KNOWN_WAIT: Duration = Duration::from_secs(5);

/// What an endpoint may be chosen by, beside the cluster's policy.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChooseBy<'a> {
    /// Where the downstream connection was going.
    pub original_destination: Option<SocketAddr>,
    /// An endpoint that is this proxy itself, so that nobody is sent there.
    pub own_end: Option<SocketAddr>,
    /// The request, whose header may say where it goes.
    pub head: Option<&'a RequestHead>,
}

impl Pool {
    /// An endpoint of `cluster` for one attempt, which is remembered in `tried`. `random` gives uniformly distributed numbers.
    ///
    /// Fails with [`Kind::NoHealthyUpstream`] where nobody is eligible, and with [`Kind::NoConfiguration`] where the control
    /// plane has not said in time who is in the cluster.
    pub async fn choose(
        &self,
        cluster: &Arc<Cluster>,
        by: ChooseBy<'_>,
        tried: &mut Tried,
        random: impl FnMut() -> u64,
    ) -> Result<Arc<Endpoint>, ProxyError> {
        if let Discovery::OriginalDst(settings) = &cluster.spec.discovery {
            let address = original_destination(cluster, settings, by)?;
            let endpoint = self.original_host(&cluster.live, address);
            tried.record(&endpoint, 0);
            return Ok(endpoint);
        }
        if !cluster.endpoints.load().known {
            wait_until_known(cluster).await?;
        }
        balance(cluster, by.own_end, tried, random)
    }
}

fn balance(
    cluster: &Cluster,
    own_end: Option<SocketAddr>,
    tried: &mut Tried,
    mut random: impl FnMut() -> u64,
) -> Result<Arc<Endpoint>, ProxyError> {
    loop {
        let set = cluster.endpoints.load();
        if let Some(picked) = pick(&set, cluster.spec.balance, tried, &mut random) {
            tried.record(picked.endpoint, picked.priority);
            if own_end == Some(picked.endpoint.address) {
                let detail = format!("cluster {} leads back to this proxy", cluster.spec.name);
                return Err(failure(Kind::NoHealthyUpstream, detail));
            }
            return Ok(picked.endpoint.clone());
        }
        // The set may have been replaced, and its endpoints removed, since it was loaded.
        if Arc::ptr_eq(&set, &cluster.endpoints.load()) {
            let endpoints = set.iter().count();
            let detail = format!("cluster {} has no eligible endpoint among {endpoints}", cluster.spec.name);
            return Err(failure(Kind::NoHealthyUpstream, detail));
        }
    }
}

async fn wait_until_known(cluster: &Cluster) -> Result<(), ProxyError> {
    let known = async {
        loop {
            let notified = cluster.live.known.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if cluster.endpoints.load().known {
                return;
            }
            notified.await;
        }
    };
    timeout(KNOWN_WAIT, known).await.map_err(|_| {
        let detail = format!("endpoints of cluster {} not received", cluster.spec.name);
        failure(Kind::NoConfiguration, detail)
    })
}

/// Where the request goes: what its header says, else where its connection was going.
fn original_destination(
    cluster: &Cluster,
    settings: &OriginalDst,
    by: ChooseBy<'_>,
) -> Result<SocketAddr, ProxyError> {
    let name = &cluster.spec.name;
    let said = settings.header.as_deref().zip(by.head).and_then(|(header, head)| head.fields.get(header));
    let address = match said {
        Some(value) => std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok()),
        None => by.original_destination,
    };
    let mut address: SocketAddr = address.ok_or_else(|| {
        let what = if said.is_some() { "the header is not ip:port" } else { "there is none" };
        failure(Kind::NoHealthyUpstream, format!("cluster {name} needs an original destination: {what}"))
    })?;
    if let Some(port) = settings.port_override {
        address.set_port(port);
    }
    Ok(address)
}

fn failure(kind: Kind, detail: String) -> ProxyError {
    ProxyError::new(kind, Side::Internal, Progress::NothingSent, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::cluster::{ClusterHandle, ClusterSpec};
    use crate::config::endpoint::{EndpointSet, EndpointSpec};

    fn original(settings: OriginalDst) -> Arc<Cluster> {
        Cluster::new(ClusterSpec::plain("c", Discovery::OriginalDst(settings)), None)
    }

    async fn chosen(cluster: &Arc<Cluster>, by: ChooseBy<'_>) -> Result<Arc<Endpoint>, ProxyError> {
        Pool::new().choose(cluster, by, &mut Tried::default(), || 7).await
    }

    #[tokio::test]
    async fn original_destinations_come_from_header_connection_and_override() {
        let plain = OriginalDst::default();
        let by_header = OriginalDst { header: Some("x-dst".into()), ..plain.clone() };
        let by_port = OriginalDst { port_override: Some(15001), ..plain.clone() };
        let cases = [
            (&plain, Some("10.0.0.1:80"), None, Ok("10.0.0.1:80")),
            (&plain, Some("10.0.0.1:80"), Some("10.0.0.2:81"), Ok("10.0.0.1:80")),
            (&plain, None, None, Err("there is none")),
            (&by_header, Some("10.0.0.1:80"), Some("10.0.0.2:81"), Ok("10.0.0.2:81")),
            (&by_header, Some("10.0.0.1:80"), None, Ok("10.0.0.1:80")),
            (&by_header, Some("10.0.0.1:80"), Some("a.example:80"), Err("not ip:port")),
            (&by_port, Some("[fd00::1]:80"), None, Ok("[fd00::1]:15001")),
        ];
        for (settings, destination, header, wanted) in cases {
            let mut head = RequestHead::new();
            if let Some(value) = header {
                head.fields.append("x-dst", value.as_bytes());
            }
            let destination = destination.map(|text| text.parse().unwrap());
            let by = ChooseBy { original_destination: destination, head: Some(&head), ..ChooseBy::default() };
            match (chosen(&original(settings.clone()), by).await, wanted) {
                (Ok(endpoint), Ok(wanted)) => assert_eq!(endpoint.address.to_string(), wanted),
                (Err(error), Err(text)) => {
                    assert_eq!(error.kind, Kind::NoHealthyUpstream);
                    assert!(error.detail.contains(text), "{}", error.detail);
                }
                (got, wanted) => panic!("{got:?}, wanted {wanted:?}"),
            }
        }
    }

    #[tokio::test]
    async fn nobody_is_sent_back_to_this_proxy() {
        let cluster = Cluster::new(ClusterSpec::plain("c", Discovery::Static), None);
        let endpoints = [("10.0.0.1:80".parse().unwrap(), EndpointSpec::default())];
        let set = EndpointSet::build(endpoints, &cluster.live, cluster.spec.set_settings(0));
        cluster.set_endpoints(Arc::new(set));
        let by = |own_end: &str| ChooseBy { own_end: own_end.parse().ok(), ..ChooseBy::default() };
        assert!(chosen(&cluster, by("10.0.0.1:81")).await.is_ok());
        let error = chosen(&cluster, by("10.0.0.1:80")).await.expect_err("a loop");
        assert_eq!(error.kind, Kind::NoHealthyUpstream);
        assert_eq!(error.detail, "cluster c leads back to this proxy");
    }

    #[tokio::test]
    async fn workers_share_the_state_of_an_original_destination() {
        let cluster = original(OriginalDst::default());
        let by =
            ChooseBy { original_destination: Some("10.0.0.1:80".parse().unwrap()), ..ChooseBy::default() };
        let (one, two) = (chosen(&cluster, by).await.unwrap(), chosen(&cluster, by).await.unwrap());
        assert_eq!(one.state.id, two.state.id);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_wait_for_the_first_endpoints_but_not_for_ever() {
        let handle = ClusterHandle::empty("c");
        let cluster = Cluster::new(ClusterSpec::plain("c", Discovery::Eds("c".into())), None);
        handle.publish(cluster.clone());
        let error = chosen(&cluster, ChooseBy::default()).await.expect_err("silence");
        assert_eq!(error.kind, Kind::NoConfiguration);
        assert_eq!(error.detail, "endpoints of cluster c not received");

        let waiting = tokio::spawn({
            let cluster = cluster.clone();
            async move { chosen(&cluster, ChooseBy::default()).await }
        });
        tokio::task::yield_now().await;
        let endpoints = [("10.0.0.1:80".parse().unwrap(), EndpointSpec::default())];
        let set = EndpointSet::build(endpoints, &cluster.live, cluster.spec.set_settings(0));
        cluster.set_endpoints(Arc::new(set));
        assert_eq!(waiting.await.unwrap().unwrap().address.to_string(), "10.0.0.1:80");

        cluster.set_endpoints(Arc::new(EndpointSet::build([], &cluster.live, cluster.spec.set_settings(1))));
        let error = chosen(&cluster, ChooseBy::default()).await.expect_err("nobody is there");
        assert_eq!(error.kind, Kind::NoHealthyUpstream);
    }
}
