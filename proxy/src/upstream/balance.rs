//! Which endpoint takes a request: a draw over tables that the endpoint set was built with.
//!
//! First a priority is drawn by its load, then an endpoint in it by the cluster's policy. Busyness is what the whole process
//! has in flight (shared atomics), not what this worker has. Invariants: an endpoint that is marked removed is never
//! returned, also from an old set; a pick takes no lock and allocates nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use smallvec::SmallVec;

use crate::config::cluster::BalancePolicy;
use crate::config::endpoint::{Endpoint, EndpointSet, Priority, spread};
use crate::config::route::RetryPolicy;

/// Up to this many endpoints, least request with unequal weights looks at each of them; beyond, at a sample.
const WALK: usize = 32;
/// Size of that sample.
const SAMPLE: usize = 4;

/// What was picked.
#[derive(Debug, Clone, Copy)]
pub struct Picked<'a> {
    /// The endpoint.
    pub endpoint: &'a Arc<Endpoint>,
    /// Index of its priority in the set.
    pub priority: usize,
}

/// What the earlier attempts of a request mean for the next pick.
#[derive(Debug, Default)]
pub struct Tried {
    attempts: SmallVec<[(u64, usize); 4]>,
    /// How often to pick again where an endpoint was tried already; `None` doesn't mind.
    repicks: Option<u32>,
    /// Leave out the priorities that were tried, anew after this many attempts.
    previous_priorities: Option<usize>,
}

impl Tried {
    /// Nothing tried yet, under a route's retry policy.
    pub fn new(policy: Option<&RetryPolicy>) -> Self {
        let Some(policy) = policy else { return Self::default() };
        Self {
            attempts: SmallVec::new(),
            repicks: policy.avoid_previous_hosts.then_some(policy.host_selection_attempts),
            previous_priorities: policy.previous_priorities.map(|every| every.max(1) as usize),
        }
    }

    /// Nothing tried yet; an endpoint that was tried is left out if there is another one.
    pub fn avoiding(repicks: u32) -> Self {
        Self { repicks: Some(repicks), ..Self::default() }
    }

    /// From now on, an endpoint that was tried is left out if there is another one.
    pub fn avoid(&mut self) {
        self.repicks.get_or_insert(1);
    }

    /// Remembers an attempt.
    pub fn record(&mut self, endpoint: &Endpoint, priority: usize) {
        self.attempts.push((endpoint.state.id, priority));
    }

    /// How many attempts were made.
    pub fn count(&self) -> usize {
        self.attempts.len()
    }

    fn has(&self, endpoint: &Endpoint) -> bool {
        self.repicks.is_some() && self.attempts.iter().any(|(id, _)| *id == endpoint.state.id)
    }

    /// Priorities that the next pick leaves out.
    fn left_out(&self) -> impl Iterator<Item = usize> + Clone {
        let counted = self.previous_priorities.map_or(0, |every| self.attempts.len() / every * every);
        self.attempts[..counted].iter().map(|(_, priority)| *priority)
    }
}

/// Picks an endpoint; `None` where none is eligible (UH). `random` gives uniformly distributed numbers.
pub fn pick<'a>(
    set: &'a EndpointSet,
    policy: BalancePolicy,
    tried: &Tried,
    mut random: impl FnMut() -> u64,
) -> Option<Picked<'a>> {
    let acceptable = |endpoint: &Endpoint| !endpoint.state.is_removed() && !tried.has(endpoint);
    for _ in 0..=tried.repicks.unwrap_or(0) {
        let priority = draw_priority(set, tried, &mut random)?;
        let endpoint = draw_endpoint(&set.priorities[priority], policy, &mut random)?;
        if acceptable(endpoint) {
            return Some(Picked { endpoint, priority });
        }
    }
    // Chance has not found one. Walk, so that an endpoint that wasn't tried, or at least wasn't removed, is found if there is one.
    let start = random();
    walk(set, start, acceptable).or_else(|| walk(set, start, |endpoint| !endpoint.state.is_removed()))
}

