//! RetryPolicy of routes and virtual hosts.

use std::time::Duration;

use osier_proto::types::{
    previous_hosts::PreviousHostsPredicate,
    previous_priorities::PreviousPrioritiesConfig,
    route::{
        self as xds,
        retry_policy::{retry_host_predicate, retry_priority},
    },
};

use super::value::{extension, positive, required, switch, unsupported_extension};
use super::{At, Invalid};
use crate::config::route::{RetryOn, RetryPolicy};

const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);
/// Without `max_interval`, pauses grow up to this many times the first.
const BACKOFF_GROWTH: u32 = 10;

/// Conditions by name (Envoy's `x-envoy-retry-on` and `x-envoy-retry-grpc-on`).
const CONDITIONS: &[(&str, u32)] = &[
    ("5xx", RetryOn::SERVER_ERROR),
    ("gateway-error", RetryOn::GATEWAY_ERROR),
    ("reset", RetryOn::RESET),
    ("reset-before-request", RetryOn::RESET_BEFORE_REQUEST),
    ("connect-failure", RetryOn::CONNECT_FAILURE),
    ("refused-stream", RetryOn::REFUSED_STREAM),
    ("retriable-4xx", RetryOn::RETRIABLE_4XX),
    ("retriable-status-codes", RetryOn::STATUS_CODES),
    ("envoy-ratelimited", RetryOn::ENVOY_RATE_LIMITED),
    ("cancelled", RetryOn::CANCELLED),
    ("deadline-exceeded", RetryOn::DEADLINE_EXCEEDED),
    ("internal", RetryOn::INTERNAL),
    ("resource-exhausted", RetryOn::RESOURCE_EXHAUSTED),
    ("unavailable", RetryOn::UNAVAILABLE),
];

pub(super) fn compile(message: &xds::RetryPolicy) -> Result<RetryPolicy, Invalid> {
    let (backoff_base, backoff_max) = backoff(message.retry_back_off.as_ref()).at("retry_back_off")?;
    Ok(RetryPolicy {
        on: conditions(&message.retry_on)?,
        status_codes: status_codes(&message.retriable_status_codes)?,
        attempts: message.num_retries.unwrap_or(1),
        per_try_timeout: switch("per_try_timeout", message.per_try_timeout.as_ref(), None)?,
        per_try_idle_timeout: switch("per_try_idle_timeout", message.per_try_idle_timeout.as_ref(), None)?,
        avoid_previous_hosts: avoid_previous_hosts(&message.retry_host_predicate)?,
        host_selection_attempts: match message.host_selection_retry_max_attempts {
            0 => 1,
            n => u32::try_from(n).map_err(|_| {
                Invalid::new("host_selection_retry_max_attempts", format!("{n} is out of range"))
            })?,
        },
        previous_priorities: previous_priorities(message.retry_priority.as_ref()).at("retry_priority")?,
        backoff_base,
        backoff_max,
    })
}

fn conditions(list: &str) -> Result<RetryOn, Invalid> {
    let mut on = 0;
    for word in list.split(',').map(str::trim).filter(|w| !w.is_empty()) {
        match CONDITIONS.iter().find(|(name, _)| *name == word) {
            Some((_, bit)) => on |= bit,
            None => return Err(Invalid::new("retry_on", format!("condition `{word}` is not supported"))),
        }
    }
    Ok(RetryOn(on))
}

fn status_codes(codes: &[u32]) -> Result<Box<[u16]>, Invalid> {
    let code = |(index, code): (usize, &u32)| match *code {
        code @ 100..=599 => Ok(code as u16),
        code => {
            Err(Invalid::new(format!("retriable_status_codes[{index}]"), format!("{code} is not a status")))
        }
    };
    codes.iter().enumerate().map(code).collect()
}

fn avoid_previous_hosts(predicates: &[xds::retry_policy::RetryHostPredicate]) -> Result<bool, Invalid> {
    for (index, predicate) in predicates.iter().enumerate() {
        let check = || {
            let retry_host_predicate::ConfigType::TypedConfig(config) =
                required("typed_config", predicate.config_type.as_ref())?;
            if config.is::<PreviousHostsPredicate>() {
                return Ok(());
            }
            Err(unsupported_extension(config)).at("typed_config")
        };
        check().at_index("retry_host_predicate", index)?;
    }
    Ok(!predicates.is_empty())
}

fn previous_priorities(message: Option<&xds::retry_policy::RetryPriority>) -> Result<Option<u32>, Invalid> {
    let Some(message) = message else { return Ok(None) };
    let retry_priority::ConfigType::TypedConfig(config) =
        required("typed_config", message.config_type.as_ref())?;
    if !config.is::<PreviousPrioritiesConfig>() {
        return Err(unsupported_extension(config)).at("typed_config");
    }
    let config: PreviousPrioritiesConfig = extension(config)?;
    match u32::try_from(config.update_frequency) {
        Ok(n) if n > 0 => Ok(Some(n)),
        _ => Err(Invalid::new("typed_config.update_frequency", "must be at least 1")),
    }
}

fn backoff(message: Option<&xds::retry_policy::RetryBackOff>) -> Result<(Duration, Duration), Invalid> {
    let Some(message) = message else { return Ok((DEFAULT_BACKOFF, DEFAULT_BACKOFF * BACKOFF_GROWTH)) };
    let base = positive("base_interval", message.base_interval.as_ref())?
        .ok_or_else(|| Invalid::new("base_interval", "is required"))?;
    let max = positive("max_interval", message.max_interval.as_ref())?
        .unwrap_or(base.saturating_mul(BACKOFF_GROWTH));
    if max < base {
        return Err(Invalid::new("max_interval", "must not be shorter than `base_interval`"));
    }
    Ok((base, max))
}
