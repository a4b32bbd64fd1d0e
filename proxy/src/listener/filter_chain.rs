//! Which filter chain takes a connection: Envoy's FilterChainMatch, compiled per listener.
//!
//! The criteria are asked in a fixed order (destination port, destination address, server name, transport protocol,
//! application protocols, directly connected source, source type, source address, source port). At each step the most
//! specific value that any remaining chain names wins, and there is no way back: a connection whose port has chains of
//! its own never falls back to chains without a port, even if none of the former matches in the end.
//! So the matcher is a trie with one level per criterion, and a look-up is one walk from its root.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::listener::{ChainMatch, ConnectionInputs, SourceType, TransportProtocol};

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Compiled matches of one listener; results are indices into the list that it was built from.
#[derive(Debug, Default)]
pub struct ChainMatcher {
    root: Keyed<u16, ByNet<ByServerName>>,
}

type ByServerName = ServerNames<Keyed<TransportProtocol, Keyed<Arc<str>, ByNet<ByOrigin>>>>;
type ByOrigin = Origins<ByNet<Keyed<u16, Leaf>>>;

/// Two chains of a listener that say the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filter chains {first} and {second} have the same match")]
pub struct Overlap {
    /// Index of the chain that came first.
    pub first: usize,
    /// Index of the one that repeats it.
    pub second: usize,
}

impl ChainMatcher {
    /// Compiles `matches`; two that overlap in every criterion are refused, as Envoy refuses them.
    pub fn new<'a>(matches: impl IntoIterator<Item = &'a ChainMatch>) -> Result<Self, Overlap> {
        let mut matcher = Self::default();
        for (index, chain) in matches.into_iter().enumerate() {
            matcher.insert(chain, index)?;
        }
        Ok(matcher)
    }

    /// The chain for a connection; `None` means the default chain.
    pub fn find(&self, inputs: &ConnectionInputs) -> Option<usize> {
        let source = inputs.source.ip();
        self.root
            .get(&inputs.destination.port())?
            .get(inputs.destination.ip())?
            .get(inputs.server_name.as_deref().unwrap_or(""))?
            .get(&inputs.transport)?
            .first_of(&inputs.application_protocols)?
            .get(source)?
            .get(inputs.is_local())?
            .get(source)?
            .get(&inputs.source.port())?
            .0
    }

    /// Puts one chain under every combination of the values that it names.
    fn insert(&mut self, chain: &ChainMatch, index: usize) -> Result<(), Overlap> {
        let addresses = self.root.entry(chain.destination_port);
        each(&chain.prefix_ranges, |destination| {
            let names = addresses.entry(destination.copied());
            each(&chain.server_names, |name| {
                let protocols = names.entry(name).entry(chain.transport);
                each(&chain.application_protocols, |protocol| {
                    let direct = protocols.entry(protocol.cloned());
                    each(&chain.direct_source_ranges, |range| {
                        let sources = direct.entry(range.copied()).entry(chain.source_type);
                        each(&chain.source_ranges, |range| {
                            let ports = sources.entry(range.copied());
                            each(&chain.source_ports, |port| ports.entry(port.copied()).take(index))
                        })
                    })
                })
            })
        })
    }
}

/// Calls `f` with each value, or once with `None` where there are none ("matches all").
fn each<T>(values: &[T], mut f: impl FnMut(Option<&T>) -> Result<(), Overlap>) -> Result<(), Overlap> {
    if values.is_empty() {
        return f(None);
    }
    values.iter().try_for_each(|value| f(Some(value)))
}

/// The end of the walk: the chain, once one has taken the place.
#[derive(Debug, Default)]
struct Leaf(Option<usize>);

impl Leaf {
    fn take(&mut self, index: usize) -> Result<(), Overlap> {
        match self.0 {
            // The same chain may name a value twice (a list with duplicates); that changes nothing.
            Some(first) if first != index => Err(Overlap { first, second: index }),
            _ => {
                self.0 = Some(index);
                Ok(())
            }
        }
    }
}

/// A level that is asked by equality, with a branch for chains that don't care.
#[derive(Debug)]
struct Keyed<K, V> {
    exact: Map<K, V>,
    any: Option<Box<V>>,
}

impl<K, V> Default for Keyed<K, V> {
    fn default() -> Self {
        Self { exact: Map::default(), any: None }
    }
}

