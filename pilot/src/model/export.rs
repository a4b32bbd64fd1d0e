//! Who may see a resource: `exportTo`.

use std::collections::BTreeSet;
use std::sync::Arc;

/// `exportTo` as written: `.`, `*`, `~` or names. Empty means the mesh default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ExportTo(pub Box<[Arc<str>]>);

/// A resolved `exportTo`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Exports {
    /// Everybody.
    Public,
    /// Nobody.
    Hidden,
    /// These namespaces.
    Namespaces(BTreeSet<Arc<str>>),
}

impl ExportTo {
    /// Resolves for a resource of `namespace`; `default` holds where nothing is written.
    pub fn resolve(&self, namespace: &Arc<str>, default: &ExportTo) -> Exports {
        let entries = if self.0.is_empty() { &default.0 } else { &self.0 };
        if entries.is_empty() || entries.iter().any(|e| &**e == "*") {
            return Exports::Public;
        }
        if entries.iter().any(|e| &**e == "~") {
            return Exports::Hidden;
        }
        let own_or_named = |e: &Arc<str>| if &**e == "." { namespace.clone() } else { e.clone() };
        Exports::Namespaces(entries.iter().map(own_or_named).collect())
    }
}

impl<const N: usize> From<[&str; N]> for ExportTo {
    fn from(entries: [&str; N]) -> Self {
        Self(entries.into_iter().map(Arc::from).collect())
    }
}

impl Exports {
    /// True if clients of `namespace` see the resource.
    pub fn visible_to(&self, namespace: &str) -> bool {
        match self {
            Self::Public => true,
            Self::Hidden => false,
            Self::Namespaces(names) => names.contains(namespace),
        }
    }

    /// True if only `namespace` itself sees it.
    pub fn private_to(&self, namespace: &str) -> bool {
        matches!(self, Self::Namespaces(names) if names.len() == 1 && names.contains(namespace))
    }

    /// True if everybody that `other` names is named here, and more.
    pub fn proper_superset_of(&self, other: &Exports) -> bool {
        match (self, other) {
            (Self::Public, Self::Public) => false,
            (Self::Public, _) => true,
            (_, Self::Public) | (Self::Hidden, _) => false,
            (Self::Namespaces(_), Self::Hidden) => true,
            (Self::Namespaces(a), Self::Namespaces(b)) => a.len() > b.len() && a.is_superset(b),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolution() {
        let named = |names: &[&str]| Exports::Namespaces(names.iter().map(|n| Arc::from(*n)).collect());
        let all = ExportTo::from(["*"]);
        let own = ExportTo::from(["."]);
        for (written, default, wanted) in [
            (ExportTo::default(), &all, Exports::Public),
            (ExportTo::default(), &own, named(&["prod"])),
            (ExportTo::default(), &ExportTo::default(), Exports::Public),
            (ExportTo::from(["*"]), &own, Exports::Public),
            (ExportTo::from(["~"]), &all, Exports::Hidden),
            (ExportTo::from(["."]), &all, named(&["prod"])),
            (ExportTo::from([".", "dev"]), &all, named(&["dev", "prod"])),
        ] {
            assert_eq!(written.resolve(&"prod".into(), default), wanted, "{written:?}");
        }
        assert!(named(&["prod"]).private_to("prod"));
        assert!(!named(&["prod", "dev"]).private_to("prod"));
        assert!(!Exports::Public.private_to("prod"));
    }

    #[test]
    fn supersets() {
        let named = |names: &[&str]| Exports::Namespaces(names.iter().map(|n| Arc::from(*n)).collect());
        for (a, b, wanted) in [
            (Exports::Public, named(&["a"]), true),
            (Exports::Public, Exports::Public, false),
            (named(&["a", "b"]), named(&["a"]), true),
            (named(&["a"]), named(&["a"]), false),
            (named(&["a"]), named(&["b"]), false),
            (named(&["a"]), Exports::Public, false),
        ] {
            assert_eq!(a.proper_superset_of(&b), wanted, "{a:?} > {b:?}");
        }
    }
}
