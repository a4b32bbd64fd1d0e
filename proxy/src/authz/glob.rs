//! Texts with a star between each two of them: `a*b*c`.

/// What a name begins with, what lies in it in this order, and what it ends with. The stars between them stand for anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    start: Box<str>,
    middle: Box<[Box<str>]>,
    end: Box<str>,
}

impl Glob {
    /// Of the parts between stars; `None` where there is no star.
    pub fn new(parts: &[String]) -> Option<Self> {
        let [start, middle @ .., end] = parts else { return None };
        let middle = middle.iter().map(|part| part.as_str().into()).collect();
        Some(Self { start: start.as_str().into(), middle, end: end.as_str().into() })
    }

    /// Of a text that may lie anywhere.
    pub fn around(text: &str) -> Self {
        Self { start: "".into(), middle: Box::new([text.into()]), end: "".into() }
    }

    /// True for a name that is so.
    pub fn matches(&self, name: &str) -> bool {
        let inner = name.strip_prefix(&*self.start).and_then(|rest| rest.strip_suffix(&*self.end));
        let Some(mut rest) = inner else { return false };
        // The first place of each leaves the most for those that follow.
        self.middle.iter().all(|part| match rest.find(&**part) {
            Some(at) => {
                rest = &rest[at + part.len()..];
                true
            }
            None => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (glob, matched, others) in [
            ("a*", &["a", "ab"][..], &["", "ba"][..]),
            ("*b", &["b", "ab"], &["", "ba"]),
            ("*", &["", "a"], &[]),
            ("ab*ba", &["abba", "abxba"], &["aba", "ab", "ba"]),
            ("*/ns/a/*", &["/ns/a/", "x/ns/a/y"], &["/ns/a", "ns/a/"]),
            ("a*b*b*c", &["abbc", "axbxbxc"], &["abc", "abbd"]),
        ] {
            let parts: Vec<String> = glob.split('*').map(str::to_owned).collect();
            let parsed = Glob::new(&parts).expect("a star");
            for name in matched {
                assert!(parsed.matches(name), "{glob} should match {name}");
            }
            for name in others {
                assert!(!parsed.matches(name), "{glob} should not match {name}");
            }
        }
        assert_eq!(Glob::new(&["a".to_owned()]), None);
    }
}
