//! What `/config_dump` shows, in Envoy's shape: the bytes that were accepted, expanded to JSON.
//!
//! Rendering loads the reflection pool, so it happens on request only. Names that don't parse, resources whose bytes can't be
//! read and masks that name nothing lead to an error or an empty part, never to a failure of the whole page.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use osier_proto::types::admin::ClientResourceStatus;
use osier_proto::types::{cluster, route};
use osier_proto::{Any, json};
use regex::Regex;
use serde_json::{Map, Value, json as value};

use super::held::{Held, Revision, Source, Table};
use super::state::{HostVersion, State};
use crate::bootstrap::Bootstrap;
use crate::config::cluster::Discovery;

/// The query of `/config_dump`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DumpQuery {
    /// Show endpoints too.
    pub include_eds: bool,
    /// Only the entries of this repeated field, e.g. `dynamic_active_clusters`.
    pub resource: Option<String>,
    /// Only these fields of each entry (of each section without `resource`), comma-separated paths.
    pub mask: Option<String>,
    /// Only resources whose name matches.
    pub name_regex: Option<String>,
}

/// Why there is nothing to show.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DumpError {
    /// The regular expression is not valid (400).
    #[error("invalid name_regex: {0}")]
    Regex(String),
    /// No section has that field (404).
    #[error("{0} not found in config dump")]
    NoSuchResource(String),
    /// The process is ending (503).
    #[error("the xDS task has ended")]
    Ended,
}

impl DumpQuery {
    /// Reads the query string of a request.
    pub fn parse(query: &str) -> Self {
        let mut found = Self::default();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (key, raw) = pair.split_once('=').unwrap_or((pair, ""));
            let text =
                percent_encoding::percent_decode_str(&raw.replace('+', " ")).decode_utf8_lossy().into_owned();
            match key {
                "include_eds" => found.include_eds = text != "off" && text != "false",
                "resource" => found.resource = Some(text),
                "mask" => found.mask = Some(text),
                "name_regex" => found.name_regex = Some(text),
                _ => {}
            }
        }
        found
    }
}

pub(super) fn render(bootstrap: &Bootstrap, state: &State, query: &DumpQuery) -> Result<Value, DumpError> {
    let filter = match &query.name_regex {
        Some(pattern) => Some(Regex::new(pattern).map_err(|e| DumpError::Regex(e.to_string()))?),
        None => None,
    };
    let shown = |name: &str| filter.as_ref().is_none_or(|f| f.is_match(name));
    let mut sections = vec![
        section("BootstrapConfigDump", value!({"bootstrap": bootstrap_of(bootstrap)})),
        section("ClustersConfigDump", clusters(state, &shown)),
        section("ListenersConfigDump", listeners(state, &shown)),
        section("RoutesConfigDump", routes(state, &shown)),
    ];
    if query.include_eds {
        sections.insert(2, section("EndpointsConfigDump", endpoints(state, &shown)));
    }
    if let Some(resource) = &query.resource {
        return one_field(sections, resource, query.mask.as_deref());
    }
    if let Some(mask) = &query.mask {
        sections.iter_mut().for_each(|s| apply_mask(s, mask));
    }
    Ok(value!({"configs": sections}))
}

/// The file itself is no `Any` in the dump.
fn bootstrap_of(bootstrap: &Bootstrap) -> Value {
    let mut shown = json::any_to_value(&bootstrap.message);
    if let Some(object) = shown.as_object_mut() {
        object.remove("@type");
    }
    shown
}

fn section(name: &str, content: Value) -> Value {
    let mut object = Map::new();
    object.insert("@type".into(), Value::String(format!("type.googleapis.com/envoy.admin.v3.{name}")));
    if let Value::Object(content) = content {
        object.extend(content.into_iter().filter(|(_, v)| *v != Value::Array(Vec::new())));
    }
    Value::Object(object)
}

