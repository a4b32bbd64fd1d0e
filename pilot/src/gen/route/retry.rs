//! Retries: the route's policy, else the mesh's, else the one that is built in.

use osier_proto::Any;
use osier_proto::types::previous_hosts::PreviousHostsPredicate;
use osier_proto::types::previous_priorities::PreviousPrioritiesConfig;
use osier_proto::types::route::{
    RetryPolicy as Wire,
    retry_policy::{RetryBackOff, RetryHostPredicate, RetryPriority, retry_host_predicate, retry_priority},
};
use std::time::Duration;

use crate::r#gen::wire;
use crate::model::RetryPolicy;

/// What is retried where nobody says otherwise. `retriable-status-codes` is there without a list, as Istio has it.
const DEFAULT_ON: &str = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
const DEFAULT_ATTEMPTS: u32 = 2;
/// How often another host is picked where one was tried already.
const HOST_PICKS: i64 = 5;
/// What a gRPC client understands; a policy with none of these is no policy for it.
const GRPC_CONDITIONS: [&str; 5] =
    ["cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"];

/// The policy that holds for a route; `None` switches retries off.
pub(super) fn policy(
    route: Option<&RetryPolicy>,
    mesh: Option<&RetryPolicy>,
    timeout: Option<Duration>,
) -> Option<Wire> {
    match route.or(mesh) {
        None => Some(built_in()),
        Some(policy) if policy.attempts == 0 => None,
        Some(policy) => Some(translate(policy, timeout)),
    }
}

/// The same for a gRPC client: only conditions that it knows, and nothing that it would have to ignore.
pub(super) fn for_grpc(policy: Option<Wire>) -> Option<Wire> {
    let policy = policy?;
    let known: Vec<&str> = policy.retry_on.split(',').filter(|c| GRPC_CONDITIONS.contains(c)).collect();
    (!known.is_empty()).then(|| Wire {
        retry_on: known.join(","),
        num_retries: policy.num_retries,
        retry_back_off: policy.retry_back_off,
        ..Default::default()
    })
}

fn built_in() -> Wire {
    Wire {
        retry_on: DEFAULT_ON.into(),
        num_retries: Some(DEFAULT_ATTEMPTS),
        retry_host_predicate: vec![previous_hosts()],
        host_selection_retry_max_attempts: HOST_PICKS,
        ..Default::default()
    }
}

fn translate(policy: &RetryPolicy, timeout: Option<Duration>) -> Wire {
    let mut wire = Wire { num_retries: Some(policy.attempts), ..built_in() };
    if let Some(on) = &policy.on {
        let mut conditions: Vec<&str> = on.conditions.iter().map(|c| &**c).collect();
        if !on.statuses.is_empty() && !conditions.contains(&"retriable-status-codes") {
            conditions.push("retriable-status-codes");
        }
        wire.retry_on = conditions.join(",");
        wire.retriable_status_codes = on.statuses.iter().map(|s| u32::from(*s)).collect();
    }
    if !policy.ignore_previous_hosts {
        wire.retry_host_predicate.clear();
        wire.host_selection_retry_max_attempts = 0;
    }
    // A limit that the whole exchange reaches first has no effect.
    let per_try = policy.per_try_timeout.filter(|limit| timeout.is_none_or(|whole| *limit < whole));
    wire.per_try_timeout = per_try.map(wire::duration);
    wire.retry_back_off = policy.backoff.map(|base| RetryBackOff {
        base_interval: Some(wire::duration(base)),
        max_interval: Some(wire::duration(base * 10)),
    });
    if policy.remote_localities {
        wire.retry_priority = Some(previous_priorities());
    }
    wire
}

fn previous_hosts() -> RetryHostPredicate {
    RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".into(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(Any::pack(
            &PreviousHostsPredicate {},
        ))),
    }
}

fn previous_priorities() -> RetryPriority {
    RetryPriority {
        name: "envoy.retry_priorities.previous_priorities".into(),
        config_type: Some(retry_priority::ConfigType::TypedConfig(Any::pack(&PreviousPrioritiesConfig {
            update_frequency: 2,
        }))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RetryOn;

    fn some(attempts: u32) -> RetryPolicy {
        RetryPolicy {
            attempts,
            per_try_timeout: None,
            on: None,
            ignore_previous_hosts: true,
            remote_localities: false,
            backoff: None,
        }
    }

    #[test]
    fn precedence() {
        let attempts = |route: Option<&RetryPolicy>, mesh: Option<&RetryPolicy>| {
            policy(route, mesh, None).and_then(|p| p.num_retries)
        };
        assert_eq!(attempts(None, None), Some(2));
        assert_eq!(attempts(None, Some(&some(5))), Some(5));
        assert_eq!(attempts(Some(&some(3)), Some(&some(5))), Some(3));
        assert_eq!(attempts(Some(&some(0)), Some(&some(5))), None, "zero attempts switch retries off");
        assert_eq!(attempts(None, Some(&some(0))), None);
    }

    #[test]
    fn the_built_in_policy_is_istios() {
        let p = policy(None, None, None).unwrap();
        assert_eq!(p.retry_on, DEFAULT_ON);
        assert!(p.retriable_status_codes.is_empty());
        assert_eq!(p.host_selection_retry_max_attempts, 5);
        assert_eq!(p.retry_host_predicate.len(), 1);
        assert_eq!(p.retry_back_off, None, "25 ms is the client's own default");
    }

    #[test]
    fn everything_of_a_policy_is_translated() {
        let full = RetryPolicy {
            on: Some(RetryOn { conditions: vec!["gateway-error".into()], statuses: vec![409, 503] }),
            per_try_timeout: Some(Duration::from_secs(2)),
            ignore_previous_hosts: false,
            remote_localities: true,
            backoff: Some(Duration::from_millis(100)),
            ..some(4)
        };
        let p = policy(Some(&full), None, Some(Duration::from_secs(3))).unwrap();
        assert_eq!(p.retry_on, "gateway-error,retriable-status-codes");
        assert_eq!(p.retriable_status_codes, [409, 503]);
        assert!(p.retry_host_predicate.is_empty());
        assert_eq!(p.host_selection_retry_max_attempts, 0);
        assert!(p.retry_priority.is_some());
        assert_eq!(p.per_try_timeout, Some(wire::duration(Duration::from_secs(2))));
        let back_off = p.retry_back_off.unwrap();
        assert_eq!(back_off.max_interval, Some(wire::duration(Duration::from_secs(1))));
        let p = policy(Some(&full), None, Some(Duration::from_secs(2))).unwrap();
        assert_eq!(p.per_try_timeout, None, "the whole time-out comes first");
    }

    #[test]
    fn grpc_takes_what_it_knows() {
        let p = for_grpc(policy(None, None, None)).unwrap();
        assert_eq!(p.retry_on, "unavailable,cancelled");
        assert!(p.retry_host_predicate.is_empty());
        let on = RetryOn { conditions: vec!["5xx".into()], statuses: vec![] };
        let only_http = RetryPolicy { on: Some(on), ..some(1) };
        assert_eq!(for_grpc(policy(Some(&only_http), None, None)), None);
    }
}
