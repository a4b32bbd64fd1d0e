//! What the process says of itself on standard error, and how much: a level, with exceptions per part, changeable while it
//! runs. Access logs are another thing and have their own way out.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use parking_lot::Mutex;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Layer as _, Registry, fmt as layer, reload};

/// A level or an exception that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a log level: use off, critical, error, warning, info, debug or trace")]
pub struct LevelError(String);

/// How much is logged; `info,http=debug` is info, but debug for what the part `http` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Levels {
    default: LevelFilter,
    parts: BTreeMap<String, LevelFilter>,
}

impl Default for Levels {
    fn default() -> Self {
        Self { default: LevelFilter::INFO, parts: BTreeMap::new() }
    }
}

/// One level, in tracing's words or Envoy's.
pub fn parse_level(text: &str) -> Result<LevelFilter, LevelError> {
    match text.to_ascii_lowercase().as_str() {
        "off" => Ok(LevelFilter::OFF),
        "critical" | "error" => Ok(LevelFilter::ERROR),
        "warn" | "warning" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        _ => Err(LevelError(text.to_owned())),
    }
}

impl FromStr for Levels {
    type Err = LevelError;

    fn from_str(text: &str) -> Result<Self, LevelError> {
        let mut levels = Self::default();
        for piece in text.split(',').map(str::trim).filter(|piece| !piece.is_empty()) {
            match piece.split_once(['=', ':']) {
                Some((part, level)) => levels.set(Some(part.trim()), parse_level(level.trim())?),
                None => levels.set(None, parse_level(piece)?),
            }
        }
        Ok(levels)
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.default)?;
        self.parts.iter().try_for_each(|(part, level)| write!(f, ",{part}={level}"))
    }
}

impl Levels {
    /// Sets the level of one part, or of everything: then the exceptions end.
    pub fn set(&mut self, part: Option<&str>, level: LevelFilter) {
        match part {
            Some(part) => drop(self.parts.insert(part.to_owned(), level)),
            None => (self.default, self.parts) = (level, BTreeMap::new()),
        }
    }

    /// The level of a part.
    pub fn of(&self, part: &str) -> LevelFilter {
        self.parts.get(part).copied().unwrap_or(self.default)
    }

    /// As tracing's filter. `own` is the crate whose modules are the parts; other crates say warnings at most, unless
    /// everything is wanted, because at `info` and below they log each frame.
    fn targets(&self, own: &str) -> Targets {
        let others = if self.default >= LevelFilter::TRACE {
            self.default
        } else {
            self.default.min(LevelFilter::WARN)
        };
        let targets = Targets::new().with_default(others).with_target("osier", self.default);
        targets.with_targets(self.parts.iter().map(|(part, level)| (format!("{own}::{part}"), *level)))
    }
}

/// The running log.
#[derive(Debug)]
pub struct Logging {
    own: &'static str,
    levels: Mutex<Levels>,
    handle: reload::Handle<Targets, Registry>,
}

impl Logging {
    /// Starts logging for a process whose parts are the modules of the crate `own` (`osier_proxy`). Once per process.
    pub fn start(own: &'static str, levels: Levels, json: bool) -> Result<Self, TryInitError> {
        let (filter, handle) = reload::Layer::new(levels.targets(own));
        let plain = layer::layer().with_writer(std::io::stderr).with_ansi(false);
        let format = if json { plain.json().boxed() } else { plain.boxed() };
        tracing_subscriber::registry().with(format.with_filter(filter)).try_init()?;
        Ok(Self { own, levels: Mutex::new(levels), handle })
    }

    /// The levels in force.
    pub fn levels(&self) -> Levels {
        self.levels.lock().clone()
    }

    /// Changes the levels in force.
    pub fn change(&self, change: impl FnOnce(&mut Levels)) {
        let mut levels = self.levels.lock();
        change(&mut levels);
        // The subscriber lives as long as the process, so the handle is never dangling.
        let _ = self.handle.reload(levels.targets(self.own));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_and_written() {
        for (text, shown) in [
            ("", "info"),
            ("debug", "debug"),
            ("warning,http=trace, xds:off", "warn,http=trace,xds=off"),
            ("critical", "error"),
            ("http=debug,error", "error"),
        ] {
            assert_eq!(text.parse::<Levels>().expect(text).to_string(), shown, "{text}");
        }
        assert_eq!("http=loud".parse::<Levels>(), Err(LevelError("loud".into())));
    }

    #[test]
    fn other_crates_are_quieter_unless_everything_is_wanted() {
        let enabled = |levels: &str, target: &str, level| {
            levels.parse::<Levels>().expect(levels).targets("osier_proxy").would_enable(target, &level)
        };
        use tracing::Level;
        assert!(enabled("debug", "osier_proxy::http", Level::DEBUG));
        assert!(enabled("debug", "osier_core::drain", Level::DEBUG));
        assert!(!enabled("debug", "h2::proto", Level::DEBUG));
        assert!(enabled("trace", "h2::proto", Level::TRACE));
        assert!(enabled("info,http=debug", "osier_proxy::http::server", Level::DEBUG));
        assert!(!enabled("info,http=debug", "osier_proxy::xds", Level::DEBUG));
        assert!(!enabled("error", "h2::proto", Level::WARN));
    }
}
