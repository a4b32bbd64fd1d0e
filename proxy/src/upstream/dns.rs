//! STRICT_DNS clusters: all addresses behind their names, looked up again and again on the housekeeping runtime.
//!
//! Rules: a look-up that fails keeps the addresses of the one before; a name that has none (NXDOMAIN, no records) has none.
//! The next look-up is never sooner than [`FLOOR`], whatever a TTL says, and comes a little later than asked, by chance, so that
//! a thousand proxies don't ask at once. `/etc/hosts` counts before the name servers; IP literals are not looked up.
//! An answer with the same addresses changes nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hickory_resolver::config::{ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{IntoName, RecordType};
use hickory_resolver::{Hosts, TokioResolver};
use tokio::task::AbortHandle;

use crate::config::cluster::{Cluster, Discovery, DnsFamily, DnsName, DnsSettings};
use crate::config::endpoint::{EndpointSet, EndpointSpec};

/// Shortest time between two look-ups of a name.
pub const FLOOR: Duration = Duration::from_secs(1);
/// Longest, where TTLs decide: a wrong record is gone within this time.
const CEILING: Duration = Duration::from_secs(3600);
/// First pause after a failed look-up; it doubles up to the cluster's refresh time.
const FIRST_RETRY: Duration = FLOOR;

/// Looks names up, with the system's configuration.
#[derive(Debug)]
pub struct DnsResolver {
    resolver: TokioResolver,
    hosts: Hosts,
}

/// Why a name could not be looked up.
#[derive(Debug, thiserror::Error)]
pub enum DnsFailure {
    /// The system's configuration cannot be used.
    #[error("resolver configuration: {0}")]
    Configuration(#[source] NetError),
    /// The look-up failed.
    #[error("look-up of {0}: {1}")]
    Lookup(Arc<str>, #[source] NetError),
}

/// The addresses of a name and how long they hold.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    addresses: Vec<IpAddr>,
    ttl: Duration,
}

/// The look-ups of one cluster; they end when this is dropped.
#[derive(Debug)]
pub struct DnsTask(AbortHandle);

impl Drop for DnsTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl DnsResolver {
    /// With `/etc/resolv.conf` and `/etc/hosts`.
    pub fn system() -> Result<Self, DnsFailure> {
        let builder = TokioResolver::builder_tokio().map_err(DnsFailure::Configuration)?;
        Self::build(builder, Hosts::from_system().unwrap_or_default())
    }

    /// With other name servers and hosts.
    pub fn new(config: ResolverConfig, hosts: Hosts) -> Result<Self, DnsFailure> {
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        Self::build(builder, hosts)
    }

    fn build(
        mut builder: hickory_resolver::ResolverBuilder<TokioRuntimeProvider>,
        hosts: Hosts,
    ) -> Result<Self, DnsFailure> {
        let options = builder.options_mut();
        // We keep answers ourselves, for as long as they hold.
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        let resolver = builder.build().map_err(DnsFailure::Configuration)?;
        Ok(Self { resolver, hosts })
    }

    /// The addresses of `host` in the families asked for. None is an answer too.
    async fn addresses(&self, host: &Arc<str>, family: DnsFamily) -> Result<Answer, DnsFailure> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(Answer { addresses: vec![address], ttl: CEILING });
        }
        if let Some(addresses) = self.in_hosts(host) {
            return Ok(Answer { addresses: select(addresses, family), ttl: CEILING });
        }
        let lookup = async |record: RecordType| {
            self.lookup(host, record).await.map_err(|error| DnsFailure::Lookup(host.clone(), error))
        };
        let (first, second) = match family {
            DnsFamily::V4Only => return lookup(RecordType::A).await,
            DnsFamily::V6Only => return lookup(RecordType::AAAA).await,
            DnsFamily::All => {
                let (v4, v6) = tokio::join!(lookup(RecordType::A), lookup(RecordType::AAAA));
                return both(v4, v6);
            }
            DnsFamily::Auto => (RecordType::AAAA, RecordType::A),
            DnsFamily::V4Preferred => (RecordType::A, RecordType::AAAA),
        };
        match lookup(first).await {
            Ok(answer) if !answer.addresses.is_empty() => Ok(answer),
            _ => lookup(second).await,
        }
    }

    /// `/etc/hosts`, and the loopback addresses of `localhost`.
    fn in_hosts(&self, host: &str) -> Option<Vec<IpAddr>> {
        let name = host.into_name().ok()?;
        let records = [RecordType::A, RecordType::AAAA].into_iter();
        let found: Vec<IpAddr> = records
            .filter_map(|record| self.hosts.lookup_static_host(&Query::query(name.clone(), record)))
            .flat_map(|lookup| {
                lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect::<Vec<_>>()
            })
            .collect();
        let local = host.trim_end_matches('.').eq_ignore_ascii_case("localhost");
        match found.is_empty() {
            false => Some(found),
            true if local => Some(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]),
            true => None,
        }
    }

    async fn lookup(&self, host: &str, record: RecordType) -> Result<Answer, NetError> {
        match self.resolver.lookup(host, record).await {
            Ok(lookup) => Ok(Answer {
                addresses: lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect(),
                ttl: lookup.valid_until().saturating_duration_since(Instant::now()),
            }),
            Err(NetError::Dns(DnsError::NoRecordsFound(none)))
                if matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError) =>
            {
                let ttl = Duration::from_secs(none.negative_ttl.unwrap_or(0).into());
                Ok(Answer { addresses: Vec::new(), ttl })
            }
            Err(error) => Err(error),
        }
    }
}

