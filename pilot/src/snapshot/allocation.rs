//! Automatic addresses of ServiceEntries that have none: one of 240.240.0.0/16 and one of 2001:2::/48 for each host.
//!
//! Who gets which follows from the hosts alone, so that replicas agree without talking, and stays: first what the resource's status
//! claims, then what the snapshot before had, then the place that the host's hash gives, or the next free one. An address that a user
//! has written anywhere is never given away; of two claims the older resource's counts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hashbrown::HashSet;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use xxhash_rust::xxh3::xxh3_64;

use super::ServiceIndex;
use crate::model::{Service, ServiceKey};

const V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(240, 240, 0, 0), 16);
const V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 48);
/// Hosts that can have an address in the smaller range: all but the first and the last.
const PLACES: u64 = (1 << 16) - 2;

/// Gives addresses to those of `services`, which come oldest first, that want some.
pub(super) fn allocate(services: &mut [Arc<Service>], before: &ServiceIndex) {
    let wants: Vec<bool> = services.iter().map(|service| service.wants_automatic_addresses()).collect();
    if !wants.contains(&true) {
        return;
    }
    let mut taken = Taken::new(services);
    let mut given: Vec<[Option<IpAddr>; 2]> = vec![[None; 2]; services.len()];
    let former =
        |service: &Service| before.by_key(&service.key).map(|s| s.automatic.clone()).unwrap_or_default();
    for claims in [&|service: &Service| service.claimed.clone(), &former as &dyn Fn(&Service) -> Vec<IpAddr>]
    {
        for ((service, given), _) in services.iter().zip(&mut given).zip(&wants).filter(|(_, wants)| **wants)
        {
            for ip in claims(service) {
                let family = usize::from(ip.is_ipv6());
                if given[family].is_none() && taken.take(ip) {
                    given[family] = Some(ip);
                }
            }
        }
    }
    for ((service, given), wants) in services.iter_mut().zip(given).zip(wants) {
        let automatic: Vec<IpAddr> = match wants {
            true => [
                given[0].or_else(|| taken.find_v4(&service.key)),
                given[1].or_else(|| taken.find_v6(&service.key)),
            ]
            .into_iter()
            .flatten()
            .collect(),
            false => Vec::new(),
        };
        if service.automatic != automatic {
            Arc::make_mut(service).automatic = automatic;
        }
    }
}

/// Addresses that can't be given away any more.
struct Taken {
    /// Written by users.
    written: Vec<IpNet>,
    given: HashSet<IpAddr>,
}

impl Taken {
    fn new(services: &[Arc<Service>]) -> Self {
        let in_range = |range: &&IpNet| match range {
            IpNet::V4(range) => V4.contains(range) || range.contains(&V4),
            IpNet::V6(range) => V6.contains(range) || range.contains(&V6),
        };
        let written = services.iter().flat_map(|service| &service.addresses).filter(in_range).copied();
        Self { written: written.collect(), given: HashSet::new() }
    }

    /// Takes an address, if it is ours to give, and free.
    fn take(&mut self, ip: IpAddr) -> bool {
        let ours = match ip {
            IpAddr::V4(ip) => V4.contains(&ip) && ip != V4.network() && ip != V4.broadcast(),
            IpAddr::V6(ip) => V6.contains(&ip) && ip != V6.network(),
        };
        ours && !self.written.iter().any(|range| range.contains(&ip)) && self.given.insert(ip)
    }

    fn find_v4(&mut self, key: &ServiceKey) -> Option<IpAddr> {
        let first = hash(key) % PLACES;
        let place = |at: u64| {
            let [.., high, low] = ((first + at) % PLACES + 1).to_be_bytes();
            IpAddr::from([240, 240, high, low])
        };
        (0..PLACES).map(place).find(|ip| self.take(*ip))
    }

    fn find_v6(&mut self, key: &ServiceKey) -> Option<IpAddr> {
        let first = u128::from(hash(key));
        let place = |at: u128| IpAddr::from(Ipv6Addr::from(u128::from(V6.network()) | (first + at)));
        (0..u128::from(PLACES)).map(place).find(|ip| self.take(*ip))
    }
}

