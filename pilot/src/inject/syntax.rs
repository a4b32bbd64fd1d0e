//! How the values of annotations, and of the injection values that they override, are written.

use ipnet::IpNet;
use osier_core::logging::Levels;
use osier_core::sidecar::is_interface;

/// A value as it goes on, or why it can't.
pub(super) type Parsed<T> = Result<T, String>;

/// `true` or `false`, as Go's `strconv.ParseBool` takes them.
pub(super) fn boolean(text: &str) -> Parsed<bool> {
    match text {
        "true" | "True" | "TRUE" | "t" | "T" | "1" => Ok(true),
        "false" | "False" | "FALSE" | "f" | "F" | "0" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

/// A whole number that is not negative.
pub(super) fn number(text: &str) -> Parsed<u32> {
    text.parse().map_err(|_| format!("{text:?} is not a whole number from 0 to {}", u32::MAX))
}

/// A port, where 0 switches off.
pub(super) fn port_or_off(text: &str) -> Parsed<u16> {
    text.parse().map_err(|_| format!("{text:?} is no port number (0 to 65535)"))
}

/// The elements of a list with commas.
fn elements(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

/// A list with commas, each element checked, without blanks.
fn list(text: &str, check: impl Fn(&str) -> Option<String>) -> Parsed<String> {
    let wrong: Vec<String> = elements(text).filter_map(check).collect();
    if wrong.is_empty() { Ok(elements(text).collect::<Vec<_>>().join(",")) } else { Err(wrong.join(", ")) }
}

/// A list of ports.
pub(super) fn ports(text: &str) -> Parsed<String> {
    list(text, |part| match part.parse::<u16>() {
        Ok(port) if port > 0 => None,
        _ => Some(format!("{part:?} is no port number (1 to 65535)")),
    })
}

/// A list of ports, or `*`.
pub(super) fn ports_or_all(text: &str) -> Parsed<String> {
    if text.trim() == "*" { Ok("*".into()) } else { ports(text) }
}

/// A list of ranges.
pub(super) fn ranges(text: &str) -> Parsed<String> {
    list(text, |part| match part.parse::<IpNet>() {
        Ok(_) => None,
        Err(_) => Some(format!("{part:?} is no range of addresses such as 10.0.0.0/8")),
    })
}

/// A list of ranges, or `*`.
pub(super) fn ranges_or_all(text: &str) -> Parsed<String> {
    if text.trim() == "*" { Ok("*".into()) } else { ranges(text) }
}

/// A list of network interfaces.
pub(super) fn interfaces(text: &str) -> Parsed<String> {
    list(text, |part| (!is_interface(part)).then(|| format!("{part:?} is no name of a network interface")))
}

/// A list of names, e.g. of templates.
pub(super) fn names(text: &str) -> Vec<String> {
    elements(text).map(str::to_owned).collect()
}

/// `HOST:PORT`.
pub(super) fn address(text: &str) -> Parsed<String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty() && !host.contains(['/', ' ']));
    match port.and_then(|(_, port)| port.parse::<u16>().ok()).filter(|port| *port > 0) {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!("{text:?} is not HOST:PORT")),
    }
}

/// An amount of CPU or memory as Kubernetes writes it: `100m`, `0.5`, `128Mi`, `1e3`.
pub(super) fn quantity(text: &str) -> Parsed<String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let exponent = suffix.strip_prefix(['e', 'E']).is_some_and(|rest| rest.parse::<i32>().is_ok());
    let unit = matches!(
        suffix,
        "" | "n" | "u" | "m" | "k" | "M" | "G" | "T" | "P" | "E" | "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei"
    );
    let digits = number.bytes().any(|b| b.is_ascii_digit()) && number.parse::<f64>().is_ok();
    if digits && (unit || exponent) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is no quantity such as 100m or 128Mi"))
    }
}

/// Levels of the proxy's log, in our words or Envoy's.
pub(super) fn log_levels(text: &str) -> Parsed<String> {
    text.parse::<Levels>().map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// A reference to an image.
pub(super) fn image(text: &str) -> Parsed<String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is no image"))
    }
}

/// When images are pulled; empty leaves it to Kubernetes.
pub(super) fn pull_policy(text: &str) -> Parsed<String> {
    match text {
        "" | "Always" | "IfNotPresent" | "Never" => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is none of Always, IfNotPresent, Never")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        assert_eq!(ports_or_all(" 80 , 443,").unwrap(), "80,443");
        assert_eq!(ports_or_all("*").unwrap(), "*");
        assert_eq!(ports_or_all("").unwrap(), "");
        assert_eq!(
            ports("80,a,0").unwrap_err(),
            "\"a\" is no port number (1 to 65535), \"0\" is no port number (1 to 65535)"
        );
        assert_eq!(ranges_or_all("10.0.0.0/8, fd00::/8").unwrap(), "10.0.0.0/8,fd00::/8");
        assert_eq!(
            ranges("10.0.0.1").unwrap_err(),
            "\"10.0.0.1\" is no range of addresses such as 10.0.0.0/8"
        );
        assert!(ranges("*").is_err());
        assert_eq!(interfaces("eth0,net-1").unwrap(), "eth0,net-1");
        assert!(interfaces("a/b").is_err());
    }

    #[test]
    fn quantities() {
        for good in ["1", "0.5", "100m", "128Mi", "1e3", "2G"] {
            assert_eq!(quantity(good).as_deref(), Ok(good));
        }
        for bad in ["", "m", "1.2.3", "10mb", "-1", "1e", "a"] {
            assert!(quantity(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn levels() {
        assert_eq!(log_levels("critical").unwrap(), "critical");
        assert_eq!(log_levels("info,http=debug,upstream:trace").unwrap(), "info,http=debug,upstream:trace");
        assert!(log_levels("loud").is_err());
    }
}
