//! Header operations of a VirtualService: remove, then set, then add, each sorted by name.

use osier_proto::types::core::{HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction};

use crate::model::{HeaderChange, HeaderOps};

/// Operations on requests and responses, as every level of a route table carries them.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Operations {
    pub request_add: Vec<HeaderValueOption>,
    pub request_remove: Vec<String>,
    pub response_add: Vec<HeaderValueOption>,
    pub response_remove: Vec<String>,
    /// New host, where the request's `host` or `:authority` is set: that is a host rewrite, not a header operation.
    pub authority: Option<String>,
}

impl Operations {
    /// Reads the operations of one level.
    pub fn of(ops: &HeaderOps) -> Self {
        let (request_add, authority) = additions(&ops.request);
        let (response_add, _) = additions(&ops.response);
        Self {
            request_add,
            request_remove: removals(&ops.request),
            response_add,
            response_remove: removals(&ops.response),
            authority,
        }
    }

    /// Appends the operations of a lower level to these; the host of this level wins.
    pub fn append(&mut self, lower: Self) {
        self.request_add.extend(lower.request_add);
        self.request_remove.extend(lower.request_remove);
        self.response_add.extend(lower.response_add);
        self.response_remove.extend(lower.response_remove);
        self.authority = self.authority.take().or(lower.authority);
    }
}

/// `set` entries, then `add` entries; and the host that they set.
fn additions(change: &HeaderChange) -> (Vec<HeaderValueOption>, Option<String>) {
    let mut authority = None;
    let mut additions = Vec::new();
    let groups = [
        (&change.set, HeaderAppendAction::OverwriteIfExistsOrAdd),
        (&change.add, HeaderAppendAction::AppendIfExistsOrAdd),
    ];
    for (group, action) in groups {
        for (name, value) in group {
            if is_authority(name) {
                authority = authority.or_else(|| Some(value.to_string()));
            } else if !name.starts_with(':') {
                additions.push(option(name, value, action));
            }
        }
    }
    (additions, authority)
}

fn removals(change: &HeaderChange) -> Vec<String> {
    change.remove.iter().filter(|n| !is_authority(n) && !n.starts_with(':')).map(|n| n.to_string()).collect()
}

fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

fn option(name: &str, value: &str, action: HeaderAppendAction) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: name.to_string(), value: value.to_string(), ..Default::default() }),
        append_action: action as i32,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(std::sync::Arc<str>, std::sync::Arc<str>)> {
        list.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect()
    }

    #[test]
    fn set_comes_before_add_and_the_host_is_a_rewrite() {
        let ops = HeaderOps {
            request: HeaderChange {
                set: pairs(&[("Host", "new.example.com"), ("a", "1")]),
                add: pairs(&[("b", "%REQ(x)%"), (":path", "/no")]),
                remove: vec!["c".into(), "host".into()],
            },
            response: HeaderChange { set: pairs(&[("host", "dropped")]), ..Default::default() },
        };
        let got = Operations::of(&ops);
        assert_eq!(got.authority.as_deref(), Some("new.example.com"));
        let names: Vec<_> = got
            .request_add
            .iter()
            .map(|o| (o.header.as_ref().unwrap().key.as_str(), o.append_action()))
            .collect();
        assert_eq!(
            names,
            [
                ("a", HeaderAppendAction::OverwriteIfExistsOrAdd),
                ("b", HeaderAppendAction::AppendIfExistsOrAdd)
            ]
        );
        assert_eq!(got.request_remove, ["c"]);
        assert!(got.response_add.is_empty());
    }

    #[test]
    fn the_upper_levels_host_wins() {
        let host = |value| HeaderOps {
            request: HeaderChange { set: pairs(&[(":authority", value)]), ..Default::default() },
            ..Default::default()
        };
        let mut route = Operations::of(&host("route"));
        route.append(Operations::of(&host("destination")));
        assert_eq!(route.authority.as_deref(), Some("route"));
    }
}
