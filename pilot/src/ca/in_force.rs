//! Which authority signs now. Another one takes over at once, or is refused and changes nothing.
//!
//! Refused is also one that is good and that the mesh doesn't believe yet: its root has to be among those in force before it signs
//! (add first, remove later). A control plane that starts has none in force and takes what it finds.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::authority::Authority;
use super::material::Refused;
use crate::metrics::Metrics;

/// Follows which authority signs; `None` until there is one.
pub type Signs = watch::Receiver<Option<Arc<Authority>>>;

/// Puts authorities in force.
#[derive(Debug)]
pub struct InForce {
    signs: watch::Sender<Option<Arc<Authority>>>,
    metrics: Arc<Metrics>,
    /// What was said last of one that is refused: said again when it is something else.
    said: Mutex<String>,
}

impl InForce {
    /// Nothing in force yet.
    pub fn new(metrics: Arc<Metrics>) -> (Self, Signs) {
        let (signs, follow) = watch::channel(None);
        (Self { signs, metrics, said: Mutex::default() }, follow)
    }

    /// Who signs now.
    pub fn current(&self) -> Option<Arc<Authority>> {
        self.signs.borrow().clone()
    }

    /// Takes what was found at `place`, or says why not.
    pub fn offer(&self, place: &str, offered: Result<Authority, Refused>) {
        let offered = offered.map_err(|refused| refused.to_string());
        match offered.and_then(|authority| self.overlaps(authority)) {
            Ok(authority) => self.take(place, authority),
            Err(reason) => self.refuse(&format!("{place}: {reason}")),
        }
    }

    fn overlaps(&self, offered: Authority) -> Result<Authority, String> {
        match self.current() {
            Some(current) if !offered.is_believed_by_those_of(&current) => Err(
                "its root is none that the mesh believes yet: first add that root to the ones in force, then let it sign".into(),
            ),
            _ => Ok(offered),
        }
    }

    fn take(&self, place: &str, authority: Authority) {
        self.said.lock().clear();
        self.metrics.authority_refused.set(0);
        if self.current().is_some_and(|current| current.is_same_as(&authority)) {
            return;
        }
        let (_, end) = authority.life();
        self.metrics.authority_end.set(end);
        tracing::info!(
            place,
            roots = authority.count_of_roots(),
            end,
            "certificates are signed by this authority"
        );
        self.signs.send_replace(Some(Arc::new(authority)));
    }

    /// Says why there is none, or no newer one.
    pub fn refuse(&self, reason: &str) {
        let mut said = self.said.lock();
        self.metrics.authority_refused.set(1);
        if *said == reason {
            return;
        }
        reason.clone_into(&mut said);
        match self.current() {
            Some(_) => tracing::error!("{reason}; the authority that was good before stays in force"),
            None => tracing::error!("{reason}; TLS can't be served yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::authority::tests::family;
    use crate::ca::material;

    #[test]
    fn a_root_is_added_first_and_removed_last() {
        let (old, new) = (family(), family());
        let metrics = Arc::new(Metrics::new());
        let (in_force, signs) = InForce::new(metrics.clone());
        let both = old.root.clone() + &new.root;
        let steps = [
            (old.authority(&old.root), true),
            (new.authority(&new.root), false),
            (new.authority(&both), false),
            (old.authority(&both), true),
            (new.authority(&both), true),
            (new.authority(&new.root), true),
            (old.authority(&both), false),
        ];
        for (step, (authority, taken)) in steps.into_iter().enumerate() {
            let roots = authority.roots().to_owned();
            in_force.offer("here", Ok(authority));
            assert_eq!(signs.borrow().as_ref().unwrap().roots() == roots, taken, "step {step}");
            assert_eq!(metrics.authority_refused.get(), i64::from(!taken), "step {step}");
        }
    }

    #[test]
    fn what_is_refused_leaves_the_last_good_one() {
        let family = family();
        let (in_force, mut signs) = InForce::new(Arc::new(Metrics::new()));
        in_force.offer("here", material::plugged(|_| None));
        assert!(signs.borrow().is_none());
        in_force.offer("here", Ok(family.authority(&family.root)));
        signs.mark_unchanged();
        in_force.offer("here", material::plugged(|_| None));
        in_force.offer("here", Ok(family.authority(&family.root)));
        assert!(!signs.has_changed().unwrap(), "the same one again is no news");
        assert!(signs.borrow().is_some());
    }
}