/// The entries of one repeated field, as Envoy answers `?resource=`.
fn one_field(sections: Vec<Value>, field: &str, mask: Option<&str>) -> Result<Value, DumpError> {
    const KNOWN: &[(&str, &str)] = &[
        ("static_clusters", "ClustersConfigDump.StaticCluster"),
        ("dynamic_active_clusters", "ClustersConfigDump.DynamicCluster"),
        ("dynamic_warming_clusters", "ClustersConfigDump.DynamicCluster"),
        ("static_listeners", "ListenersConfigDump.StaticListener"),
        ("dynamic_listeners", "ListenersConfigDump.DynamicListener"),
        ("static_route_configs", "RoutesConfigDump.StaticRouteConfig"),
        ("dynamic_route_configs", "RoutesConfigDump.DynamicRouteConfig"),
        ("static_endpoint_configs", "EndpointsConfigDump.StaticEndpointConfig"),
        ("dynamic_endpoint_configs", "EndpointsConfigDump.DynamicEndpointConfig"),
    ];
    let Some((_, kind)) = KNOWN.iter().find(|(name, _)| *name == field) else {
        return Err(DumpError::NoSuchResource(field.to_owned()));
    };
    let entries = sections.into_iter().find_map(|mut s| s.get_mut(field).map(Value::take));
    let typed = |mut entry: Value| {
        if let Some(mask) = mask {
            apply_mask(&mut entry, mask);
        }
        section(kind, entry)
    };
    let entries = match entries {
        Some(Value::Array(entries)) => entries.into_iter().map(typed).collect(),
        _ => Vec::new(),
    };
    Ok(value!({"configs": entries}))
}

/// Keeps the named paths only; a path goes through lists to their entries.
fn apply_mask(object: &mut Value, mask: &str) {
    let paths: Vec<Vec<&str>> =
        mask.split(',').map(str::trim).filter(|p| !p.is_empty()).map(|p| p.split('.').collect()).collect();
    let paths: Vec<&[&str]> = paths.iter().map(Vec::as_slice).collect();
    keep(object, &paths);
}

fn keep(value: &mut Value, paths: &[&[&str]]) {
    match value {
        Value::Array(entries) => entries.iter_mut().for_each(|e| keep(e, paths)),
        Value::Object(object) => object.retain(|key, child| {
            let below: Vec<&[&str]> =
                paths.iter().filter(|p| p.first() == Some(&key.as_str())).map(|p| &p[1..]).collect();
            if below.is_empty() {
                return key == "@type";
            }
            if below.iter().all(|p| !p.is_empty()) {
                keep(child, &below);
            }
            true
        }),
        _ => {}
    }
}

fn sorted<T>(table: &Table<T>) -> BTreeMap<&Arc<str>, &Held<T>> {
    table.iter().collect()
}

fn time(at: SystemTime) -> Value {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let stamp = jiff::Timestamp::new(since.as_secs() as i64, since.subsec_millis() as i32 * 1_000_000);
    stamp.map_or(Value::Null, |s| Value::String(format!("{s:.3}")))
}

/// `version_info`, the resource and `last_updated`, as every entry has them.
fn entry(field: &str, source: &Source) -> Map<String, Value> {
    let mut object = Map::new();
    if !source.version.is_empty() {
        object.insert("version_info".into(), Value::String(source.version.to_string()));
    }
    object.insert(field.into(), json::any_to_value(&source.body));
    object.insert("last_updated".into(), time(source.at));
    object
}

fn error_state<T>(held: &Held<T>, object: &mut Map<String, Value>) {
    let status = match &held.refused {
        Some((source, details)) => {
            let state = value!({
                "failed_configuration": json::any_to_value(&source.body),
                "last_update_attempt": time(source.at),
                "details": details,
                "version_info": &*source.version,
            });
            object.insert("error_state".into(), state);
            ClientResourceStatus::Nacked
        }
        None => ClientResourceStatus::Acked,
    };
    object.insert("client_status".into(), Value::String(status.as_str_name().into()));
}

/// An entry for a version, or for a refused resource that never had one.
fn dynamic<T>(field: &str, held: &Held<T>, revision: Option<&Revision<T>>) -> Value {
    let mut object = revision.map(|r| entry(field, &r.source)).unwrap_or_default();
    error_state(held, &mut object);
    Value::Object(object)
}

fn clusters(state: &State, shown: &dyn Fn(&str) -> bool) -> Value {
    let (mut fixed, mut active, mut warming) = (Vec::new(), Vec::new(), Vec::new());
    for (_, held) in sorted(&state.clusters).into_iter().filter(|(name, _)| shown(name)) {
        if held.fixed {
            fixed.extend(held.newest().map(|r| Value::Object(entry("cluster", &r.source))));
            continue;
        }
        active.extend(held.active.as_ref().map(|r| dynamic("cluster", held, Some(r))));
        if let Some(w) = &held.warming {
            warming.push(dynamic("cluster", held, Some(&w.revision)));
        } else if held.active.is_none() {
            warming.push(dynamic("cluster", held, None));
        }
    }
    value!({
        "static_clusters": fixed,
        "dynamic_active_clusters": active,
        "dynamic_warming_clusters": warming,
    })
}

