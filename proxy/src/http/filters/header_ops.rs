//! Header operations of weighted cluster, route, virtual host and route table.
//!
//! Within a level: removals, then replacements, then additions; all values are evaluated on what was there before the
//! level's additions. Levels go from the most specific to the least, unless the table says `most_specific_wins`.

use smallvec::SmallVec;

use crate::config::route::{AppendAction, HeaderAdd, HeaderName, HeaderOps};
use crate::http::fields::Fields;
use crate::http::head::{Known, RequestHead, ResponseHead};
use crate::http::template::Context;
use crate::telemetry::record::RequestRecord;

/// The levels that apply to one request, from the most specific one.
#[derive(Debug, Clone, Copy)]
pub struct Levels<'a> {
    /// Weighted cluster, route, virtual host, table.
    pub specific_first: [Option<&'a HeaderOps>; 4],
    /// Apply them the other way round.
    pub most_specific_wins: bool,
}

impl<'a> Levels<'a> {
    /// True where some level changes requests.
    pub fn change_requests(&self) -> bool {
        self.in_order().any(|ops| !ops.request_add.is_empty() || !ops.request_remove.is_empty())
    }

    fn in_order(&self) -> impl Iterator<Item = &'a HeaderOps> {
        let count = self.specific_first.len();
        let (levels, reverse) = (self.specific_first, self.most_specific_wins);
        (0..count).filter_map(move |at| levels[if reverse { count - 1 - at } else { at }])
    }
}

/// Applies all levels to a request.
pub fn apply_to_request(levels: &Levels<'_>, head: &mut RequestHead, record: &RequestRecord<'_>) {
    for ops in levels.in_order() {
        remove(&ops.request_remove, &mut head.fields);
        if ops.request_add.is_empty() {
            continue;
        }
        let context = Context { record, request: Some(head), response: None, trailers: None };
        let values = Values::evaluate(&ops.request_add, &context);
        for (add, value) in values.in_order(&ops.request_add) {
            // `host` is no field of ours: as an operation it rewrites the host.
            match &add.name {
                HeaderName::Known(Known::Host) => head.set_authority(value),
                name => set_or_append(&mut head.fields, add, name, value),
            }
        }
    }
}

/// Applies all levels to a response.
pub fn apply_to_response(
    levels: &Levels<'_>,
    head: &mut ResponseHead,
    request: &RequestHead,
    record: &RequestRecord<'_>,
) {
    for ops in levels.in_order() {
        remove(&ops.response_remove, &mut head.fields);
        if ops.response_add.is_empty() {
            continue;
        }
        let context = Context { record, request: Some(request), response: Some(head), trailers: None };
        let values = Values::evaluate(&ops.response_add, &context);
        for (add, value) in values.in_order(&ops.response_add) {
            set_or_append(&mut head.fields, add, &add.name, value);
        }
    }
}

fn remove(names: &[HeaderName], fields: &mut Fields) {
    for name in names {
        fields.remove(name.as_name());
    }
}

fn set_or_append(fields: &mut Fields, add: &HeaderAdd, name: &HeaderName, value: &[u8]) {
    match add.action {
        AppendAction::AppendIfExistsOrAdd => fields.append(name.as_name(), value),
        AppendAction::OverwriteIfExistsOrAdd => fields.set(name.as_name(), value),
        AppendAction::AddIfAbsent if !fields.contains(name.as_name()) => fields.append(name.as_name(), value),
        AppendAction::OverwriteIfExists if fields.contains(name.as_name()) => {
            fields.set(name.as_name(), value)
        }
        AppendAction::AddIfAbsent | AppendAction::OverwriteIfExists => {}
    }
}

/// The evaluated values of a level. Literals, which is what most are, stay where they are.
struct Values {
    text: Vec<u8>,
    /// Where the value of each addition ends in `text`; literals add nothing.
    ends: SmallVec<[usize; 8]>,
}

impl Values {
    fn evaluate(adds: &[HeaderAdd], context: &Context<'_>) -> Self {
        let mut text = Vec::new();
        let ends = adds.iter().map(|add| {
            if add.value.as_literal().is_none() {
                add.value.write(context, "", &mut text);
            }
            text.len()
        });
        let ends = ends.collect();
        Self { text, ends }
    }

