//! What injection writes into a pod and the sidecar reads there: both hold it against the same rules, so that no pod is made whose
//! sidecar would refuse to start.

use crate::duration;

/// Ports that are the sidecar's own: admin, outbound, debug, inbound, HBONE, status, readiness, DNS, metrics.
pub const OWN_PORTS: [u16; 9] = [15000, 15001, 15004, 15006, 15008, 15020, 15021, 15053, 15090];

/// Whether this can be the name of a network interface: what Linux takes, without what would mean something in a rule.
pub fn is_interface(text: &str) -> bool {
    (1..16).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.@".contains(&b))
}

/// The value of a variable that switches something.
pub fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "t" => Some(true),
        "false" | "0" | "f" | "" => Some(false),
        _ => None,
    }
}

/// Holds the value of a variable of the environment that a sidecar reads against what it takes; others may say anything.
pub fn check_variable(name: &str, value: &str) -> Result<(), String> {
    match name {
        "OSIER_SERVER_FIRST" if !["true", "false"].contains(&value) => {
            Err(format!("{value:?} is neither true nor false"))
        }
        "ISTIO_META_DNS_CAPTURE" | "DNS_FORWARD_PARALLEL" | "EXIT_ON_ZERO_ACTIVE_CONNECTIONS" => {
            switch(value).map(drop).ok_or_else(|| format!("{value:?} is neither true nor false"))
        }
        "DNS_FORWARD_TIMEOUT" if duration::parse(value).is_ok_and(|time| time.is_zero()) => {
            Err(format!("{value:?} is no time to wait"))
        }
        "DNS_FORWARD_TIMEOUT" | "MINIMUM_DRAIN_DURATION" if !value.is_empty() => {
            duration::parse(value).map(drop).map_err(|error| format!("{value:?} {error}"))
        }
        "ISTIO_META_INTERCEPTION_MODE" if !["", "REDIRECT", "TPROXY", "NONE"].contains(&value) => {
            Err(format!("{value:?} is none of REDIRECT, TPROXY, NONE"))
        }
        _ if name.starts_with("ISTIO_METAJSON_") => {
            let read = serde_json::from_str::<serde::de::IgnoredAny>(value);
            read.map(drop).map_err(|error| format!("is no JSON: {error}"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables() {
        for (name, value, wanted) in [
            ("ISTIO_META_DNS_CAPTURE", "yes", Err("\"yes\" is neither true nor false")),
            ("ISTIO_META_DNS_CAPTURE", "TRUE", Ok(())),
            ("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "on", Err("\"on\" is neither true nor false")),
            ("DNS_FORWARD_TIMEOUT", "0s", Err("\"0s\" is no time to wait")),
            ("DNS_FORWARD_TIMEOUT", "2s", Ok(())),
            (
                "ISTIO_META_INTERCEPTION_MODE",
                "redirect",
                Err("\"redirect\" is none of REDIRECT, TPROXY, NONE"),
            ),
            ("ISTIO_METAJSON_LABELS", "{\"a\": \"b\"}", Ok(())),
            ("ANYTHING", "yes", Ok(())),
        ] {
            assert_eq!(check_variable(name, value), wanted.map_err(str::to_owned), "{name}={value}");
        }
        assert!(check_variable("MINIMUM_DRAIN_DURATION", "soon").is_err());
        assert!(check_variable("ISTIO_METAJSON_X", "{").is_err());
    }

    #[test]
    fn interfaces() {
        for (name, fits) in [
            ("eth0", true),
            ("tap-1.2@x_y", true),
            ("", false),
            ("a/b", false),
            ("a\"b", false),
            ("a123456789012345", false),
        ] {
            assert_eq!(is_interface(name), fits, "{name:?}");
        }
    }
}
