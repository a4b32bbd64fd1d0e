//! What the process says of itself on standard error, and how much: a level, with exceptions per part, changeable while it
//! runs, by the page `/logging` of its admin interface. Access logs are another thing and have their own way out.

use std::collections::BTreeMap;
use std::fmt;
use std::io::IsTerminal as _;
use std::str::FromStr;

use http::StatusCode;
use parking_lot::Mutex;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Layer as _, Registry, fmt as layer, reload};

use crate::admin::{Reply, Request};

/// A level or an exception that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// No level.
    #[error("`{0}` is not a log level: use off, critical, error, warning, info, debug or trace")]
    Level(String),
    /// No part of the program.
    #[error("there is no part `{0}`")]
    Part(String),
    /// No exception.
    #[error("`{0}` is not part:level")]
    Pair(String),
}

/// Whose log it is.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Its crate.
    pub own: &'static str,
    /// Modules of it whose level can be set.
    pub parts: &'static [&'static str],
    /// Crates of others that say nothing, because the program tells the same in its own words.
    pub silent: &'static [&'static str],
}

impl Program {
    /// Reads levels; their parts must be the program's. `own::part` is `part`, as targets of tracing are written.
    pub fn levels(&self, text: &str) -> Result<Levels, LevelError> {
        let mut levels = Levels::default();
        for piece in pieces(text) {
            match piece.split_once('=').or_else(|| piece.rsplit_once(':')) {
                Some((part, level)) => self.set(&mut levels, part.trim(), level.trim())?,
                None => levels.set(None, parse_level(piece)?),
            }
        }
        Ok(levels)
    }

    fn set(&self, levels: &mut Levels, part: &str, level: &str) -> Result<(), LevelError> {
        let prefix = part.strip_prefix(self.own).and_then(|rest| rest.strip_prefix("::"));
        let part = prefix.unwrap_or(part);
        if !self.parts.contains(&part) {
            return Err(LevelError::Part(part.to_owned()));
        }
        levels.set(Some(part), parse_level(level)?);
        Ok(())
    }

    /// One parameter of the page.
    fn change(&self, levels: &mut Levels, name: &str, value: &str) -> Result<(), LevelError> {
        match name {
            "level" => levels.set(None, parse_level(value)?),
            "paths" => {
                for pair in value.split(',') {
                    let pieces = pair.rsplit_once(':');
                    let (part, level) = pieces.ok_or_else(|| LevelError::Pair(pair.to_owned()))?;
                    self.set(levels, part, level)?;
                }
            }
            part => self.set(levels, part, value)?,
        }
        Ok(())
    }
}

fn pieces(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|piece| !piece.is_empty())
}

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
        _ => Err(LevelError::Level(text.to_owned())),
    }
}

impl FromStr for Levels {
    type Err = LevelError;

    fn from_str(text: &str) -> Result<Self, LevelError> {
        let mut levels = Self::default();
        for piece in pieces(text) {
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

    /// As tracing's filter. Other crates say warnings at most, unless everything is wanted, because at `info` and below they log
    /// each frame.
    fn targets(&self, program: &Program) -> Targets {
        let everything = self.default >= LevelFilter::TRACE;
        let others = if everything { self.default } else { self.default.min(LevelFilter::WARN) };
        let targets = Targets::new().with_default(others).with_target("osier", self.default);
        let silent = program.silent.iter().filter(|_| !everything);
        let targets = targets.with_targets(silent.map(|other| (*other, LevelFilter::OFF)));
        let own = program.own;
        targets.with_targets(self.parts.iter().map(|(part, level)| (format!("{own}::{part}"), *level)))
    }
}

/// The running log.
#[derive(Debug)]
pub struct Logging {
    program: Program,
    levels: Mutex<Levels>,
    handle: reload::Handle<Targets, Registry>,
}

impl Logging {
    /// Starts logging for a process. Once per process.
    pub fn start(program: Program, levels: Levels, json: bool) -> Result<Self, TryInitError> {
        let (filter, handle) = reload::Layer::new(levels.targets(&program));
        let plain = layer::layer().with_writer(std::io::stderr);
        let format = match json {
            true => plain.with_ansi(false).json().boxed(),
            false => plain.with_ansi(std::io::stderr().is_terminal()).boxed(),
        };
        tracing_subscriber::registry().with(format.with_filter(filter)).try_init()?;
        Ok(Self { program, levels: Mutex::new(levels), handle })
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
        let _ = self.handle.reload(levels.targets(&self.program));
    }

    /// The page `/logging`: `?level=`, `?paths=part:level,…`, `?part=level`; without any shows the levels. All or nothing is changed.
    pub fn page(&self, request: &Request) -> Reply {
        let mut levels = self.levels();
        for (name, value) in &request.query {
            if let Err(error) = self.program.change(&mut levels, name, value) {
                return Reply::status(StatusCode::BAD_REQUEST, format!("error: {error}\n"));
            }
        }
        if !request.query.is_empty() {
            self.change(|current| *current = levels.clone());
        }
        let parts = self.program.parts;
        let width = parts.iter().map(|part| part.len()).max().unwrap_or(0);
        let line = |part: &&str| format!("  {part:width$}: {}\n", levels.of(part));
        Reply::text(format!("active loggers:\n{}", parts.iter().map(line).collect::<String>()))
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
        assert_eq!("http=loud".parse::<Levels>(), Err(LevelError::Level("loud".into())));
    }

    const PROGRAM: Program =
        Program { own: "osier_proxy", parts: &["http", "xds"], silent: &["kube_runtime"] };

    #[test]
    fn parts_are_the_programs() {
        for (text, shown) in [
            ("", "info"),
            ("debug", "debug"),
            ("info,osier_proxy::http=debug", "info,http=debug"),
            ("osier_proxy::xds:off,http:trace", "info,http=trace,xds=off"),
        ] {
            assert_eq!(PROGRAM.levels(text).expect(text).to_string(), shown, "{text}");
        }
        assert_eq!(PROGRAM.levels("http=loud"), Err(LevelError::Level("loud".into())));
        assert_eq!(PROGRAM.levels("htp=debug"), Err(LevelError::Part("htp".into())));
    }

    #[test]
    fn other_crates_are_quieter_unless_everything_is_wanted() {
        let enabled = |levels: &str, target: &str, level| {
            levels.parse::<Levels>().expect(levels).targets(&PROGRAM).would_enable(target, &level)
        };
        use tracing::Level;
        assert!(enabled("debug", "osier_proxy::http", Level::DEBUG));
        assert!(enabled("debug", "osier_core::drain", Level::DEBUG));
        assert!(!enabled("debug", "h2::proto", Level::DEBUG));
        assert!(enabled("trace", "h2::proto", Level::TRACE));
        assert!(enabled("info,http=debug", "osier_proxy::http::server", Level::DEBUG));
        assert!(!enabled("info,http=debug", "osier_proxy::xds", Level::DEBUG));
        assert!(!enabled("error", "h2::proto", Level::WARN));
        assert!(!enabled("debug", "kube_runtime::watcher", Level::ERROR));
        assert!(enabled("trace", "kube_runtime::watcher", Level::ERROR));
    }
}
