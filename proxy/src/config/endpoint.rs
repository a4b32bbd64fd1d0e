//! Endpoints of a cluster, grouped and ready to be picked from (EDS, DNS, inline).
//!
//! [`EndpointSet::build`] does all the arithmetic that doesn't depend on a request: grouping by priority, who is
//! eligible, running sums of weights, panic mode and how priorities share the traffic (the rules are Envoy's, so that
//! fail-over happens where operators expect it). A pick then is a draw and a table look-up.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::upstream::live::{EndpointState, LiveState};

/// Healthy endpoints count for this many percent when a priority's availability is worked out (Envoy's default):
/// a level keeps all its traffic until fewer than 72 % of its endpoints are healthy.
pub const DEFAULT_OVERPROVISIONING: u32 = 140;

/// All endpoints of a cluster at one moment. Sorted by priority; the picker's tables are built with it.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// By priority, most preferred first, without holes.
    pub priorities: Box<[Priority]>,
    /// False until the first answer: requests wait instead of failing with UH.
    pub known: bool,
    /// Content hash of the resource.
    pub hash: u64,
}

/// The endpoints of one priority.
#[derive(Debug, Default)]
pub struct Priority {
    /// All endpoints, the healthy ones first, each group in the order of the resource.
    pub all: Box<[Arc<Endpoint>]>,
    /// How many of `all`, from the front, get traffic: the healthy ones, or all of them in panic.
    pub eligible: usize,
    /// Too few are healthy, so health is disregarded.
    pub panic: bool,
    /// Running sums of weights of the eligible ones, for weighted picks; empty where all weights are equal.
    pub cumulative: Box<[u64]>,
    /// Percent of this level's traffic that it can take, 0 to 100.
    pub availability: u32,
    /// Percent of the cluster's traffic that it gets; all levels together have 100, or 0 where nobody is eligible.
    pub load: u32,
    /// Position of round robin; the only thing in a set that moves.
    pub cursor: Cursor,
}

/// A counter on a cache line of its own, so that advancing it doesn't slow down readers of the tables beside it.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Cursor(pub AtomicU64);

/// What [`EndpointSet::build`] needs beside the endpoints.
#[derive(Debug, Clone, Copy)]
pub struct SetSettings {
    /// Percentage of healthy endpoints below which health is disregarded; 0 switches panic mode off.
    pub panic_threshold: u32,
    /// Percent that a healthy endpoint counts for, see [`DEFAULT_OVERPROVISIONING`].
    pub overprovisioning: u32,
    /// Where round robin starts, so that not all proxies begin with the same endpoint.
    pub seed: u64,
    /// Content hash of the resource.
    pub hash: u64,
}

/// One address of a cluster.
#[derive(Debug)]
pub struct Endpoint {
    /// What was configured.
    pub spec: EndpointSpec,
    /// Where it is.
    pub address: SocketAddr,
    /// Counters and connections; shared by all versions of this endpoint, keyed by address within the cluster.
    pub state: Arc<EndpointState>,
}

/// What the control plane says of an endpoint beside its address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EndpointSpec {
    /// Host name, for host rewrite and TLS.
    pub hostname: Option<Arc<str>>,
    /// Weight, 1 or more.
    pub weight: u32,
    /// Health as the control plane sees it.
    pub health: Health,
    /// Where it runs.
    pub locality: Arc<Locality>,
    /// Fail-over level.
    pub priority: u32,
    /// What decides how bytes are secured (metadata `envoy.transport_socket_match`).
    pub transport: Arc<TransportHints>,
    /// Istio's workload metadata `workload;namespace;canonical-service;canonical-revision;cluster`, for metrics.
    pub workload: Option<Arc<str>>,
}

/// What an endpoint says of itself to those who choose how bytes are secured, e.g. `tlsMode: istio`.
pub type TransportHints = BTreeMap<Box<str>, Box<str>>;

/// Region, zone, sub-zone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Locality {
    /// Region.
    pub region: Box<str>,
    /// Zone.
    pub zone: Box<str>,
    /// Sub-zone.
    pub sub_zone: Box<str>,
}

/// `health_status` of EDS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Health {
    /// Gets traffic.
    #[default]
    Healthy,
    /// Gets none.
    Unhealthy,
    /// Gets none but affinity.
    Draining,
}

impl Health {
    /// True where new requests may go there.
    pub fn takes_traffic(self) -> bool {
        self == Self::Healthy
    }
}

impl Default for EndpointSpec {
    fn default() -> Self {
        Self {
            hostname: None,
            weight: 1,
            health: Health::default(),
            locality: Arc::default(),
            priority: 0,
            transport: Arc::default(),
            workload: None,
        }
    }
}

