//! How many streams each caller has: nobody takes the places of all others.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::identity::Caller;

/// Streams of a pod: its proxy has one, and a second one while it comes back.
const OF_POD: usize = 8;
/// Streams of all workloads of an account whose tokens aren't bound to pods.
const OF_ACCOUNT: usize = 1_000;

/// Everybody who has a stream.
#[derive(Debug, Clone, Default)]
pub struct Callers(Arc<Mutex<HashMap<Caller, usize>>>);

/// A stream's place among its caller's.
#[derive(Debug)]
pub struct Place {
    callers: Callers,
    caller: Caller,
}

impl Callers {
    /// A place for one more stream; `None` where the caller has as many as it may.
    pub fn admit(&self, caller: &Caller) -> Option<Place> {
        let most = if caller.pod.is_some() { OF_POD } else { OF_ACCOUNT };
        let mut streams = self.0.lock();
        let own = streams.entry(caller.clone()).or_default();
        if *own >= most {
            return None;
        }
        *own += 1;
        Some(Place { callers: self.clone(), caller: caller.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut streams = self.callers.0.lock();
        if let Some(own) = streams.get_mut(&self.caller) {
            *own -= 1;
            if *own == 0 {
                streams.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xds::identity::{Identity, Pod};

    #[test]
    fn a_pod_has_a_few_streams_and_leaves_nothing_behind() {
        let callers = Callers::default();
        let caller = |uid: &str| Caller {
            identity: Identity { namespace: "a".into(), service_account: "web".into() },
            pod: Some(Pod { name: "web".into(), uid: uid.into() }),
        };
        let mut places: Vec<_> = (0..OF_POD).map(|_| callers.admit(&caller("u")).unwrap()).collect();
        assert!(callers.admit(&caller("u")).is_none());
        assert!(callers.admit(&caller("v")).is_some());
        places.pop();
        assert!(callers.admit(&caller("u")).is_some());
        places.clear();
        assert!(callers.0.lock().is_empty());
    }
}
