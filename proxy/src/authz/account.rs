//! A workload's account in a namespace, as Istio's regex for it means: `spiffe://.+/ns/NS/(.+/|)sa/SA(/.+)?`.

/// A service account of a namespace, in any trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// `/ns/NS/`.
    namespace: Box<str>,
    /// `sa/SA`.
    account: Box<str>,
}

impl ServiceAccount {
    /// The account `name` of `namespace`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: format!("/ns/{namespace}/").into(), account: format!("sa/{name}").into() }
    }

    /// True for the names that the regex matches whole.
    pub fn matches(&self, principal: &str) -> bool {
        let Some(rest) = principal.as_bytes().strip_prefix(b"spiffe://") else { return false };
        // A regex tries all places, so all are tried here; real names have one.
        let mut after = places(rest, self.namespace.as_bytes()).filter(|(at, _)| *at > 0);
        after.any(|(_, rest)| self.account_is_in(rest))
    }

    fn account_is_in(&self, rest: &[u8]) -> bool {
        places(rest, self.account.as_bytes()).any(|(at, tail)| {
            let begins = at == 0 || (at >= 2 && rest[at - 1] == b'/');
            begins && (tail.is_empty() || (tail.len() >= 2 && tail[0] == b'/'))
        })
    }
}

/// Where `part` is in `text`, overlaps included, and what follows it there.
fn places<'t>(text: &'t [u8], part: &'t [u8]) -> impl Iterator<Item = (usize, &'t [u8])> {
    (0..text.len()).filter_map(move |at| Some((at, text[at..].strip_prefix(part)?)))
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::config::regex;

    #[test]
    fn it_is_what_istios_regex_means() {
        let (account, mut random) = (ServiceAccount::new("a", "b"), StdRng::seed_from_u64(7));
        let regex = regex::full_match("spiffe://.+/ns/a/(.+/|)sa/b(/.+)?").expect("a regex");
        let parts = ["spiffe://", "/", "/ns/a/", "sa/b", "ns/a", "sa", "b", "x", "/sa/b"];
        let mut matched = 0;
        for _ in 0..20_000 {
            let count = random.random_range(0..8);
            let name: String = (0..count).map(|_| parts[random.random_range(0..parts.len())]).collect();
            let name = if random.random_ratio(3, 4) { format!("spiffe://{name}") } else { name };
            assert_eq!(account.matches(&name), regex.is_match(name.as_bytes()), "{name}");
            matched += u32::from(account.matches(&name));
        }
        assert!(matched > 100, "{matched}");
    }
}