impl EndpointSet {
    /// A set of these endpoints. An address that comes twice counts once, as it came first; a weight of 0 counts as 1.
    pub fn build(
        specs: impl IntoIterator<Item = (SocketAddr, EndpointSpec)>,
        live: &Arc<LiveState>,
        settings: SetSettings,
    ) -> Self {
        let mut seen = HashSet::new();
        let mut levels: BTreeMap<u32, Vec<Arc<Endpoint>>> = BTreeMap::new();
        for (address, spec) in specs {
            if seen.insert(address) {
                let state = live.secured_endpoint(address, &spec.transport);
                levels.entry(spec.priority).or_default().push(Arc::new(Endpoint { spec, address, state }));
            }
        }
        let mut priorities: Box<[Priority]> =
            levels.into_values().map(|level| Priority::healthy_first(level, settings)).collect();
        share_traffic(&mut priorities, settings.panic_threshold);
        for priority in &mut priorities {
            priority.cumulative = running_sums(&priority.all[..priority.eligible]);
        }
        Self { priorities, known: true, hash: settings.hash }
    }

    /// The same endpoints under other settings.
    pub fn rebuilt(&self, live: &Arc<LiveState>, settings: SetSettings) -> Self {
        let specs = self.iter().map(|endpoint| (endpoint.address, endpoint.spec.clone()));
        Self { known: self.known, ..Self::build(specs, live, settings) }
    }

    /// Every endpoint, healthy or not.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.priorities.iter().flat_map(|priority| priority.all.iter())
    }
}

impl Priority {
    /// Those that may get traffic.
    pub fn eligible(&self) -> &[Arc<Endpoint>] {
        &self.all[..self.eligible]
    }

    fn healthy_first(level: Vec<Arc<Endpoint>>, settings: SetSettings) -> Self {
        let (mut all, rest): (Vec<_>, Vec<_>) =
            level.into_iter().partition(|endpoint| endpoint.spec.health == Health::Healthy);
        let healthy = all.len();
        all.extend(rest);
        // Rounded down as Envoy does, except that one healthy endpoint among hundreds is still somebody.
        let share = u64::from(settings.overprovisioning) * healthy as u64 / all.len() as u64;
        let share = share.clamp(u64::from(healthy > 0), 100);
        Self {
            all: all.into_boxed_slice(),
            eligible: healthy,
            availability: share as u32,
            cursor: Cursor(AtomicU64::new(settings.seed)),
            ..Self::default()
        }
    }
}

/// Decides panic mode and load of each level.
fn share_traffic(priorities: &mut [Priority], panic_threshold: u32) {
    let total = total_availability(priorities.iter().map(|priority| priority.availability));
    if total < 100 && panic_threshold > 0 {
        for priority in priorities.iter_mut() {
            let healthy_percent = 100 * priority.eligible / priority.all.len();
            priority.panic = healthy_percent < panic_threshold as usize;
        }
        if priorities.iter().all(|priority| priority.panic) {
            return share_by_size(priorities);
        }
    }
    let availability: Box<[u32]> = priorities.iter().map(|priority| priority.availability).collect();
    let loads = spread(availability.iter().copied());
    for (priority, load) in priorities.iter_mut().zip(loads) {
        priority.load = load;
        if priority.panic {
            priority.eligible = priority.all.len();
        }
    }
}

/// Every level is in panic: each gets traffic by its number of endpoints.
fn share_by_size(priorities: &mut [Priority]) {
    let hosts: usize = priorities.iter().map(|priority| priority.all.len()).sum();
    let mut rest = 100;
    for priority in priorities.iter_mut() {
        priority.eligible = priority.all.len();
        priority.load = (100 * priority.all.len() / hosts) as u32;
        rest -= priority.load;
    }
    if let Some(first) = priorities.first_mut() {
        first.load += rest;
    }
}

fn total_availability(availability: impl Iterator<Item = u32>) -> u32 {
    availability.fold(0u32, u32::saturating_add).min(100)
}

/// Shares of 100 percent: each level takes what it can, most preferred first; where all together can't take 100, in proportion.
/// Rounding goes to the first level that takes anything. All zero where nobody can take anything.
pub fn spread(availability: impl Iterator<Item = u32> + Clone) -> impl Iterator<Item = u32> {
    let total = total_availability(availability.clone());
    let scaled = move |part: u32| (part * 100).checked_div(total).unwrap_or(0);
    let mut taken = 0;
    for part in availability.clone() {
        taken += scaled(part).min(100 - taken);
    }
    let mut rounding = if total == 0 { 0 } else { 100 - taken };
    let mut left = 100 - rounding;
    availability.map(move |part| {
        let share = scaled(part).min(left);
        left -= share;
        if share > 0 { share + std::mem::take(&mut rounding) } else { 0 }
    })
}

