//! Whether a command printed what the page shows.
//!
//! `…` stands for anything: within a line for any letters, alone on a line for any number of lines. How wide columns are doesn't
//! count, nor do empty lines. All else must be the same, in the same order.

/// Compares; the difference in words.
pub fn compare(shown: &[String], printed: &str) -> Result<(), String> {
    let shown: Vec<String> = shown.iter().map(|line| squeeze(line)).filter(|line| !line.is_empty()).collect();
    let printed: Vec<String> = printed.lines().map(squeeze).filter(|line| !line.is_empty()).collect();
    // How many printed lines the lines of the page so far may be; several where a gap is open.
    let mut reachable = vec![false; printed.len() + 1];
    reachable[0] = true;
    let mut furthest = 0;
    for line in &shown {
        let mut next = vec![false; printed.len() + 1];
        for (at, _) in reachable.iter().enumerate().filter(|(_, is)| **is) {
            if line == "…" {
                next[at..].fill(true);
            } else if printed.get(at).is_some_and(|text| matches(line, text)) {
                next[at + 1] = true;
                furthest = furthest.max(at + 1);
            }
        }
        reachable = next;
        if !reachable.contains(&true) {
            let instead = printed.get(furthest).map_or("nothing more".to_owned(), |text| format!("{text:?}"));
            return Err(format!("the page shows {line:?}, printed was {instead}"));
        }
    }
    if reachable[printed.len()] {
        return Ok(());
    }
    let more = printed.get(furthest).map_or("", String::as_str);
    Err(format!("the page shows no more lines, printed was {more:?}"))
}

/// Words with one blank between them.
fn squeeze(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether a line is that of the page.
fn matches(shown: &str, printed: &str) -> bool {
    let mut parts: Vec<&str> = shown.split('…').collect();
    let Some(mut rest) = printed.strip_prefix(parts.remove(0)) else { return false };
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Run by the suite `tidy`: no suite runs the tests of this library.
pub mod checks {
    use super::*;

    /// A check.
    pub fn lines_match_in_order_with_gaps() {
        for (shown, printed, same) in [
            ("", "", true),
            ("", "a", false),
            ("a", "", false),
            ("a  b\n\nc", "a b\nc", true),
            ("a\nb", "b\na", false),
            ("a\nb", "a", false),
            ("a", "a\nb", false),
            ("…", "", true),
            ("…\nc", "a\nb\nc", true),
            ("…\nc", "a\nb\nc\nd", false),
            ("a\n…\na\n…", "a\nb\na\nc", true),
            ("pod-… 2/2 Running 0 …", "pod-7f9-x   2/2   Running   0   3s", true),
            ("pod-… 2/2 Running 0 …", "pod-7f9-x   1/2   Running   0   3s", false),
            ("… 200", "  1,200", false),
            ("… 200", "1 200", true),
            ("a…a", "a", false),
            ("…b…", "abc", true),
        ] {
            let lines: Vec<String> = shown.lines().map(str::to_owned).collect();
            assert_eq!(compare(&lines, printed).is_ok(), same, "{shown:?} and {printed:?}");
        }
    }

    /// A check.
    pub fn a_difference_names_the_line() {
        let shown = ["a".to_owned(), "b".to_owned()];
        assert_eq!(compare(&shown, "a\nc"), Err(r#"the page shows "b", printed was "c""#.into()));
        assert_eq!(compare(&shown, "a"), Err(r#"the page shows "b", printed was nothing more"#.into()));
        assert_eq!(
            compare(&shown, "a\nb\nc"),
            Err(r#"the page shows no more lines, printed was "c""#.into())
        );
    }
}
