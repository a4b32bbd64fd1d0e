//! Kubernetes label selectors.

use std::sync::Arc;

use osier_core::labels::Labels;

/// Requirements on labels, all of which must hold. Without any, everything is selected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// What must hold; an entry of `matchLabels` is `In` with one value.
    pub requirements: Vec<Requirement>,
}

/// One requirement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// Name of the label.
    pub key: Arc<str>,
    /// How its value is compared.
    pub operator: Operator,
    /// Values; none for `Exists` and `DoesNotExist`.
    pub values: Vec<Arc<str>>,
}

/// How a label is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// It has one of the values.
    In,
    /// It has none of them, or is absent.
    NotIn,
    /// It is there.
    Exists,
    /// It is absent.
    DoesNotExist,
}

impl LabelSelector {
    /// True if all requirements hold for labels that `label` looks up.
    pub fn selects<'l>(&self, label: impl Fn(&str) -> Option<&'l str>) -> bool {
        self.requirements.iter().all(|requirement| requirement.holds(label(&requirement.key)))
    }

    /// True if all requirements hold for these labels.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.selects(|key| labels.get(key))
    }
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let listed = || value.is_some_and(|value| self.values.iter().any(|v| **v == *value));
        match self.operator {
            Operator::In => listed(),
            Operator::NotIn => !listed(),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}