/// The same on every replica, and in every version.
fn hash(key: &ServiceKey) -> u64 {
    xxh3_64(key.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::r#gen::fixture::{entry, kubernetes};
    use crate::model::{ExportTo, Protocol, ServiceKind};

    fn tcp(host: &str, created: i64) -> Service {
        let mut service = entry(host, ServiceKind::Dns, &[], &[(5432, Protocol::Tcp)]);
        service.age.created = created;
        service
    }

    fn index(services: Vec<Service>, before: &ServiceIndex) -> ServiceIndex {
        before.rebuilt(services, &ExportTo::default())
    }

    fn of(index: &ServiceIndex, host: &str) -> Vec<String> {
        index.get("default", host).unwrap().automatic.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn who_gets_some() {
        let nothing = ServiceIndex::default();
        let mut written = tcp("written.example.com", 0);
        written.addresses = vec!["192.0.2.1/32".parse().unwrap()];
        let mut passed = tcp("passed.example.com", 0);
        passed.kind = ServiceKind::Passthrough;
        let mut unwilling = tcp("unwilling.example.com", 0);
        unwilling.labels = [("networking.istio.io/enable-autoallocate-ip", "false")].into();
        let services = vec![
            tcp("a.example.com", 0),
            written,
            passed,
            unwilling,
            tcp("*.example.com", 0),
            kubernetes("web", "default", None, &[(80, Protocol::Http)]),
        ];
        let made = index(services, &nothing);
        let with: Vec<_> =
            made.iter().filter(|s| !s.automatic.is_empty()).map(|s| s.host().to_string()).collect();
        assert_eq!(with, ["a.example.com"]);
        let [v4, v6] = &made.get("default", "a.example.com").unwrap().automatic[..] else {
            panic!("two addresses")
        };
        assert!(
            v4.to_string().starts_with("240.240.") && v6.to_string().starts_with("2001:2::"),
            "{v4} {v6}"
        );
    }

    #[test]
    fn they_follow_from_the_hosts_and_stay() {
        let nothing = ServiceIndex::default();
        let hosts: Vec<String> = (0..2000).map(|n| format!("h{n}.example.com")).collect();
        let all =
            |from: usize| hosts[from..].iter().enumerate().map(|(n, h)| tcp(h, (from + n) as i64)).collect();
        let (one, two) = (index(all(0), &nothing), index(all(0), &nothing));
        let mut seen = HashSet::new();
        for host in &hosts {
            assert_eq!(of(&one, host), of(&two, host), "replicas agree");
            assert!(of(&one, host).into_iter().all(|ip| seen.insert(ip)), "{host} shares an address");
        }
        // Some of two thousand collide; who had moved on doesn't move back when the first one goes.
        let later = index(all(1000), &one);
        let fresh = index(all(1000), &nothing);
        assert!(hosts[1000..].iter().all(|host| of(&later, host) == of(&one, host)));
        assert!(hosts[1000..].iter().any(|host| of(&fresh, host) != of(&one, host)), "none has collided");
    }

    #[test]
    fn claims_count_by_age_and_users_before_all() {
        let nothing = ServiceIndex::default();
        let claim = |mut service: Service, ips: &[&str]| {
            service.claimed = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            service
        };
        let made = index(
            vec![
                claim(tcp("young.example.com", 9), &["240.240.1.1", "2001:2::7"]),
                claim(tcp("old.example.com", 1), &["240.240.1.1", "2001:2::1"]),
                claim(
                    tcp("greedy.example.com", 2),
                    &["10.0.0.1", "240.240.0.0", "240.240.255.255", "240.240.3.3"],
                ),
            ],
            &nothing,
        );
        assert_eq!(of(&made, "old.example.com"), ["240.240.1.1", "2001:2::1"]);
        assert_eq!(of(&made, "young.example.com")[1], "2001:2::7");
        assert_ne!(of(&made, "young.example.com")[0], "240.240.1.1");
        assert_eq!(of(&made, "greedy.example.com")[0], "240.240.3.3");
        let mut user = tcp("user.example.com", 99);
        user.addresses = vec!["240.240.1.0/24".parse().unwrap()];
        let made = index(vec![claim(tcp("old.example.com", 1), &["240.240.1.1", "2001:2::1"]), user], &made);
        assert_ne!(of(&made, "old.example.com")[0], "240.240.1.1");
        assert_eq!(of(&made, "old.example.com")[1], "2001:2::1");
    }
}