fn walk(set: &EndpointSet, start: u64, acceptable: impl Fn(&Endpoint) -> bool) -> Option<Picked<'_>> {
    let levels = set.priorities.iter().enumerate().filter(|(_, level)| level.load > 0);
    levels
        .filter_map(|(priority, level)| {
            let endpoints = level.eligible();
            let (behind, ahead) = endpoints.split_at(below(start, endpoints.len()));
            let endpoint = ahead.iter().chain(behind).find(|endpoint| acceptable(endpoint))?;
            Some(Picked { endpoint, priority })
        })
        .next()
}

/// Index of the priority that gets this request.
fn draw_priority(set: &EndpointSet, tried: &Tried, random: &mut impl FnMut() -> u64) -> Option<usize> {
    if set.priorities.first()?.load == 100 && tried.previous_priorities.is_none() {
        return Some(0);
    }
    let loads = set.priorities.iter().map(|level| level.load);
    let left_out = tried.left_out();
    let availability = set.priorities.iter().enumerate().map(|(index, level)| {
        if left_out.clone().any(|tried| tried == index) { 0 } else { level.availability }
    });
    // Where every level was tried, all of them count again.
    let narrowed = tried.left_out().next().is_some() && availability.clone().any(|part| part > 0);
    let point = below(random(), 100) as u32;
    if narrowed { level_at(spread(availability), point) } else { level_at(loads, point) }
}

fn level_at(loads: impl Iterator<Item = u32>, point: u32) -> Option<usize> {
    let mut sum = 0;
    loads.enumerate().find_map(|(index, load)| {
        sum += load;
        (point < sum).then_some(index)
    })
}

fn draw_endpoint<'a>(
    level: &'a Priority,
    policy: BalancePolicy,
    random: &mut impl FnMut() -> u64,
) -> Option<&'a Arc<Endpoint>> {
    let endpoints = level.eligible();
    if endpoints.len() < 2 {
        return endpoints.first();
    }
    let index = match policy {
        BalancePolicy::RoundRobin => in_turn(level),
        BalancePolicy::LeastRequest { choices } if level.cumulative.is_empty() => {
            least_busy(endpoints, choices, random)
        }
        BalancePolicy::LeastRequest { .. } => by_weight_and_busyness(level, random),
        BalancePolicy::Random | BalancePolicy::ClusterProvided => by_weight(level, random()),
    };
    endpoints.get(index)
}

/// The next in turn. Unequal weights: multiples of the golden ratio fall on each endpoint in proportion to its weight, evenly
/// spread, and the n-th can be computed without a schedule.
fn in_turn(level: &Priority) -> usize {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let turn = level.cursor.0.fetch_add(1, Relaxed);
    if level.cumulative.is_empty() {
        (turn % level.eligible as u64) as usize
    } else {
        by_weight(level, turn.wrapping_mul(GOLDEN))
    }
}

/// Random by weight.
fn by_weight(level: &Priority, random: u64) -> usize {
    match level.cumulative.last() {
        None => below(random, level.eligible),
        Some(&total) => {
            let point = ((u128::from(random) * u128::from(total)) >> 64) as u64;
            level.cumulative.partition_point(|&sum| sum <= point)
        }
    }
}

/// The least busy of some random ones, each compared with another one than itself. Of equally busy ones the first drawn.
fn least_busy(endpoints: &[Arc<Endpoint>], choices: u32, random: &mut impl FnMut() -> u64) -> usize {
    let mut best = below(random(), endpoints.len());
    let mut busyness = endpoints[best].state.active();
    for _ in 1..choices {
        let other = (best + 1 + below(random(), endpoints.len() - 1)) % endpoints.len();
        let active = endpoints[other].state.active();
        if active < busyness {
            (best, busyness) = (other, active);
        }
    }
    best
}