/// What `family` wants of the addresses in the hosts file.
fn select(addresses: Vec<IpAddr>, family: DnsFamily) -> Vec<IpAddr> {
    let (v4, v6): (Vec<_>, Vec<_>) = addresses.into_iter().partition(IpAddr::is_ipv4);
    match family {
        DnsFamily::V4Only => v4,
        DnsFamily::V6Only => v6,
        DnsFamily::All => v4.into_iter().chain(v6).collect(),
        DnsFamily::Auto if v6.is_empty() => v4,
        DnsFamily::Auto => v6,
        DnsFamily::V4Preferred if v4.is_empty() => v6,
        DnsFamily::V4Preferred => v4,
    }
}

/// Both families; one that fails while the other has addresses is left out.
fn both(v4: Result<Answer, DnsFailure>, v6: Result<Answer, DnsFailure>) -> Result<Answer, DnsFailure> {
    match (v4, v6) {
        (Ok(mut v4), Ok(v6)) => {
            v4.addresses.extend(v6.addresses);
            Ok(Answer { addresses: v4.addresses, ttl: v4.ttl.min(v6.ttl) })
        }
        (Ok(answer), Err(failure)) | (Err(failure), Ok(answer)) => {
            if answer.addresses.is_empty() {
                Err(failure)
            } else {
                Ok(answer)
            }
        }
        (Err(failure), Err(_)) => Err(failure),
    }
}

/// Starts the look-ups of a STRICT_DNS cluster on the current runtime; `None` for other clusters. Keep the task as long as
/// this version of the cluster is wanted.
pub fn discover(cluster: &Arc<Cluster>, resolver: &Arc<DnsResolver>) -> Option<DnsTask> {
    let Discovery::StrictDns(settings) = &cluster.spec.discovery else { return None };
    let task = tokio::spawn(Names::new(settings, cluster).run(Arc::downgrade(cluster), resolver.clone()));
    Some(DnsTask(task.abort_handle()))
}

/// The names of a cluster with the addresses last seen.
#[derive(Debug)]
struct Names {
    settings: DnsSettings,
    names: Vec<(DnsName, Vec<IpAddr>)>,
    /// Rounds with a failure since the last without.
    failures: u32,
}

impl Names {
    /// With what an earlier version of the cluster knew, so that a failing first look-up loses nothing.
    fn new(settings: &DnsSettings, cluster: &Cluster) -> Self {
        let current = cluster.endpoints.load();
        let known = |name: &DnsName| {
            let spec = endpoint(name);
            let of_name =
                current.iter().filter(|known| known.address.port() == name.port && known.spec == spec);
            of_name.map(|known| known.address.ip()).collect()
        };
        let names = settings.names.iter().map(|name| (name.clone(), known(name))).collect();
        Self { settings: settings.clone(), names, failures: 0 }
    }

    async fn run(mut self, cluster: Weak<Cluster>, resolver: Arc<DnsResolver>) {
        loop {
            let ttl = self.look_up(&resolver).await;
            match cluster.upgrade() {
                Some(cluster) => self.publish(&cluster),
                None => return,
            }
            tokio::time::sleep(jittered(self.pause(ttl), rand::random())).await;
        }
    }

