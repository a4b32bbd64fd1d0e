//! Figures of the conversation with the control plane, for `/stats`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::held::Kind;

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Stats {
    pub(super) connected: AtomicBool,
    pub(super) attempts: AtomicU64,
    kinds: [Updates; Kind::ALL.len()],
}

#[derive(Debug, Default)]
struct Updates {
    accepted: AtomicU64,
    refused: AtomicU64,
}

/// One figure: name as Envoy calls it, and value.
pub type Figure = (&'static str, u64);

impl Stats {
    /// All figures.
    pub fn figures(&self) -> Vec<Figure> {
        const NAMES: [[&str; 2]; Kind::ALL.len()] = [
            ["cluster_manager.cds.update_success", "cluster_manager.cds.update_rejected"],
            ["cluster_manager.eds.update_success", "cluster_manager.eds.update_rejected"],
            ["http.rds.update_success", "http.rds.update_rejected"],
            ["sds.update_success", "sds.update_rejected"],
            ["listener_manager.lds.update_success", "listener_manager.lds.update_rejected"],
            ["http.vhds.update_success", "http.vhds.update_rejected"],
        ];
        let mut all = vec![
            ("control_plane.connected_state", u64::from(self.connected.load(Relaxed))),
            ("control_plane.connect_attempts", self.attempts.load(Relaxed)),
        ];
        for (names, updates) in NAMES.iter().zip(&self.kinds) {
            all.push((names[0], updates.accepted.load(Relaxed)));
            all.push((names[1], updates.refused.load(Relaxed)));
        }
        all
    }

    pub(super) fn response(&self, kind: Kind, refused: bool) {
        let updates = &self.kinds[kind as usize];
        if refused { &updates.refused } else { &updates.accepted }.fetch_add(1, Relaxed);
    }
}
