//! Who reaches the workload without mutual TLS: what a STRICT PeerAuthentication would refuse. Shown by the admin interface, and by
//! `osier mtls` for the whole mesh.
//!
//! Bounded: where more callers come than fit, the one that was not seen for longest is forgotten.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde_json::{Value, json};

/// Callers that are remembered.
const MOST: usize = 1024;

/// An address, and the port of the workload that it has called.
type Caller = (IpAddr, u16);

/// All of them. One lock for each connection that comes in plaintext, and none for others.
#[derive(Debug, Clone, Default)]
pub struct PlaintextCallers(Arc<Mutex<HashMap<Caller, Seen>>>);

#[derive(Debug, Clone, Copy)]
struct Seen {
    first: SystemTime,
    last: SystemTime,
    connections: u64,
    open: u32,
}

/// A connection in plaintext, while it is open.
#[derive(Debug)]
pub struct PlaintextCall {
    callers: PlaintextCallers,
    caller: Caller,
}

impl PlaintextCallers {
    /// Notes a connection from `address` to `port` of the workload.
    pub fn arrived(&self, address: IpAddr, port: u16) -> PlaintextCall {
        self.arrived_at(address, port, SystemTime::now())
    }

    fn arrived_at(&self, address: IpAddr, port: u16, now: SystemTime) -> PlaintextCall {
        let caller = (address.to_canonical(), port);
        let mut all = self.0.lock();
        if all.len() >= MOST && !all.contains_key(&caller) {
            let closed = all.iter().filter(|(_, seen)| seen.open == 0);
            let oldest = closed.min_by_key(|(_, seen)| seen.last).map(|(caller, _)| *caller);
            // Where all are open nobody is forgotten; there are not more of them than connections.
            oldest.map(|oldest| all.remove(&oldest));
        }
        let seen = all.entry(caller).or_insert(Seen { first: now, last: now, connections: 0, open: 0 });
        *seen = Seen { last: now, connections: seen.connections + 1, open: seen.open + 1, ..*seen };
        drop(all);
        PlaintextCall { callers: self.clone(), caller }
    }

    /// As a page; times in milliseconds since 1970. An open connection is seen now, and `now` is said, because the clock of who reads
    /// it is another.
    pub fn page(&self) -> Value {
        let now = SystemTime::now();
        let millis = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis();
        let mut all: Vec<(Caller, Seen)> =
            self.0.lock().iter().map(|(caller, seen)| (*caller, *seen)).collect();
        all.sort_by_key(|(caller, _)| *caller);
        let shown = all.iter().map(|((address, port), seen)| {
            json!({
                "address": address.to_string(),
                "port": port,
                "connections": seen.connections,
                "open": seen.open,
                "first_seen": millis(seen.first) as u64,
                "last_seen": millis(if seen.open > 0 { now } else { seen.last }) as u64,
            })
        });
        json!({ "now": millis(now) as u64, "callers": shown.collect::<Vec<_>>() })
    }
}

impl Drop for PlaintextCall {
    fn drop(&mut self) {
        if let Some(seen) = self.callers.0.lock().get_mut(&self.caller) {
            seen.open = seen.open.saturating_sub(1);
            seen.last = SystemTime::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn callers_are_counted_while_and_after_they_call() {
        let callers = PlaintextCallers::default();
        let address = IpAddr::from([10, 0, 0, 7]);
        let first = callers.arrived(address, 80);
        let second = callers.arrived("::ffff:10.0.0.7".parse().unwrap(), 80);
        let other = callers.arrived(address, 81);
        drop((first, other));
        let page = &callers.page()["callers"];
        let shown = |index: usize| {
            (page[index]["port"].clone(), page[index]["connections"].clone(), page[index]["open"].clone())
        };
        assert_eq!(shown(0), (80.into(), 2.into(), 1.into()));
        assert_eq!(shown(1), (81.into(), 1.into(), 0.into()));
        let open = callers.page();
        assert_eq!(open["callers"][0]["last_seen"], open["now"], "who is there is seen now");
        drop(second);
        assert_eq!(callers.page()["callers"][0]["open"], 0);
    }

    #[test]
    fn the_oldest_is_forgotten_and_none_that_is_open() {
        let callers = PlaintextCallers::default();
        let at = |number: u32| UNIX_EPOCH + Duration::from_secs(number.into());
        let address = |number: u32| IpAddr::from(Ipv4Addr::from(number));
        let open = callers.arrived_at(address(0), 80, at(0));
        for number in 1..=MOST as u32 {
            drop(callers.arrived_at(address(number), 80, at(number)));
        }
        let page = &callers.page()["callers"];
        let known = |number: u32| {
            page.as_array().unwrap().iter().any(|row| row["address"] == address(number).to_string())
        };
        assert_eq!(page.as_array().unwrap().len(), MOST);
        assert!(known(0) && !known(1) && known(2) && known(MOST as u32));
        drop(open);
    }
}