fn listeners(state: &State, shown: &dyn Fn(&str) -> bool) -> Value {
    let (mut fixed, mut moving) = (Vec::new(), Vec::new());
    for (name, held) in sorted(&state.listeners).into_iter().filter(|(name, _)| shown(name)) {
        if held.fixed {
            fixed.extend(held.newest().map(|r| Value::Object(entry("listener", &r.source))));
            continue;
        }
        let mut object = Map::new();
        object.insert("name".into(), Value::String(name.to_string()));
        if let Some(revision) = &held.active {
            object.insert("active_state".into(), Value::Object(entry("listener", &revision.source)));
        }
        if let Some(w) = &held.warming {
            object.insert("warming_state".into(), Value::Object(entry("listener", &w.revision.source)));
        }
        error_state(held, &mut object);
        moving.push(Value::Object(object));
    }
    value!({"static_listeners": fixed, "dynamic_listeners": moving})
}

fn routes(state: &State, shown: &dyn Fn(&str) -> bool) -> Value {
    let mut moving = Vec::new();
    let hosts = sorted(&state.hosts);
    for (name, held) in sorted(&state.routes).into_iter().filter(|(name, _)| shown(name)) {
        let mut object = dynamic("route_config", held, held.newest());
        add_hosts(&mut object, name, &hosts);
        moving.push(object);
    }
    let mut fixed = Vec::new();
    for (_, held) in sorted(&state.listeners) {
        for revision in held.active.iter() {
            for config in inline_routes(&revision.source.body).into_iter().filter(|c| shown(&c.name)) {
                let source = Source { body: Any::pack(&config), version: "".into(), at: revision.source.at };
                fixed.push(Value::Object(entry("route_config", &source)));
            }
        }
    }
    value!({"static_route_configs": fixed, "dynamic_route_configs": moving})
}

/// Virtual hosts that came one by one are shown inside their route configuration, where readers look for them.
fn add_hosts(object: &mut Value, route_config: &str, hosts: &BTreeMap<&Arc<str>, &Held<HostVersion>>) {
    let of_config = hosts.iter().filter(|(name, _)| {
        osier_core::on_demand::split_host_key(name).is_some_and(|(config, _)| config == route_config)
    });
    let shown: Vec<Value> = of_config
        .filter_map(|(_, held)| held.active.as_ref()?.source.body.unpack::<route::VirtualHost>().ok())
        .map(|host| json::to_value(&host))
        .collect();
    if let Some(config) = object.get_mut("route_config").and_then(Value::as_object_mut)
        && !shown.is_empty()
    {
        config.insert("virtual_hosts".into(), Value::Array(shown));
    }
}

/// The route tables inside a listener.
fn inline_routes(listener: &Any) -> Vec<route::RouteConfiguration> {
    use osier_proto::types::http_connection_manager::{
        HttpConnectionManager, http_connection_manager::RouteSpecifier,
    };
    use osier_proto::types::listener::{Listener, filter::ConfigType};
    let Ok(listener) = listener.unpack::<Listener>() else { return Vec::new() };
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    chains
        .flat_map(|chain| &chain.filters)
        .filter_map(|filter| match &filter.config_type {
            Some(ConfigType::TypedConfig(config)) => config.unpack::<HttpConnectionManager>().ok(),
            None => None,
        })
        .filter_map(|manager| match manager.route_specifier {
            Some(RouteSpecifier::RouteConfig(config)) => Some(config),
            _ => None,
        })
        .collect()
}

fn endpoints(state: &State, shown: &dyn Fn(&str) -> bool) -> Value {
    let assignments = sorted(&state.assignments).into_iter().filter(|(name, _)| shown(name));
    let moving: Vec<Value> =
        assignments.map(|(_, held)| dynamic("endpoint_config", held, held.newest())).collect();
    let mut fixed = Vec::new();
    for (_, held) in sorted(&state.clusters).into_iter().filter(|(name, _)| shown(name)) {
        let Some(revision) = held.active.as_ref() else { continue };
        let inline =
            matches!(revision.value.compiled.spec.discovery, Discovery::Static | Discovery::StrictDns(_));
        let message = revision.source.body.unpack::<cluster::Cluster>().ok();
        if let Some(assignment) = message.and_then(|c| c.load_assignment).filter(|_| inline) {
            let source = Source { body: Any::pack(&assignment), version: "".into(), at: revision.source.at };
            fixed.push(Value::Object(entry("endpoint_config", &source)));
        }
    }
    value!({"static_endpoint_configs": fixed, "dynamic_endpoint_configs": moving})
}