fn running_sums(endpoints: &[Arc<Endpoint>]) -> Box<[u64]> {
    let weight = |endpoint: &Arc<Endpoint>| u64::from(endpoint.spec.weight.max(1));
    if endpoints.windows(2).all(|pair| weight(&pair[0]) == weight(&pair[1])) {
        return Box::default();
    }
    let sums = endpoints.iter().scan(0u64, |sum, endpoint| {
        *sum += weight(endpoint);
        Some(*sum)
    });
    sums.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: SetSettings =
        SetSettings { panic_threshold: 0, overprovisioning: DEFAULT_OVERPROVISIONING, seed: 0, hash: 0 };

    /// Priority, healthy, unhealthy.
    type Level = (u32, usize, usize);

    fn set(levels: &[Level], panic_threshold: u32) -> EndpointSet {
        let mut specs = Vec::new();
        for &(priority, healthy, unhealthy) in levels {
            for index in 0..healthy + unhealthy {
                let health = if index < healthy { Health::Healthy } else { Health::Unhealthy };
                let address =
                    SocketAddr::from(([10, priority as u8, (index / 250) as u8, (index % 250) as u8], 80));
                specs.push((address, EndpointSpec { health, priority, ..EndpointSpec::default() }));
            }
        }
        EndpointSet::build(specs, &LiveState::new("c"), SetSettings { panic_threshold, ..SETTINGS })
    }

    fn loads(set: &EndpointSet) -> Vec<u32> {
        set.priorities.iter().map(|priority| priority.load).collect()
    }

    #[test]
    fn priorities_share_traffic_as_envoy_does() {
        // (levels, loads): the table of Envoy's documentation, then levels that together don't reach 100.
        let cases: &[(&[Level], &[u32])] = &[
            (&[(0, 100, 0), (1, 10, 0)], &[100, 0]),
            (&[(0, 72, 28), (1, 10, 0)], &[100, 0]),
            (&[(0, 71, 29), (1, 10, 0)], &[99, 1]),
            (&[(0, 50, 50), (1, 10, 0)], &[70, 30]),
            (&[(0, 25, 75), (1, 10, 0)], &[35, 65]),
            (&[(0, 0, 100), (1, 10, 0)], &[0, 100]),
            (&[(0, 25, 75), (1, 25, 75)], &[50, 50]),
            (&[(0, 20, 80), (1, 10, 90), (2, 10, 90)], &[50, 25, 25]),
            (&[(0, 0, 5), (1, 0, 5)], &[0, 0]),
            (&[(3, 4, 0), (7, 4, 0)], &[100, 0]),
            (&[], &[]),
        ];
        for (levels, wanted) in cases {
            assert_eq!(loads(&set(levels, 0)), *wanted, "{levels:?}");
        }
    }

    #[test]
    fn panic_disregards_health_only_where_the_rest_cannot_take_over() {
        // One level, 1 of 10 healthy, threshold 50: all ten get traffic.
        let alone = set(&[(0, 1, 9)], 50);
        assert!(alone.priorities[0].panic);
        assert_eq!(alone.priorities[0].eligible().len(), 10);
        assert_eq!(loads(&alone), [100]);
        // The second level can take everything: no panic in the first.
        let covered = set(&[(0, 1, 9), (1, 10, 0)], 50);
        assert!(!covered.priorities[0].panic);
        assert_eq!(covered.priorities[0].eligible().len(), 1);
        // All levels in panic: by size, rounding to the first.
        let all = set(&[(0, 0, 2), (1, 0, 4)], 50);
        assert_eq!(loads(&all), [34, 66]);
        // Switched off: nobody.
        let off = set(&[(0, 0, 4)], 0);
        assert_eq!((off.priorities[0].eligible().len(), loads(&off)), (0, vec![0]));
    }

    #[test]
    fn weights_become_running_sums_of_the_healthy() {
        let address = |last| SocketAddr::from(([10, 0, 0, last], 80));
        let spec = |weight, health| EndpointSpec { weight, health, ..EndpointSpec::default() };
        let specs = [
            (address(1), spec(3, Health::Healthy)),
            (address(2), spec(50, Health::Unhealthy)),
            (address(3), spec(0, Health::Healthy)),
            (address(1), spec(90, Health::Healthy)),
        ];
        let set = EndpointSet::build(specs, &LiveState::new("c"), SETTINGS);
        assert_eq!(&*set.priorities[0].cumulative, [3, 4]);
        assert_eq!(set.priorities[0].all.len(), 3, "an address counts once");
        let equal = [(address(1), spec(7, Health::Healthy)), (address(2), spec(7, Health::Healthy))];
        assert!(
            EndpointSet::build(equal, &LiveState::new("c"), SETTINGS).priorities[0].cumulative.is_empty()
        );
    }

    proptest! {
        #[test]
        fn loads_are_100_percent_or_nothing(levels in proptest::collection::vec((0usize..40, 0usize..40), 1..6), panic in 0u32..=100) {
            let levels: Vec<_> = levels.into_iter().enumerate()
                .map(|(index, (healthy, unhealthy))| (index as u32, healthy, unhealthy))
                .filter(|(_, healthy, unhealthy)| healthy + unhealthy > 0)
                .collect();
            let set = set(&levels, panic);
            let sum: u32 = loads(&set).iter().sum();
            let anyone = set.priorities.iter().any(|priority| priority.eligible > 0);
            prop_assert_eq!(sum, if anyone { 100 } else { 0 });
            for priority in &set.priorities {
                prop_assert!(priority.load == 0 || priority.eligible > 0, "traffic for a level without endpoints");
            }
        }
    }
}
