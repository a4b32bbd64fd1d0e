//! Names in the form of SPIFFE, and the conditions on their parts, as Istio's regexes for them mean: `.*/ns/NS/.*` for a namespace,
//! `spiffe://.+/ns/NS/(.+/|)sa/SA(/.+)?` for an account.
//!
//! A name is taken apart once per decision, and then a rule costs a comparison. Names in any other form are searched as a regex would.

use super::Glob;

/// The parts of `spiffe://DOMAIN/ns/NS/sa/SA`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload<'a> {
    namespace: &'a str,
    account: &'a str,
}

impl<'a> Workload<'a> {
    /// Takes a name apart; `None` where a regex could find its words in other places as well.
    pub fn of(name: &'a str) -> Option<Self> {
        let mut parts = name.strip_prefix("spiffe://")?.split('/');
        let mut next = || parts.next().filter(|part| !part.is_empty());
        let (domain, ns, namespace, sa, account) = (next()?, next()?, next()?, next()?, next()?);
        let plain = ns == "ns" && sa == "sa" && domain != "ns" && namespace != "ns" && parts.next().is_none();
        plain.then_some(Self { namespace, account })
    }
}

/// A namespace, in any trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    name: Box<str>,
    anywhere: Glob,
}

impl Namespace {
    /// The namespace `name`, which has no slash.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), anywhere: Glob::around(&format!("/ns/{name}/")) }
    }

    /// True for a workload of it.
    pub fn holds(&self, workload: &Workload<'_>) -> bool {
        *self.name == *workload.namespace
    }

    /// True for the names that the regex matches whole.
    pub fn matches(&self, principal: &str) -> bool {
        self.anywhere.matches(principal)
    }
}

/// A service account of a namespace, in any trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    namespace: Box<str>,
    name: Box<str>,
}

impl ServiceAccount {
    /// The account `name` of `namespace`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// True for a workload of it.
    pub fn holds(&self, workload: &Workload<'_>) -> bool {
        *self.name == *workload.account && *self.namespace == *workload.namespace
    }

    /// True for the names that the regex matches whole.
    pub fn matches(&self, principal: &str) -> bool {
        let Some(rest) = principal.strip_prefix("spiffe://") else { return false };
        // A regex tries all places, so all are tried here.
        let after = |rest: &str| {
            let rest = rest.strip_prefix("/ns/")?.strip_prefix(&*self.namespace)?.strip_prefix('/')?;
            Some(self.account_is_in(rest))
        };
        slashes(rest).any(|at| at > 0 && after(&rest[at..]) == Some(true))
    }

    fn account_is_in(&self, rest: &str) -> bool {
        let is_here = |rest: &str| {
            let tail = rest.strip_prefix("sa/").and_then(|rest| rest.strip_prefix(&*self.name));
            tail.is_some_and(|tail| tail.is_empty() || (tail.len() >= 2 && tail.starts_with('/')))
        };
        is_here(rest) || slashes(rest).any(|at| at > 0 && is_here(&rest[at + 1..]))
    }
}

fn slashes(text: &str) -> impl Iterator<Item = usize> {
    text.bytes().enumerate().filter(|(_, byte)| *byte == b'/').map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::config::regex;

    #[test]
    fn both_are_what_istios_regexes_mean() {
        let (account, namespace) = (ServiceAccount::new("a", "b"), Namespace::new("a"));
        let of_account = regex::full_match("spiffe://.+/ns/a/(.+/|)sa/b(/.+)?").expect("a regex");
        let of_namespace = regex::full_match(".*/ns/a/.*").expect("a regex");
        let mut random = StdRng::seed_from_u64(7);
        let parts =
            ["spiffe://", "/", "/ns/a/", "sa/b", "ns/a", "sa", "b", "x", "/sa/b", "x/ns/a/sa/b", "ns"];
        let (mut matched, mut plain) = (0, 0);
        for _ in 0..30_000 {
            let count = random.random_range(0..8);
            let name: String = (0..count).map(|_| parts[random.random_range(0..parts.len())]).collect();
            let name = if random.random_ratio(3, 4) { format!("spiffe://{name}") } else { name };
            let wanted = (of_account.is_match(name.as_bytes()), of_namespace.is_match(name.as_bytes()));
            assert_eq!((account.matches(&name), namespace.matches(&name)), wanted, "{name}");
            matched += u32::from(wanted.0);
            if let Some(workload) = Workload::of(&name) {
                assert_eq!((account.holds(&workload), namespace.holds(&workload)), wanted, "{name}");
                plain += 1;
            }
        }
        assert!(matched > 100 && plain > 100, "{matched} matched, {plain} plain");
    }

    #[test]
    fn names_whose_words_are_ambiguous_are_searched() {
        for (name, plain) in [
            ("spiffe://td/ns/a/sa/b", true),
            ("spiffe://ns/ns/a/sa/b", false),
            ("spiffe://td/ns/ns/sa/b", false),
            ("spiffe://td/ns/a/sa/b/c", false),
            ("spiffe://td/ns//sa/b", false),
            ("spiffe://td/ns/a/sa/", false),
            ("a.example", false),
        ] {
            assert_eq!(Workload::of(name).is_some(), plain, "{name}");
        }
    }
}