    /// Looks all names up; the shortest TTL.
    async fn look_up(&mut self, resolver: &DnsResolver) -> Duration {
        let family = self.settings.family;
        let lookups = self.names.iter().map(|(name, _)| resolver.addresses(&name.host, family));
        let answers = join_all(lookups).await;
        let mut ttl = CEILING;
        let mut failed = false;
        for ((name, known), answer) in self.names.iter_mut().zip(answers) {
            match answer {
                Ok(answer) => {
                    ttl = ttl.min(answer.ttl);
                    *known = answer.addresses;
                }
                Err(failure) => {
                    failed = true;
                    tracing::warn!(%failure, kept = known.len(), host = %name.host, "DNS look-up failed");
                }
            }
        }
        self.failures = if failed { self.failures.saturating_add(1) } else { 0 };
        ttl
    }

    fn publish(&self, cluster: &Cluster) {
        let endpoints = || {
            self.names.iter().flat_map(|(name, addresses)| {
                addresses.iter().map(move |&address| (SocketAddr::new(address, name.port), endpoint(name)))
            })
        };
        let current = cluster.endpoints.load();
        let unchanged = {
            let mut now: Vec<SocketAddr> = current.iter().map(|endpoint| endpoint.address).collect();
            let mut new: Vec<SocketAddr> = endpoints().map(|(address, _)| address).collect();
            now.sort_unstable();
            new.sort_unstable();
            new.dedup();
            current.known && now == new
        };
        if !unchanged {
            let settings = cluster.spec.set_settings(cluster.spec.hash);
            cluster.set_endpoints(Arc::new(EndpointSet::build(endpoints(), &cluster.live, settings)));
        }
    }

    /// How long to wait for the next round.
    fn pause(&self, ttl: Duration) -> Duration {
        let wanted = match self.failures {
            0 if self.settings.respect_ttl && !ttl.is_zero() => ttl,
            0 => self.settings.refresh,
            failures => {
                FIRST_RETRY.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.settings.refresh)
            }
        };
        wanted.clamp(FLOOR, CEILING)
    }
}

fn endpoint(name: &DnsName) -> EndpointSpec {
    let hostname = name.template.hostname.clone().unwrap_or_else(|| name.host.clone());
    EndpointSpec { hostname: Some(hostname), ..name.template.clone() }
}