    /// Replacements before additions; additions that came out empty are left out unless they shall be kept.
    fn in_order<'v>(&'v self, adds: &'v [HeaderAdd]) -> impl Iterator<Item = (&'v HeaderAdd, &'v [u8])> {
        let replaces = |add: &HeaderAdd| {
            matches!(add.action, AppendAction::OverwriteIfExistsOrAdd | AppendAction::OverwriteIfExists)
        };
        let value = |at: usize, add: &'v HeaderAdd| {
            let start = if at == 0 { 0 } else { self.ends[at - 1] };
            let value = add.value.as_literal().unwrap_or(&self.text[start..self.ends[at]]);
            (!value.is_empty() || add.keep_empty).then_some((add, value))
        };
        let all = move || adds.iter().enumerate();
        all()
            .filter(move |(_, add)| replaces(add))
            .chain(all().filter(move |(_, add)| !replaces(add)))
            .filter_map(move |(at, add)| value(at, add))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::Version;
    use crate::http::template::Template;
    use crate::telemetry::record::Downstream;

    fn add(name: &str, value: &str, action: AppendAction) -> HeaderAdd {
        HeaderAdd { name: name.into(), value: Template::parse(value).unwrap(), action, keep_empty: false }
    }

    fn ops(remove: &[&str], adds: Vec<HeaderAdd>) -> HeaderOps {
        let remove: Box<[HeaderName]> = remove.iter().map(|name| HeaderName::from(*name)).collect();
        HeaderOps {
            request_remove: remove.clone(),
            request_add: adds.clone().into(),
            response_remove: remove,
            response_add: adds.into(),
        }
    }

    fn record() -> RequestRecord<'static> {
        let address = "10.0.0.1:80".parse().unwrap();
        let downstream = Downstream {
            connection_id: 1,
            local: address,
            remote: address,
            direct_remote: address,
            server_name: None,
            identity: None,
            own_identity: None,
        };
        RequestRecord::new(downstream, Some(Version::Http11), std::time::Instant::now())
    }

    fn applied(
        levels: [Option<&HeaderOps>; 4],
        most_specific_wins: bool,
        given: &[(&str, &str)],
    ) -> Vec<String> {
        let levels = Levels { specific_first: levels, most_specific_wins };
        let mut head = RequestHead::new();
        for (name, value) in given {
            head.fields.append(*name, value.as_bytes());
        }
        let mut response = ResponseHead::new(200);
        response.fields = head.fields.clone();
        apply_to_response(&levels, &mut response, &head, &record());
        apply_to_request(&levels, &mut head, &record());
        assert_eq!(head.fields, response.fields, "both directions work alike");
        let line = |field: crate::http::head::Field<'_>| {
            format!("{}: {}", String::from_utf8_lossy(field.name), String::from_utf8_lossy(field.value))
        };
        head.fields.iter().map(line).collect()
    }

    #[test]
    fn actions() {
        use AppendAction::*;
        let one = |action| ops(&[], vec![add("x-a", "new", action)]);
        for (action, with, without) in [
            (AppendIfExistsOrAdd, &["x-a: old", "x-a: new"][..], &["x-a: new"][..]),
            (AddIfAbsent, &["x-a: old"], &["x-a: new"]),
            (OverwriteIfExistsOrAdd, &["x-a: new"], &["x-a: new"]),
            (OverwriteIfExists, &["x-a: new"], &[]),
        ] {
            let ops = one(action);
            assert_eq!(applied([None, Some(&ops), None, None], false, &[("x-a", "old")]), with, "{action:?}");
            assert_eq!(applied([None, Some(&ops), None, None], false, &[]), without, "{action:?}");
        }
    }

    #[test]
    fn removals_then_replacements_then_additions() {
        use AppendAction::*;
        let ops = ops(
            &["X-Gone", "x-a"],
            vec![add("x-a", "added", AppendIfExistsOrAdd), add("x-a", "set", OverwriteIfExistsOrAdd)],
        );
        let given = [("x-gone", "1"), ("x-a", "old"), ("x-b", "kept")];
        assert_eq!(
            applied([None, Some(&ops), None, None], false, &given),
            ["x-b: kept", "x-a: set", "x-a: added"]
        );
    }

    #[test]
    fn the_order_of_levels_decides_who_wins() {
        let level = |value| ops(&[], vec![add("x-a", value, AppendAction::OverwriteIfExistsOrAdd)]);
        let (weighted, route, host, table) =
            (level("weighted"), level("route"), level("host"), level("table"));
        let all = [Some(&weighted), Some(&route), Some(&host), Some(&table)];
        assert_eq!(applied(all, false, &[]), ["x-a: table"]);
        assert_eq!(applied(all, true, &[]), ["x-a: weighted"]);
        assert_eq!(applied([None, Some(&route), Some(&host), None], false, &[]), ["x-a: host"]);
        let level = |value| ops(&[], vec![add("x-a", value, AppendAction::AppendIfExistsOrAdd)]);
        let (weighted, table) = (level("weighted"), level("table"));
        let two = [Some(&weighted), None, None, Some(&table)];
        assert_eq!(applied(two, false, &[]), ["x-a: weighted", "x-a: table"]);
        assert_eq!(applied(two, true, &[]), ["x-a: table", "x-a: weighted"]);
    }

    #[test]
    fn values_are_evaluated_before_any_is_applied() {
        use AppendAction::*;
        let ops = ops(
            &[],
            vec![
                add("x-a", "%REQ(x-b)%-a", OverwriteIfExistsOrAdd),
                add("x-b", "%REQ(x-a)%-b", OverwriteIfExistsOrAdd),
                add("x-none", "%REQ(none)%", OverwriteIfExistsOrAdd),
                add("x-literal", "100%%", AppendIfExistsOrAdd),
            ],
        );
        assert_eq!(
            applied([None, Some(&ops), None, None], false, &[("x-a", "1"), ("x-b", "2")]),
            ["x-a: 2-a", "x-b: 1-b", "x-literal: 100%"]
        );
    }

    #[test]
    fn empty_values_are_kept_where_asked() {
        let mut empty = add("x-a", "%REQ(none)%", AppendAction::OverwriteIfExistsOrAdd);
        empty.keep_empty = true;
        let ops = ops(&[], vec![empty]);
        assert_eq!(applied([Some(&ops), None, None, None], false, &[]), ["x-a: "]);
    }

    #[test]
    fn host_is_rewritten_not_added() {
        let ops = ops(&[], vec![add("Host", "new.example", AppendAction::OverwriteIfExistsOrAdd)]);
        let levels = Levels { specific_first: [None, Some(&ops), None, None], most_specific_wins: false };
        let mut head = RequestHead::new();
        head.set_authority(b"old.example");
        apply_to_request(&levels, &mut head, &record());
        assert_eq!((head.authority(), head.fields.len()), (&b"new.example"[..], 0));
    }
}
