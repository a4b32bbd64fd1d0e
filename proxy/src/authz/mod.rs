//! Who may do what: Envoy's RBAC, for requests and for opaque connections.
//!
//! `compile::rbac` makes [`Filter`]s of messages; a chain holds its own. [`check`] goes through them in order with the [`Facts`]
//! of a request or connection, and the first that denies has the last word. Everything that a decision needs is there before the
//! first request: matchers, the names of policies, the words of a denial, the places to count. So a check allocates nothing and
//! takes no lock.
//!
//! Invariants: what a rule can't know (the identity of a plaintext client, a header that isn't there) makes the condition
//! false, and its negation true. A repeated header is looked at line by line, never joined. A shadow decides nothing.

mod account;
pub mod counters;
mod facts;
mod filter;
mod glob;
mod path_template;
mod rules;

pub use account::{Namespace, ServiceAccount, Workload};
pub use facts::Facts;
pub use filter::{Denial, Filter, check, still_allowed};
pub use glob::Glob;
pub use path_template::PathTemplate;
pub use rules::{Action, Condition, NameMatch, Rule, Rules};

/// Header of a 403 that names the deciding policy, where the operator wants it.
pub const DENIED_BY: &str = "x-osier-denied-by";