/// Up to a tenth later.
fn jittered(pause: Duration, random: u32) -> Duration {
    pause + pause.mul_f64(f64::from(random) / f64::from(u32::MAX) / 10.0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ProtocolConfig};
    use hickory_resolver::proto::op::{Message, MessageType};
    use hickory_resolver::proto::rr::rdata::{A, AAAA};
    use hickory_resolver::proto::rr::{RData, Record};
    use parking_lot::Mutex;
    use tokio::net::UdpSocket;

    use super::*;
    use crate::config::cluster::ClusterSpec;

    /// What the scripted name server says.
    #[derive(Debug, Clone)]
    enum Say {
        Addresses(u32, Vec<IpAddr>),
        Code(ResponseCode),
    }

    type Script = Arc<Mutex<HashMap<(String, RecordType), Say>>>;

    /// A name server on loopback; names that aren't in the script don't exist.
    async fn name_server() -> (Script, Arc<DnsResolver>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let script = Script::default();
        let answers = script.clone();
        tokio::spawn(async move {
            let mut buf = [0; 1500];
            while let Ok((length, peer)) = socket.recv_from(&mut buf).await {
                let query = Message::from_vec(&buf[..length]).unwrap();
                let reply = reply(&query, &answers).to_vec().unwrap();
                socket.send_to(&reply, peer).await.unwrap();
            }
        });
        let mut udp = ConnectionConfig::new(ProtocolConfig::Udp);
        udp.port = address.port();
        let server = NameServerConfig::new(address.ip(), true, vec![udp]);
        let config = ResolverConfig::from_parts(None, vec![], vec![server]);
        let mut hosts = Hosts::default();
        hosts.read_hosts_conf("10.1.1.1 in-hosts\nfd00::1 in-hosts\n".as_bytes()).unwrap();
        (script, Arc::new(DnsResolver::new(config, hosts).unwrap()))
    }

    fn reply(query: &Message, script: &Script) -> Message {
        let asked = query.queries[0].clone();
        let key = (asked.name().to_string().trim_end_matches('.').to_lowercase(), asked.query_type());
        let mut reply = Message::response(query.id, query.op_code);
        reply.metadata.message_type = MessageType::Response;
        reply.metadata.recursion_available = true;
        reply.add_query(asked.clone());
        match script.lock().get(&key).cloned() {
            None => reply.metadata.response_code = ResponseCode::NXDomain,
            Some(Say::Code(code)) => reply.metadata.response_code = code,
            Some(Say::Addresses(ttl, addresses)) => {
                for address in addresses {
                    let data = match address {
                        IpAddr::V4(address) => RData::A(A(address)),
                        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
                    };
                    reply.add_answer(Record::from_rdata(asked.name().clone(), ttl, data));
                }
            }
        }
        reply
    }

    fn say(script: &Script, record: RecordType, say: Say) {
        script.lock().insert(("svc.test".into(), record), say);
    }

    fn ips(addresses: &[&str]) -> Vec<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    fn settings(host: &str, respect_ttl: bool) -> DnsSettings {
        DnsSettings {
            names: vec![DnsName { host: host.into(), port: 80, template: EndpointSpec::default() }],
            refresh: Duration::from_secs(60),
            respect_ttl,
            family: DnsFamily::V4Only,
        }
    }

    fn cluster(settings: DnsSettings) -> Arc<Cluster> {
        Cluster::new(ClusterSpec::plain("c", Discovery::StrictDns(settings)), None)
    }

    fn names(cluster: &Cluster) -> Names {
        let Discovery::StrictDns(settings) = &cluster.spec.discovery else { unreachable!() };
        Names::new(settings, cluster)
    }

    fn addresses(cluster: &Cluster) -> Vec<String> {
        cluster.endpoints.load().iter().map(|endpoint| endpoint.address.to_string()).collect()
    }

    #[tokio::test]
    async fn families_are_chosen_as_envoy_does() {
        let (script, resolver) = name_server().await;
        let host: Arc<str> = "svc.test".into();
        say(&script, RecordType::A, Say::Addresses(30, ips(&["10.0.0.1", "10.0.0.2"])));
        say(&script, RecordType::AAAA, Say::Addresses(20, ips(&["fd00::2"])));
        let cases: &[(DnsFamily, &[&str])] = &[
            (DnsFamily::V4Only, &["10.0.0.1", "10.0.0.2"]),
            (DnsFamily::V6Only, &["fd00::2"]),
            (DnsFamily::Auto, &["fd00::2"]),
            (DnsFamily::V4Preferred, &["10.0.0.1", "10.0.0.2"]),
            (DnsFamily::All, &["10.0.0.1", "10.0.0.2", "fd00::2"]),
        ];
        for (family, wanted) in cases {
            let answer = resolver.addresses(&host, *family).await.unwrap();
            assert_eq!(answer.addresses, ips(wanted), "{family:?}");
            assert!(answer.ttl > Duration::from_secs(15) && answer.ttl <= Duration::from_secs(30));
        }
        script.lock().remove(&("svc.test".into(), RecordType::AAAA));
        let auto = resolver.addresses(&host, DnsFamily::Auto).await.unwrap();
        assert_eq!(auto.addresses, ips(&["10.0.0.1", "10.0.0.2"]), "no IPv6: IPv4");
    }

    #[tokio::test]
    async fn literals_hosts_file_and_localhost_need_no_server() {
        let (_, resolver) = name_server().await;
        let cases = [
            ("192.0.2.7", DnsFamily::V6Only, ips(&["192.0.2.7"])),
            ("fd00::7", DnsFamily::V4Only, ips(&["fd00::7"])),
            ("in-hosts", DnsFamily::V4Only, ips(&["10.1.1.1"])),
            ("in-hosts", DnsFamily::Auto, ips(&["fd00::1"])),
            ("localhost", DnsFamily::V4Preferred, ips(&["127.0.0.1"])),
            ("localhost", DnsFamily::Auto, ips(&["::1"])),
        ];
        for (host, family, wanted) in cases {
            let answer = resolver.addresses(&host.into(), family).await.unwrap();
            assert_eq!(answer.addresses, wanted, "{host} {family:?}");
        }
        let system = DnsResolver::system().unwrap();
        let answer = system.addresses(&"localhost".into(), DnsFamily::V4Preferred).await.unwrap();
        assert!(answer.addresses.iter().all(|address| address.is_loopback()) && !answer.addresses.is_empty());
    }

    #[tokio::test]
    async fn failures_keep_addresses_and_no_records_clear_them() {
        let (script, resolver) = name_server().await;
        let cluster = cluster(settings("svc.test", true));
        let mut names = names(&cluster);
        let mut round = async |wanted: &[&str]| {
            let ttl = names.look_up(&resolver).await;
            names.publish(&cluster);
            assert_eq!(addresses(&cluster), wanted);
            assert!(cluster.endpoints.load().known);
            names.pause(ttl)
        };
        say(&script, RecordType::A, Say::Addresses(30, ips(&["10.0.0.1", "10.0.0.1", "10.0.0.2"])));
        let pause = round(&["10.0.0.1:80", "10.0.0.2:80"]).await;
        assert!(pause > Duration::from_secs(20) && pause <= Duration::from_secs(30), "{pause:?}");
        let set = cluster.endpoints.load_full();
        assert_eq!(set.iter().next().unwrap().spec.hostname.as_deref(), Some("svc.test"));
        say(&script, RecordType::A, Say::Addresses(30, ips(&["10.0.0.2", "10.0.0.1"])));
        round(&["10.0.0.1:80", "10.0.0.2:80"]).await;
        assert!(Arc::ptr_eq(&set, &cluster.endpoints.load_full()), "another order changes nothing");

        for (failures, seconds) in [(1, 1), (2, 2), (3, 4)] {
            say(&script, RecordType::A, Say::Code(ResponseCode::ServFail));
            let pause = round(&["10.0.0.1:80", "10.0.0.2:80"]).await;
            assert_eq!(pause, Duration::from_secs(seconds), "after {failures} failures");
        }
        // An answer without records, then a name that doesn't exist: nobody is there, and nothing spins.
        say(&script, RecordType::A, Say::Addresses(0, vec![]));
        assert_eq!(round(&[]).await, Duration::from_secs(60));
        say(&script, RecordType::A, Say::Addresses(0, ips(&["10.0.0.3"])));
        assert_eq!(round(&["10.0.0.3:80"]).await, Duration::from_secs(60), "a TTL of zero is no interval");
        say(&script, RecordType::A, Say::Code(ResponseCode::NXDomain));
        assert_eq!(round(&[]).await, Duration::from_secs(60));
    }

    #[tokio::test]
    async fn a_new_version_starts_with_what_the_old_one_knew() {
        let (script, resolver) = name_server().await;
        let old = cluster(settings("svc.test", false));
        say(&script, RecordType::A, Say::Addresses(30, ips(&["10.0.0.1"])));
        let _task = discover(&old, &resolver).expect("a DNS cluster");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !old.endpoints.load().known {
            assert!(Instant::now() < deadline, "the task never answered");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        say(&script, RecordType::A, Say::Code(ResponseCode::ServFail));
        let new = Cluster::new(ClusterSpec { panic_threshold: 0, ..old.spec.clone() }, Some(&old));
        let mut names = names(&new);
        names.look_up(&resolver).await;
        names.publish(&new);
        assert_eq!(addresses(&new), ["10.0.0.1:80"]);
        assert!(
            discover(&Cluster::new(ClusterSpec::plain("s", Discovery::Static), None), &resolver).is_none()
        );
    }

    #[test]
    fn pauses_have_a_floor_and_a_ceiling() {
        let pause = |settings: DnsSettings, failures, ttl| {
            let mut names = names(&cluster(settings));
            names.failures = failures;
            names.pause(ttl)
        };
        let seconds = Duration::from_secs;
        let with_refresh = |refresh| DnsSettings { refresh, ..settings("svc.test", true) };
        assert_eq!(pause(settings("svc.test", true), 0, Duration::from_nanos(1)), FLOOR);
        assert_eq!(pause(settings("svc.test", true), 0, Duration::MAX), CEILING);
        assert_eq!(pause(settings("svc.test", false), 0, seconds(5)), seconds(60));
        assert_eq!(pause(with_refresh(Duration::ZERO), 0, Duration::ZERO), FLOOR);
        assert_eq!(pause(with_refresh(Duration::ZERO), 7, Duration::ZERO), FLOOR);
        assert_eq!(pause(settings("svc.test", true), u32::MAX, seconds(5)), seconds(60));
        assert_eq!(jittered(seconds(10), 0), seconds(10));
        assert_eq!(jittered(seconds(10), u32::MAX), seconds(11));
    }
}