impl<K: Eq + std::hash::Hash, V: Default> Keyed<K, V> {
    fn entry(&mut self, key: Option<K>) -> &mut V {
        match key {
            Some(key) => self.exact.entry(key).or_default(),
            None => self.any.get_or_insert_default(),
        }
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.exact.get(key).or(self.any.as_deref())
    }

    /// The branch of the first of `keys` that has one: the client's order decides.
    fn first_of(&self, keys: &[K]) -> Option<&V> {
        keys.iter().find_map(|key| self.exact.get(key)).or(self.any.as_deref())
    }
}

/// A level that is asked by longest prefix.
#[derive(Debug)]
struct ByNet<V> {
    /// Per family and prefix length, longest first: networks by their first address.
    lengths: Vec<(bool, u8, Map<IpAddr, V>)>,
    any: Option<Box<V>>,
}

impl<V> Default for ByNet<V> {
    fn default() -> Self {
        Self { lengths: Vec::new(), any: None }
    }
}

impl<V: Default> ByNet<V> {
    fn entry(&mut self, net: Option<IpNet>) -> &mut V {
        let Some(net) = net else { return self.any.get_or_insert_default() };
        let v4 = matches!(net, IpNet::V4(_));
        let length = net.prefix_len();
        let found = self.lengths.iter().position(|(family, l, _)| *family == v4 && *l <= length);
        let at = match found {
            Some(at) if self.lengths[at].1 == length => at,
            other => {
                // Lengths are sorted within a family; families may be mixed.
                let at = other.unwrap_or(self.lengths.len());
                self.lengths.insert(at, (v4, length, Map::default()));
                at
            }
        };
        self.lengths[at].2.entry(net.network()).or_default()
    }

    fn get(&self, ip: IpAddr) -> Option<&V> {
        // An IPv4 peer on a dual-stack socket shows as ::ffff:a.b.c.d.
        let ip = ip.to_canonical();
        let found =
            self.lengths.iter().filter(|(v4, ..)| *v4 == ip.is_ipv4()).find_map(|(_, length, nets)| {
                let net = IpNet::new(ip, *length).ok()?;
                nets.get(&net.network())
            });
        found.or(self.any.as_deref())
    }
}

/// A level that is asked by server name: exact, then `*.suffix` from the longest to the shortest.
#[derive(Debug)]
struct ServerNames<V> {
    exact: Map<Box<str>, V>,
    /// `*.foo.com` as `.foo.com`.
    suffixes: Map<Box<str>, V>,
    any: Option<Box<V>>,
}

impl<V> Default for ServerNames<V> {
    fn default() -> Self {
        Self { exact: Map::default(), suffixes: Map::default(), any: None }
    }
}

impl<V: Default> ServerNames<V> {
    fn entry(&mut self, name: Option<&Arc<str>>) -> &mut V {
        let Some(name) = name else { return self.any.get_or_insert_default() };
        match name.strip_prefix('*') {
            Some(suffix) => self.suffixes.entry(suffix.into()).or_default(),
            None => self.exact.entry((&**name).into()).or_default(),
        }
    }

    fn get(&self, name: &str) -> Option<&V> {
        if let Some(found) = self.exact.get(name) {
            return Some(found);
        }
        // A wildcard stands for at least one character of a label, so the first one may not be the dot.
        let dots = name.char_indices().skip(1).filter(|(_, c)| *c == '.').map(|(at, _)| at);
        dots.filter(|at| at + 1 < name.len())
            .find_map(|at| self.suffixes.get(&name[at..]))
            .or(self.any.as_deref())
    }
}

/// The level of `source_type`.
#[derive(Debug)]
struct Origins<V> {
    local: Option<Box<V>>,
    external: Option<Box<V>>,
    any: Option<Box<V>>,
}

impl<V> Default for Origins<V> {
    fn default() -> Self {
        Self { local: None, external: None, any: None }
    }
}

impl<V: Default> Origins<V> {
    fn entry(&mut self, kind: SourceType) -> &mut V {
        let branch = match kind {
            SourceType::Any => &mut self.any,
            SourceType::SameIpOrLoopback => &mut self.local,
            SourceType::External => &mut self.external,
        };
        branch.get_or_insert_default()
    }

    fn get(&self, local: bool) -> Option<&V> {
        let branch = if local { &self.local } else { &self.external };
        branch.as_deref().or(self.any.as_deref())
    }
}

#[cfg(test)]
#[path = "filter_chain_tests.rs"]
mod tests;
