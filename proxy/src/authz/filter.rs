//! The filters of a chain, in order.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::counters::{Count, Tally};
use super::{Action, Facts, Rules};

/// One RBAC filter: what it enforces, and what it would enforce.
#[derive(Debug)]
pub struct Filter {
    /// Enforced, and where that is counted.
    pub enforced: Option<(Rules, Arc<Tally>)>,
    /// Evaluated and counted only.
    pub shadow: Option<(Rules, Arc<Tally>)>,
}

impl Filter {
    /// True where it asks for tokens.
    pub fn looks_at_tokens(&self) -> bool {
        self.enforced.iter().chain(&self.shadow).any(|(rules, _)| rules.looks_at_tokens())
    }
}

/// What is said of what is denied.
#[derive(Debug)]
pub struct Denial {
    /// Name of the policy and rule; `none` where no rule allowed it. Holds no white space.
    pub policy: Box<str>,
    /// The same as access logs have it.
    pub details: Box<str>,
    /// How often it was said.
    pub count: Count,
}

impl Denial {
    /// A denial by the policy called `name`.
    pub fn new(name: &str, count: Count) -> Self {
        // A line of an access log is split at spaces.
        let policy: String =
            name.chars().map(|c| if c.is_whitespace() || c.is_control() { '_' } else { c }).collect();
        let details = format!("rbac_access_denied_matched_policy[{policy}]");
        Self { policy: policy.into(), details: details.into(), count }
    }

    /// Counts that it was said.
    pub(super) fn note(&self) {
        self.count.fetch_add(1, Relaxed);
    }
}

/// Goes through the filters; the first that denies ends it. `worker` is the number of the worker, for counting.
pub fn check<'f>(filters: &'f [Filter], facts: &Facts<'_>, worker: usize) -> Result<(), &'f Denial> {
    for filter in filters {
        if let Some((rules, tally)) = &filter.shadow {
            let denial = rules.deny(facts);
            denial.inspect(|denial| denial.note());
            tally.count(worker, denial.is_none());
        }
        if let Some((rules, tally)) = &filter.enforced {
            let denial = rules.deny(facts);
            tally.count(worker, denial.is_none());
            if let Some(denial) = denial {
                denial.note();
                return Err(denial);
            }
        }
    }
    Ok(())
}

/// True where the filters would let it go on. Counts nothing: for what was counted when it began.
pub fn still_allowed<'f>(filters: &'f [Filter], facts: &Facts<'_>) -> Result<(), &'f Denial> {
    let enforced = filters.iter().filter_map(|filter| filter.enforced.as_ref());
    let decide = enforced.filter(|(rules, _)| rules.action != Action::Log);
    let mut denials = decide.filter_map(|(rules, _)| rules.deny(facts));
    denials.next().map_or(Ok(()), Err)
}