/// Random, in proportion to weight / (active + 1). In large levels that is approximated by a sample drawn by weight.
fn by_weight_and_busyness(level: &Priority, random: &mut impl FnMut() -> u64) -> usize {
    let endpoints = level.eligible();
    let calm = |index: usize| (1u64 << 20) / (u64::from(endpoints[index].state.active()) + 1);
    let (candidates, shares): (SmallVec<[usize; WALK]>, SmallVec<[u64; WALK]>) = if endpoints.len() <= WALK {
        let weighted = |index: usize| u64::from(endpoints[index].spec.weight.max(1)) * calm(index);
        (0..endpoints.len()).map(|index| (index, weighted(index).max(1))).unzip()
    } else {
        (0..SAMPLE).map(|_| by_weight(level, random())).map(|index| (index, calm(index).max(1))).unzip()
    };
    let total: u64 = shares.iter().sum();
    let mut point = ((u128::from(random()) * u128::from(total)) >> 64) as u64;
    for (&index, &share) in candidates.iter().zip(&shares) {
        if point < share {
            return index;
        }
        point -= share;
    }
    candidates[0]
}

/// A number below `bound` of a random one; 0 where `bound` is 0.
fn below(random: u64, bound: usize) -> usize {
    ((u128::from(random) * bound as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;
    use crate::config::endpoint::{DEFAULT_OVERPROVISIONING, EndpointSpec, Health, SetSettings};
    use crate::upstream::live::{LiveState, RequestPermit};

    const TWO: BalancePolicy = BalancePolicy::LeastRequest { choices: 2 };
    const POLICIES: [BalancePolicy; 3] = [BalancePolicy::RoundRobin, BalancePolicy::Random, TWO];

    fn address(index: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, (index / 250) as u8, (index % 250) as u8], 80))
    }

    fn set_of(live: &Arc<LiveState>, specs: impl IntoIterator<Item = EndpointSpec>) -> EndpointSet {
        let settings =
            SetSettings { panic_threshold: 0, overprovisioning: DEFAULT_OVERPROVISIONING, seed: 7, hash: 0 };
        let specs = specs.into_iter().enumerate().map(|(index, spec)| (address(index), spec));
        EndpointSet::build(specs, live, settings)
    }

    fn weighted(weights: &[u32]) -> EndpointSet {
        set_of(
            &LiveState::new("c"),
            weights.iter().map(|&weight| EndpointSpec { weight, ..EndpointSpec::default() }),
        )
    }

    fn seeded(seed: u64) -> impl FnMut() -> u64 {
        let mut rng = SmallRng::seed_from_u64(seed);
        move || rng.next_u64()
    }

    /// Picks per endpoint, in the order of addresses.
    fn count(set: &EndpointSet, policy: BalancePolicy, picks: usize) -> Vec<usize> {
        let mut random = seeded(42);
        let mut counts = vec![0; set.iter().count()];
        for _ in 0..picks {
            let picked = pick(set, policy, &Tried::default(), &mut random).expect("somebody is eligible");
            counts[address_index(picked.endpoint.address)] += 1;
        }
        counts
    }

    fn address_index(address: SocketAddr) -> usize {
        let SocketAddr::V4(address) = address else { unreachable!() };
        let [_, _, high, low] = address.ip().octets();
        usize::from(high) * 250 + usize::from(low)
    }

    #[test]
    fn equal_weights_are_spread_evenly() {
        for policy in POLICIES {
            for share in count(&weighted(&[1; 5]), policy, 50_000) {
                assert!((9_500..10_500).contains(&share), "{policy:?}: {share}");
            }
        }
        assert_eq!(count(&weighted(&[4; 5]), BalancePolicy::RoundRobin, 50_000), [10_000; 5]);
    }

    #[test]
    fn unequal_weights_get_their_share() {
        for policy in POLICIES {
            for scale in [1, 1000] {
                let counts = count(&weighted(&[scale, 2 * scale, 7 * scale]), policy, 50_000);
                for (share, wanted) in counts.iter().zip([5_000, 10_000, 35_000]) {
                    assert!(share.abs_diff(wanted) < 700, "{policy:?}: {counts:?}");
                }
            }
        }
    }

    #[test]
    fn least_request_samples_large_weighted_sets_fairly() {
        let weights: Vec<u32> = (0..100).map(|index| 1 + index % 4).collect();
        let counts = count(&weighted(&weights), TWO, 250_000);
        for (share, weight) in counts.iter().zip(&weights) {
            assert!(share.abs_diff(1000 * *weight as usize) < 350, "weight {weight}: {share}");
        }
    }

    #[test]
    fn weighted_round_robin_never_strays() {
        // After every prefix of the sequence each endpoint is within a few requests of its share.
        let set = weighted(&[5, 1, 1]);
        let (mut counts, mut random) = ([0usize; 3], seeded(1));
        for turn in 1..=10_000usize {
            let picked =
                pick(&set, BalancePolicy::RoundRobin, &Tried::default(), &mut random).expect("eligible");
            counts[address_index(picked.endpoint.address)] += 1;
            for (index, weight) in [5, 1, 1].into_iter().enumerate() {
                assert!(counts[index].abs_diff(turn * weight / 7) <= 4, "turn {turn}: {counts:?}");
            }
        }
    }

    fn busy(set: &EndpointSet, index: usize, requests: usize) -> Vec<RequestPermit> {
        let endpoint = set.iter().nth(index).expect("there");
        (0..requests).map(|_| LiveState::admit(endpoint.clone()).expect("no limit")).collect()
    }

    #[test]
    fn the_busier_of_two_gets_nothing() {
        let set = weighted(&[1, 1]);
        let permits = busy(&set, 0, 3);
        assert_eq!(count(&set, TWO, 1000), [0, 1000]);
        drop(permits);
        let calm = count(&set, TWO, 1000);
        assert!(calm[0] > 400 && calm[1] > 400, "{calm:?}");
    }

    #[test]
    fn busyness_divides_the_weight() {
        // 6/(5+1) against 1/(0+1): even.
        let set = weighted(&[6, 1]);
        let _permits = busy(&set, 0, 5);
        let counts = count(&set, TWO, 20_000);
        assert!(counts[0].abs_diff(10_000) < 400, "{counts:?}");
    }

    fn retry_policy(repicks: Option<u32>, previous_priorities: Option<u32>) -> RetryPolicy {
        RetryPolicy {
            on: Default::default(),
            status_codes: Box::default(),
            attempts: 2,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            avoid_previous_hosts: repicks.is_some(),
            host_selection_attempts: repicks.unwrap_or(1),
            previous_priorities,
            backoff_base: Default::default(),
            backoff_max: Default::default(),
        }
    }

    #[test]
    fn retries_go_to_hosts_that_were_not_tried() {
        let policy = retry_policy(Some(5), None);
        for balance in POLICIES {
            for seed in 0..200 {
                let set = weighted(&[1, 1, 1, 50]);
                let (mut tried, mut random) = (Tried::new(Some(&policy)), seeded(seed));
                for _ in 0..4 {
                    let picked = pick(&set, balance, &tried, &mut random).expect("eligible");
                    assert!(!tried.has(picked.endpoint), "{balance:?}, seed {seed}");
                    tried.record(picked.endpoint, picked.priority);
                }
                assert!(pick(&set, balance, &tried, &mut random).is_some(), "all tried: any will do");
            }
        }
    }

    #[test]
    fn without_the_predicate_hosts_come_again() {
        let (set, policy) = (weighted(&[1, 1]), retry_policy(None, None));
        let (mut tried, mut random) = (Tried::new(Some(&policy)), seeded(3));
        let mut again = 0;
        for _ in 0..100 {
            let picked = pick(&set, BalancePolicy::Random, &tried, &mut random).expect("eligible");
            again += usize::from(tried.attempts.iter().any(|(id, _)| *id == picked.endpoint.state.id));
            tried.record(picked.endpoint, picked.priority);
        }
        assert!(again >= 90);
    }

    #[test]
    fn previous_priorities_are_left_out_after_some_tries() {
        let at = |priority| EndpointSpec { priority, ..EndpointSpec::default() };
        let set = set_of(&LiveState::new("c"), [at(0), at(0), at(1), at(2)]);
        let mut tried = Tried::new(Some(&retry_policy(None, Some(2))));
        let mut random = seeded(5);
        let mut levels = Vec::new();
        for _ in 0..8 {
            let picked = pick(&set, TWO, &tried, &mut random).expect("eligible");
            levels.push(picked.priority);
            tried.record(picked.endpoint, picked.priority);
        }
        assert_eq!(levels, [0, 0, 1, 1, 2, 2, 0, 0], "each level twice, then from the start");
    }

    #[test]
    fn priorities_are_drawn_by_load() {
        let spec = |priority, health| EndpointSpec { priority, health, ..EndpointSpec::default() };
        let specs = [
            spec(0, Health::Healthy),
            spec(0, Health::Unhealthy),
            spec(1, Health::Healthy),
            spec(1, Health::Healthy),
        ];
        let counts = count(&set_of(&LiveState::new("c"), specs), BalancePolicy::Random, 20_000);
        assert_eq!(counts[1], 0, "unhealthy");
        assert!(counts[0].abs_diff(14_000) < 300, "{counts:?}");
        assert!(counts[2].abs_diff(3_000) < 300 && counts[3].abs_diff(3_000) < 300, "{counts:?}");
    }

    #[test]
    fn nobody_is_picked_from_nothing() {
        let live = LiveState::new("c");
        let unhealthy = EndpointSpec { health: Health::Draining, ..EndpointSpec::default() };
        for set in [EndpointSet::default(), set_of(&live, []), set_of(&live, [unhealthy])] {
            assert!(pick(&set, TWO, &Tried::default(), seeded(1)).is_none());
        }
    }

    proptest! {
        /// Whatever the policy and the set, also an old one: removed and unhealthy endpoints are never picked, and
        /// somebody is picked as long as anybody is left.
        #[test]
        fn removal_is_final_for_picks(
            weights in proptest::collection::vec((1u32..5, 0u32..3, any::<bool>()), 1..60),
            keep in any::<u64>(),
            policy in 0usize..3,
            seed in any::<u64>(),
        ) {
            let live = LiveState::new("c");
            let spec = |&(weight, priority, healthy): &(u32, u32, bool)| {
                let health = if healthy { Health::Healthy } else { Health::Unhealthy };
                EndpointSpec { weight, priority, health, ..EndpointSpec::default() }
            };
            let old = set_of(&live, weights.iter().map(spec));
            let kept = |index: usize| keep >> (index % 64) & 1 == 1;
            let specs = weights.iter().map(spec).enumerate().filter(|(index, _)| kept(*index));
            let settings = SetSettings { panic_threshold: 0, overprovisioning: 140, seed: 0, hash: 1 };
            let new = EndpointSet::build(specs.map(|(index, spec)| (address(index), spec)), &live, settings);
            live.adopt(&new, false);
            let mut random = seeded(seed);
            let anyone = old.priorities.iter().filter(|level| level.load > 0)
                .any(|level| level.eligible().iter().any(|endpoint| kept(address_index(endpoint.address))));
            for _ in 0..50 {
                match pick(&old, POLICIES[policy], &Tried::default(), &mut random) {
                    Some(picked) => {
                        prop_assert!(kept(address_index(picked.endpoint.address)));
                        prop_assert!(picked.endpoint.spec.health == Health::Healthy);
                    }
                    None => prop_assert!(!anyone),
                }
            }
        }
    }
}
