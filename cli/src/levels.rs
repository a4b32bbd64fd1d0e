//! Log levels as the admin interfaces of proxies and pilots take and show them.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

/// `debug,http:trace` as the admin interface takes it.
pub fn query(levels: &str) -> Result<String> {
    let (mut all, mut parts) = (None, Vec::new());
    for piece in levels.split(',').map(str::trim).filter(|piece| !piece.is_empty()) {
        // Goes into a path as it is.
        if !piece.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b':' | b'=' | b'_')) {
            bail!("`{piece}` is no level and no part:level");
        }
        match piece.split_once([':', '=']) {
            Some((part, level)) => parts.push(format!("{part}:{level}")),
            None => all = Some(piece),
        }
    }
    let all = all.map(|level| format!("level={level}"));
    let parts = (!parts.is_empty()).then(|| format!("paths={}", parts.join(",")));
    match [all, parts].into_iter().flatten().collect::<Vec<_>>().join("&") {
        query if query.is_empty() => bail!("--level needs a level, or part:level"),
        query => Ok(format!("?{query}")),
    }
}

/// The levels of an answer, by part.
pub fn read(answer: &str) -> BTreeMap<String, String> {
    let pairs = answer.lines().filter_map(|line| line.split_once(':'));
    let pairs = pairs.map(|(part, level)| (part.trim().to_owned(), level.trim().to_owned()));
    pairs.filter(|(_, level)| !level.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_become_a_query() {
        for (levels, wanted) in [
            ("debug", "?level=debug"),
            ("http:debug, xds=info", "?paths=http:debug,xds:info"),
            ("http:trace,warn", "?level=warn&paths=http:trace"),
        ] {
            assert_eq!(query(levels).expect(levels), wanted);
        }
        for wrong in ["", ",", "a&b", "http:de bug", "a/b"] {
            assert!(query(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_answer_is_read() {
        let levels = read("active loggers:\n  http : info\n  xds  : debug\n");
        assert_eq!(levels, BTreeMap::from([("http".into(), "info".into()), ("xds".into(), "debug".into())]));
    }
}
