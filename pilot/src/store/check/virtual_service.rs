//! VirtualService to [`RouteRule`].

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use ipnet::IpNet;
use osier_core::host::Host;
use osier_core::re2;

use super::{Check, Checked, Context, Path, is_header_name};
use crate::model::{
    Destination, DirectResponse, GatewayRef, HeaderChange, HeaderOps, HttpAction, HttpMatch, HttpRoute,
    L4Match, L4Route, Redirect, RedirectPath, RedirectPort, RegexRewrite, Rewrite, RewritePath, RouteRule,
    StringMatch, TlsMatch, TlsRoute, ValueMatch, WeightedDestination, WeightedL4,
};
use crate::store::schema::virtual_service as schema;

/// Body of a direct response: more than this is warned about.
const LARGE_BODY: usize = 100 * 1024;
/// More than this is refused.
const MAX_BODY: usize = 1024 * 1024;

/// Checks a VirtualService.
pub fn check(context: &Context, spec: &schema::VirtualService) -> Checked<RouteRule> {
    let mut check = Check::new(context);
    let root = Path::Root("spec");
    let mut gateways = check.gateways(root.field("gateways"), &spec.gateways);
    if gateways.is_empty() {
        gateways.push(GatewayRef::Mesh);
    }
    let hosts = check.rule_hosts(root.field("hosts"), spec, gateways.contains(&GatewayRef::Mesh));
    check.require(!(spec.http.is_empty() && spec.tls.is_empty() && spec.tcp.is_empty()), root, || {
        "needs at least one of http, tls and tcp".into()
    });
    let http = check.each(root.field("http"), &spec.http, Check::http_route);
    check.unreachable(root.field("http"), &http);
    let tls = check.each(root.field("tls"), &spec.tls, |check, at, route| check.tls_route(at, route, &hosts));
    let rule = RouteRule {
        key: context.key.clone(),
        age: context.age.clone(),
        http,
        tls,
        tcp: check.each(root.field("tcp"), &spec.tcp, Check::tcp_route),
        export_to: check.export_to(root.field("exportTo"), &spec.export_to, false),
        hosts,
        gateways,
    };
    check.finish(rule)
}

impl Check<'_> {
    fn each<S, T>(
        &mut self,
        at: Path<'_>,
        items: &[S],
        one: impl Fn(&mut Self, Path<'_>, &S) -> T,
    ) -> Vec<T> {
        items.iter().enumerate().map(|(index, item)| one(self, at.index(index), item)).collect()
    }

    fn rule_hosts(&mut self, at: Path<'_>, spec: &schema::VirtualService, for_mesh: bool) -> Vec<Host> {
        if spec.hosts.is_empty() {
            self.error(at, "is empty; VirtualServices that others delegate to are not supported yet");
        }
        let mut hosts: Vec<Host> = Vec::new();
        for (index, text) in spec.hosts.iter().enumerate() {
            let here = at.index(index);
            if text == "*" && for_mesh {
                self.error(here, "* is allowed only for rules that are bound to gateways and not to mesh");
            }
            let Some(host) = self.host(here, text) else { continue };
            if let Some(other) = hosts.iter().find(|h| h.overlaps(&host)) {
                let how = if *other == host { "is there twice" } else { "overlaps" };
                self.error(
                    here,
                    format!(
                        "{text:?} {how}{}",
                        if *other == host { String::new() } else { format!(" {other}") }
                    ),
                );
            }
            hosts.push(host);
        }
        hosts
    }

    fn http_route(&mut self, at: Path<'_>, route: &schema::HttpRoute) -> HttpRoute {
        let actions = [!route.route.is_empty(), route.redirect.is_some(), route.direct_response.is_some()];
        match actions.iter().filter(|there| **there).count() {
            1 => {}
            0 => self.error(at, "needs one of route, redirect and directResponse"),
            _ => self.error(at, "has more than one of route, redirect and directResponse"),
        }
        if route.rewrite.is_some() && route.route.is_empty() {
            self.error(at.field("rewrite"), "is allowed together with route only");
        }
        let matches = self.each(at.field("match"), &route.r#match, Self::http_match);
        let headers = self.header_ops(at.field("headers"), route.headers.as_ref());
        let rewrite = self.rewrite(at.field("rewrite"), route.rewrite.as_ref());
        let action = match (&route.redirect, &route.direct_response) {
            (Some(redirect), _) => {
                HttpAction::Redirect(self.redirect(at.field("redirect"), redirect, &route.r#match))
            }
            (_, Some(direct)) => HttpAction::Direct(self.direct_response(at.field("directResponse"), direct)),
            _ => HttpAction::Forward(self.http_destinations(at.field("route"), &route.route)),
        };
        if let HttpAction::Forward(destinations) = &action {
            self.one_host_rewrite(at, &rewrite, &headers, destinations);
        }
        HttpRoute {
            name: route.name.as_str().into(),
            matches,
            action,
            headers,
            rewrite,
            timeout: self.duration(at.field("timeout"), route.timeout.as_ref()),
            retries: route.retries.as_ref().map(|retries| self.retries(at.field("retries"), retries)),
        }
    }

    /// `rewrite.authority` and a header operation on the host say two things.
    fn one_host_rewrite(
        &mut self,
        at: Path<'_>,
        rewrite: &Rewrite,
        headers: &HeaderOps,
        destinations: &[WeightedDestination],
    ) {
        let sets_host = |ops: &HeaderOps| {
            let mut names = ops.request.set.iter().chain(&ops.request.add).map(|(name, _)| name);
            names.any(|name| is_host(name))
        };
        let by_header = sets_host(headers) || destinations.iter().any(|d| sets_host(&d.headers));
        if rewrite.authority.is_some() && by_header {
            self.error(
                at.field("rewrite").field("authority"),
                "the host is set by a header operation as well",
            );
        }
    }

    fn http_match(&mut self, at: Path<'_>, matched: &schema::HttpMatchRequest) -> HttpMatch {
        HttpMatch {
            name: matched.name.as_str().into(),
            uri: self.string_match(at.field("uri"), matched.uri.as_ref(), true),
            ignore_uri_case: matched.ignore_uri_case,
            scheme: self.string_match(at.field("scheme"), matched.scheme.as_ref(), false),
            method: self.string_match(at.field("method"), matched.method.as_ref(), false),
            authority: self.string_match(at.field("authority"), matched.authority.as_ref(), false),
            headers: self.header_matches(at.field("headers"), &matched.headers),
            without_headers: self.header_matches(at.field("withoutHeaders"), &matched.without_headers),
            query: self.query_matches(at.field("queryParams"), &matched.query_params),
            port: self.optional_port(at.field("port"), matched.port),
            source_labels: self.selector(at.field("sourceLabels"), &matched.source_labels),
            source_namespace: some_text(&matched.source_namespace),
            gateways: self.gateways(at.field("gateways"), &matched.gateways),
        }
    }

    /// `None` where there is no condition. `empty`: an empty prefix is fine.
    fn string_match(
        &mut self,
        at: Path<'_>,
        matched: Option<&schema::StringMatch>,
        empty: bool,
    ) -> Option<StringMatch> {
        let schema::StringMatch { exact, prefix, regex } = matched?;
        if [exact, prefix, regex].iter().filter(|member| member.is_some()).count() > 1 {
            self.error(at, "has more than one of exact, prefix and regex");
        }
        if let Some(text) = exact {
            return Some(StringMatch::Exact(text.as_str().into()));
        }
        if let Some(text) = prefix {
            self.require(empty || !text.is_empty(), at.field("prefix"), || "is empty".into());
            return Some(StringMatch::Prefix(text.as_str().into()));
        }
        let text = regex.as_ref()?;
        if text.is_empty() {
            self.error(at.field("regex"), "is empty");
        }
        self.regex(at.field("regex"), text);
        Some(StringMatch::Regex(text.as_str().into()))
    }

    fn header_matches(
        &mut self,
        at: Path<'_>,
        headers: &BTreeMap<String, Option<schema::StringMatch>>,
    ) -> Vec<(Arc<str>, ValueMatch)> {
        let mut found = Vec::new();
        for (name, matched) in headers {
            let here = at.key(name);
            if name.starts_with("@request.auth.") {
                self.error(here, "conditions on JWT claims are not supported yet");
                continue;
            }
            if matches!(name.as_str(), "uri" | "scheme" | "method" | "authority") {
                self.warn(here, format!("is ignored among the headers; use the field {name} of the match"));
                continue;
            }
            self.header_name(here, name);
            if let Some(value) = self.value_match(here, matched.as_ref()) {
                found.push((name.to_ascii_lowercase().into(), value));
            }
        }
        found
    }

    fn query_matches(
        &mut self,
        at: Path<'_>,
        parameters: &BTreeMap<String, Option<schema::StringMatch>>,
    ) -> Vec<(Arc<str>, ValueMatch)> {
        let mut found = Vec::new();
        for (name, matched) in parameters {
            if let Some(value) = self.value_match(at.key(name), matched.as_ref()) {
                found.push((name.as_str().into(), value));
            }
        }
        found
    }

    /// `{}` and the regex `*` ask for presence.
    fn value_match(&mut self, at: Path<'_>, matched: Option<&schema::StringMatch>) -> Option<ValueMatch> {
        let Some(matched) = matched else {
            self.error(at, "has no condition; write {} to test that it is there");
            return None;
        };
        if matched.regex.as_deref() == Some("*") && matched.exact.is_none() && matched.prefix.is_none() {
            return Some(ValueMatch::Present);
        }
        Some(self.string_match(at, Some(matched), true).map_or(ValueMatch::Present, ValueMatch::Text))
    }

    fn http_destinations(
        &mut self,
        at: Path<'_>,
        routes: &[schema::HttpRouteDestination],
    ) -> Vec<WeightedDestination> {
        let weights: Vec<i32> = routes.iter().map(|r| r.weight).collect();
        let weights = self.weights(at, &weights);
        let mut found = Vec::new();
        for (index, (route, weight)) in routes.iter().zip(weights).enumerate() {
            let here = at.index(index);
            let headers = self.header_ops(here.field("headers"), route.headers.as_ref());
            let destination = self.destination(here.field("destination"), route.destination.as_ref());
            if let (Some(destination), true) = (destination, weight > 0) {
                found.push(WeightedDestination { destination, weight, headers });
            }
        }
        found
    }

    fn l4_destinations(&mut self, at: Path<'_>, routes: &[schema::RouteDestination]) -> Vec<WeightedL4> {
        self.require(!routes.is_empty(), at, || "needs at least one destination".into());
        let weights: Vec<i32> = routes.iter().map(|r| r.weight).collect();
        let weights = self.weights(at, &weights);
        let mut found = Vec::new();
        for (index, (route, weight)) in routes.iter().zip(weights).enumerate() {
            let here = at.index(index);
            let destination = self.destination(here.field("destination"), route.destination.as_ref());
            if let (Some(destination), true) = (destination, weight > 0) {
                found.push(WeightedL4 { destination, weight });
            }
        }
        found
    }

    /// A single destination takes everything, whatever its weight.
    fn weights(&mut self, at: Path<'_>, weights: &[i32]) -> Vec<u32> {
        if let [_] = weights {
            return vec![1];
        }
        let mut checked = Vec::new();
        for (index, weight) in weights.iter().enumerate() {
            checked.push(self.limit(at.index(index).field("weight"), *weight).unwrap_or(0));
        }
        self.require(weights.is_empty() || weights.iter().any(|w| *w != 0), at, || {
            "all weights are 0".into()
        });
        checked
    }

    fn destination(
        &mut self,
        at: Path<'_>,
        destination: Option<&schema::Destination>,
    ) -> Option<Destination> {
        let Some(destination) = destination else {
            self.error(at, "is required");
            return None;
        };
        if destination.host.is_empty() {
            self.error(at.field("host"), "is required");
            return None;
        }
        if destination.host == "*" {
            self.error(at.field("host"), "* is no destination");
        }
        if !destination.subset.is_empty() {
            self.label_name(at.field("subset"), &destination.subset);
        }
        let number = destination.port.as_ref().map(|p| p.number);
        Some(Destination {
            host: self.host(at.field("host"), &destination.host)?,
            subset: some_text(&destination.subset),
            port: number.and_then(|n| self.port(at.field("port").field("number"), n)),
        })
    }

    fn redirect(
        &mut self,
        at: Path<'_>,
        redirect: &schema::HttpRedirect,
        matches: &[schema::HttpMatchRequest],
    ) -> Redirect {
        let schema::HttpRedirect { uri, prefix_rewrite, authority, port, derive_port, scheme, redirect_code } =
            redirect;
        let empty = uri.is_empty() && prefix_rewrite.is_empty() && authority.is_empty() && scheme.is_empty();
        if empty && port.is_none() && derive_port.is_none() {
            self.error(
                at,
                "needs at least one of uri, prefixRewrite, authority, scheme, port and derivePort",
            );
        }
        if !uri.is_empty() && !prefix_rewrite.is_empty() {
            self.error(at, "has both uri and prefixRewrite");
        }
        let by_prefix = |m: &schema::HttpMatchRequest| m.uri.as_ref().is_none_or(|u| u.prefix.is_some());
        if !prefix_rewrite.is_empty() && !matches.iter().all(by_prefix) {
            self.error(at.field("prefixRewrite"), "needs every uri match of the route to be a prefix");
        }
        if port.is_some() && derive_port.is_some() {
            self.error(at, "has both port and derivePort");
        }
        if !matches!(scheme.as_str(), "" | "http" | "https") {
            self.error(at.field("scheme"), format!("{scheme:?} is neither http nor https"));
        }
        let status = match redirect_code {
            0 => 301,
            301 | 302 | 303 | 307 | 308 => *redirect_code as u16,
            other => {
                self.error(at.field("redirectCode"), format!("{other} is none of 301, 302, 303, 307, 308"));
                301
            }
        };
        let number = port.and_then(|n| self.port(at.field("port"), n)).map(RedirectPort::Number);
        Redirect {
            status,
            path: match (uri.as_str(), prefix_rewrite.as_str()) {
                ("", "") => RedirectPath::Keep,
                ("", prefix) => RedirectPath::Prefix(prefix.into()),
                (path, _) => RedirectPath::Replace(path.into()),
            },
            authority: some_text(authority),
            scheme: some_text(scheme),
            port: number.or(derive_port.map(|derive| match derive {
                schema::DerivePort::FromProtocolDefault => RedirectPort::FromProtocol,
                schema::DerivePort::FromRequestPort => RedirectPort::FromRequest,
            })),
        }
    }

    fn direct_response(&mut self, at: Path<'_>, direct: &schema::HttpDirectResponse) -> DirectResponse {
        let status = u16::try_from(direct.status).ok().filter(|status| (200..600).contains(status));
        if status.is_none() {
            self.error(at.field("status"), format!("{} is not between 200 and 599", direct.status));
        }
        let body = direct.body.as_ref().map(|body| self.body(at.field("body"), body)).unwrap_or_default();
        if body.len() > MAX_BODY {
            self.error(at.field("body"), "is larger than 1 MiB");
        } else if body.len() > LARGE_BODY {
            self.warn(at.field("body"), "is larger than 100 KiB, and every proxy keeps it in memory");
        }
        DirectResponse { status: status.unwrap_or(200), body }
    }

    fn body(&mut self, at: Path<'_>, body: &schema::HttpBody) -> Bytes {
        match (&body.string, &body.bytes) {
            (Some(_), Some(_)) => self.error(at, "has both string and bytes"),
            (Some(text), None) => return Bytes::copy_from_slice(text.as_bytes()),
            (None, Some(text)) => match base64::engine::general_purpose::STANDARD.decode(text) {
                Ok(bytes) => return bytes.into(),
                Err(error) => self.error(at.field("bytes"), format!("is no base64: {error}")),
            },
            (None, None) => {}
        }
        Bytes::new()
    }

    fn rewrite(&mut self, at: Path<'_>, rewrite: Option<&schema::HttpRewrite>) -> Rewrite {
        let Some(schema::HttpRewrite { uri, authority, uri_regex_rewrite }) = rewrite else {
            return Rewrite::default();
        };
        if uri.is_empty() && authority.is_empty() && uri_regex_rewrite.is_none() {
            self.error(at, "needs at least one of uri, authority and uriRegexRewrite");
        }
        if !uri.is_empty() && uri_regex_rewrite.is_some() {
            self.error(at, "has both uri and uriRegexRewrite");
        }
        let regex = uri_regex_rewrite.as_ref().map(|r| self.regex_rewrite(at.field("uriRegexRewrite"), r));
        Rewrite {
            path: regex.map(RewritePath::Regex).or_else(|| some_text(uri).map(RewritePath::Matched)),
            authority: some_text(authority),
        }
    }

    fn regex_rewrite(&mut self, at: Path<'_>, rewrite: &schema::RegexRewrite) -> RegexRewrite {
        for (name, text) in [("match", &rewrite.r#match), ("rewrite", &rewrite.rewrite)] {
            self.require(!text.is_empty(), at.field(name), || "is required".into());
        }
        self.regex(at.field("match"), &rewrite.r#match);
        if let Ok(regex) = re2::search(&rewrite.r#match)
            && let Err(error) = re2::substitution(&rewrite.rewrite, &regex)
        {
            self.error(at.field("rewrite"), error.to_string());
        }
        RegexRewrite {
            pattern: rewrite.r#match.as_str().into(),
            replacement: rewrite.rewrite.as_str().into(),
        }
    }

    fn header_ops(&mut self, at: Path<'_>, headers: Option<&schema::Headers>) -> HeaderOps {
        let Some(headers) = headers else { return HeaderOps::default() };
        HeaderOps {
            request: self.header_change(at.field("request"), headers.request.as_ref(), true),
            response: self.header_change(at.field("response"), headers.response.as_ref(), false),
        }
    }

    fn header_change(
        &mut self,
        at: Path<'_>,
        operations: Option<&schema::HeaderOperations>,
        request: bool,
    ) -> HeaderChange {
        let Some(operations) = operations else { return HeaderChange::default() };
        let mut values = |at: Path<'_>, entries: &BTreeMap<String, String>| {
            let mut found: Vec<(Arc<str>, Arc<str>)> = Vec::new();
            for (name, value) in entries {
                let here = at.key(name);
                if self.settable(here, name, request) {
                    self.formatter(here, value);
                    found.push((name.as_str().into(), value.as_str().into()));
                }
            }
            found
        };
        let (set, add) = (values(at.field("set"), &operations.set), values(at.field("add"), &operations.add));
        let mut remove: Vec<Arc<str>> = Vec::new();
        for (index, name) in operations.remove.iter().enumerate() {
            let here = at.field("remove");
            if name.starts_with(':') || is_host(name) {
                self.error(here.index(index), format!("{name:?} can't be removed"));
            } else {
                self.header_name(here.index(index), name);
                remove.push(name.as_str().into());
            }
        }
        remove.sort();
        HeaderChange { set, add, remove }
    }

    /// Pseudo headers other than the request's host are dropped, with a warning.
    fn settable(&mut self, at: Path<'_>, name: &str, request: bool) -> bool {
        if request && name.eq_ignore_ascii_case(":authority") {
            return true;
        }
        if name.starts_with(':') || (!request && is_host(name)) {
            self.warn(at, "can't be set this way and is ignored");
            return false;
        }
        self.header_name(at, name);
        true
    }

    fn header_name(&mut self, at: Path<'_>, name: &str) {
        self.require(is_header_name(name), at, || format!("{name:?} is no header name"));
    }

    /// Envoy's format: `%COMMAND%`, and `%%` for a literal percent.
    fn formatter(&mut self, at: Path<'_>, value: &str) {
        if value.bytes().any(|b| b == b'\r' || b == b'\n' || b == 0) {
            self.error(at, "has a line break or zero byte");
        }
        let mut rest = value;
        while let Some((_, tail)) = rest.split_once('%') {
            if let Some(tail) = tail.strip_prefix('%') {
                rest = tail;
                continue;
            }
            let command = tail.split_once('%');
            let upper = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
            match command {
                Some((name, tail)) if name.bytes().next().is_some_and(upper) => rest = tail,
                _ => {
                    self.error(at, "has a percent sign without a command; a literal one is written %%");
                    return;
                }
            }
        }
    }

    fn tls_route(&mut self, at: Path<'_>, route: &schema::TlsRoute, hosts: &[Host]) -> TlsRoute {
        self.require(!route.r#match.is_empty(), at.field("match"), || "is required".into());
        let matches = self.each(at.field("match"), &route.r#match, |check, at, matched| {
            let l4 = schema::L4MatchAttributes {
                destination_subnets: matched.destination_subnets.clone(),
                port: matched.port,
                source_labels: matched.source_labels.clone(),
                source_namespace: matched.source_namespace.clone(),
                gateways: matched.gateways.clone(),
                source_subnet: None,
            };
            TlsMatch {
                sni: check.sni_hosts(at.field("sniHosts"), &matched.sni_hosts, hosts),
                l4: check.l4_match(at, &l4),
            }
        });
        TlsRoute { matches, destinations: self.l4_destinations(at.field("route"), &route.route) }
    }

    fn sni_hosts(&mut self, at: Path<'_>, names: &[String], hosts: &[Host]) -> Vec<Host> {
        self.require(!names.is_empty(), at, || "needs at least one name".into());
        let mut found = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let here = at.index(index);
            if name.parse::<std::net::IpAddr>().is_ok() {
                self.warn(here, format!("{name:?} is an address, which no client sends as server name"));
            }
            match Host::parse_pattern(name) {
                Err(_) if name.parse::<std::net::IpAddr>().is_ok() => found.push(Host::new(name)),
                Err(error) => self.error(here, format!("{name:?} {error}")),
                Ok(host) => {
                    // the written form counts: short names are expanded in hosts only
                    let short = self.host(here, name);
                    if !hosts.iter().any(|h| h.covers(&host) || short.as_ref().is_some_and(|s| h.covers(s))) {
                        self.error(here, format!("{name:?} is not covered by any of the rule's hosts"));
                    }
                    found.push(host);
                }
            }
        }
        found
    }

    fn tcp_route(&mut self, at: Path<'_>, route: &schema::TcpRoute) -> L4Route {
        L4Route {
            matches: self.each(at.field("match"), &route.r#match, Self::l4_match),
            destinations: self.l4_destinations(at.field("route"), &route.route),
        }
    }

    fn l4_match(&mut self, at: Path<'_>, matched: &schema::L4MatchAttributes) -> L4Match {
        L4Match {
            port: self.optional_port(at.field("port"), matched.port),
            destination_subnets: self.subnets(at.field("destinationSubnets"), &matched.destination_subnets),
            source_labels: self.selector(at.field("sourceLabels"), &matched.source_labels),
            source_namespace: some_text(&matched.source_namespace),
            gateways: self.gateways(at.field("gateways"), &matched.gateways),
        }
    }

    /// Addresses and CIDRs.
    pub(super) fn subnets(&mut self, at: Path<'_>, texts: &[String]) -> Vec<IpNet> {
        let mut found = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            match parse_subnet(text) {
                Some(subnet) => found.push(subnet),
                None => self.error(at.index(index), format!("{text:?} is neither an address nor a CIDR")),
            }
        }
        found
    }

    /// Warns of routes after one that takes everything.
    fn unreachable(&mut self, at: Path<'_>, routes: &[HttpRoute]) {
        let takes_all = |route: &HttpRoute| {
            let unconditional = |m: &HttpMatch| {
                m.catches_all()
                    && m.port.is_none()
                    && m.source_labels.is_empty()
                    && m.source_namespace.is_none()
                    && m.gateways.is_empty()
            };
            route.matches.is_empty() || route.matches.iter().any(unconditional)
        };
        if let Some(last) = routes.iter().position(takes_all) {
            for index in last + 1..routes.len() {
                self.warn(at.index(index), format!("is never reached: entry {last} takes everything"));
            }
        }
    }
}

fn is_host(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

fn some_text(text: &str) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| text.into())
}

/// An address or a CIDR; host bits are cut.
pub(super) fn parse_subnet(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>()
        .map(|net| net.trunc())
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .ok()
}
