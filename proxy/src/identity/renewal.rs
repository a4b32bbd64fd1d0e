//! Keeps the workload's certificate in force: the first one, then another when half of its life is over, or when the roots of the mesh
//! say that another root signs now, or none vouches for it any more.
//!
//! While there is no newer one, the old certificate stays in force to its last minute; tries come closer together towards it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use osier_core::readiness::Pending;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::authority::issue;
use super::request::Issued;
use crate::bootstrap::XdsServer;
use crate::config::snapshot::SharedSnapshot;
use crate::config::tls::{Secret, Secrets, Trust};

/// The life that is asked for; the authority may give less.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// Part of a life after which it is renewed, give or take [`JITTER`], so that pods that began together don't come together.
const PART: f64 = 0.5;
const JITTER: f64 = 0.01;
/// When another root signs, all workloads of the mesh ask anew: within so much time, each at another moment.
const SPREAD: Duration = Duration::from_secs(15);
/// The same where nobody believes the certificate in force any more.
const HURRY: Duration = Duration::from_secs(1);
/// How often it is asked in a row while what comes is still of another root: replicas of the control plane hear one after the other.
const TRIES: u32 = 5;
/// Waits after failures; each is twice the one before.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);

/// Who this workload is, as far as it has a certificate.
#[derive(Debug, Default)]
pub struct OwnIdentity {
    name: ArcSwapOption<Arc<str>>,
    /// When the certificate in force ends, in seconds since 1970; 0 before there is one.
    not_after: AtomicI64,
}

impl OwnIdentity {
    /// The name in the certificate in force: a SPIFFE ID.
    pub fn name(&self) -> Option<Arc<str>> {
        self.name.load().as_ref().map(|name| Arc::<str>::clone(name))
    }

    /// Seconds until the certificate ends; negative after that, `None` before there is one.
    pub fn seconds_left(&self) -> Option<i64> {
        match self.not_after.load(Relaxed) {
            0 => None,
            end => Some(end - now()),
        }
    }

    fn renew(&self, issued: &Issued) {
        // The same value as long as it is the same name: metrics know it by its place.
        if self.name().as_deref() != Some(&*issued.name) {
            self.name.store(Some(Arc::new(issued.name.clone())));
        }
        self.not_after.store(issued.not_after, Relaxed);
    }
}

/// Keeps the certificate.
pub struct Renewal {
    /// Who certifies.
    pub server: XdsServer,
    /// Where certificate and roots are put in force.
    pub secrets: Arc<Secrets>,
    /// Told who we are.
    pub own: Arc<OwnIdentity>,
    /// Where it is said that connections stand on something else now, and where others say it.
    pub snapshot: SharedSnapshot,
    /// Certificates and their keys are kept as text too, for who hands them on.
    pub as_text: bool,
}

impl Renewal {
    /// Runs for as long as the process. `first` is dropped when the first certificate is in force; `told` hears of each.
    pub async fn run(self, first: Pending, mut told: impl FnMut(&Issued)) {
        let (mut first, mut moves) = (Some(first), self.snapshot.moves());
        let (mut attempt, mut tries) = (0, 0);
        let mut before: Option<Issued> = None;
        loop {
            let issued = self.obtain(&mut attempt).await;
            tracing::info!(identity = %issued.name, hours = (issued.not_after - now()) / 3600, "certificate in force");
            self.put_in_force(&issued, before.as_ref());
            told(&issued);
            drop(first.take());
            self.until_due(&issued, &mut moves, &mut tries).await;
            before = Some(issued);
        }
    }

    fn put_in_force(&self, issued: &Issued, before: Option<&Issued>) {
        let moved = self.secrets.answer_roots(&issued.trust);
        let roots = self.secrets.roots.trust();
        let root = |issued: &Issued| roots.as_ref().and_then(|roots| issued.vouching(roots));
        let succeeds = before.is_some_and(|before| root(before) != root(issued));
        match succeeds {
            true => self.secrets.own.succeed(issued.certificate.clone()),
            false => self.secrets.own.publish(Secret::Certificate(issued.certificate.clone())),
        }
        self.own.renew(issued);
        if moved || succeeds {
            self.snapshot.nudge();
        }
    }

    /// Waits until another certificate is wanted.
    async fn until_due(&self, issued: &Issued, moves: &mut watch::Receiver<u64>, tries: &mut u32) {
        let due = Instant::now() + until_renewal(issued, now(), rand::random_range(-1.0..=1.0));
        loop {
            let roots = self.secrets.roots.trust();
            let sooner = roots.as_deref().and_then(|roots| self.sooner(issued, roots, *tries));
            let until = sooner.map_or(due, |wait| due.min(Instant::now() + wait));
            tokio::select! {
                () = sleep_until(until) => {
                    *tries += u32::from(sooner.is_some());
                    return;
                }
                () = self.other_roots(moves, roots.as_ref()) => *tries = 0,
            }
        }
    }

    /// How soon a certificate has to be replaced because of the roots; `None`: it is as good as any.
    fn sooner(&self, issued: &Issued, roots: &Trust, tries: u32) -> Option<Duration> {
        let longest = match issued.vouching(roots) {
            None => HURRY,
            Some(0) => return None,
            Some(_) if self.secrets.are_told() && tries < TRIES => SPREAD,
            Some(_) => return None,
        };
        Some((longest * 2u32.pow(tries.min(TRIES))).mul_f64(rand::random()))
    }

    /// Completes when other roots than these are in force.
    async fn other_roots(&self, moves: &mut watch::Receiver<u64>, seen: Option<&Arc<Trust>>) {
        loop {
            match (self.secrets.roots.trust(), seen) {
                (Some(now), Some(seen)) if Arc::ptr_eq(&now, seen) => {}
                (None, None) => {}
                _ => return,
            }
            // The sender lives as long as we do.
            let _ = moves.changed().await;
        }
    }

    /// Asks until there is an answer. What keeps it is said once, and again when it changes.
    async fn obtain(&self, attempt: &mut usize) -> Issued {
        let (mut wait, mut said) = (SHORTEST, String::new());
        loop {
            let roots = self.secrets.roots.trust();
            match issue(&self.server, *attempt, LIFE, roots.as_deref(), self.as_text).await {
                Ok(issued) => return issued,
                Err(error) => {
                    let reason = error.to_string();
                    if reason != said {
                        tracing::warn!("no certificate: {reason}");
                        said = reason;
                    }
                }
            }
            *attempt += 1;
            sleep(wait.mul_f64(rand::random_range(0.75..1.25))).await;
            wait = (wait * 2).min(longest_wait(self.own.seconds_left()));
        }
    }
}

/// No wait is longer than a tenth of what is left.
fn longest_wait(seconds_left: Option<i64>) -> Duration {
    let Some(left) = seconds_left else { return Duration::from_secs(5) };
    Duration::from_secs(left.max(0) as u64 / 10).clamp(Duration::from_secs(1), LONGEST)
}

/// `jitter`: from -1 to 1.
fn until_renewal(issued: &Issued, now: i64, jitter: f64) -> Duration {
    let life = (issued.not_after - issued.not_before).max(0) as f64;
    let left = life * (PART + jitter * JITTER);
    let at = issued.not_after as f64 - left;
    // A clock that is wrong by hours must not make us ask without a pause.
    Duration::from_secs_f64((at - now as f64).max(1.0))
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rcgen::{CertificateSigningRequestParams, SanType};

    use super::*;
    use crate::bootstrap::{XdsTarget, XdsTls};
    use crate::identity::request::Request;
    use crate::identity::test_support::{Root, roots};

    #[test]
    fn waits_come_closer_together_towards_the_end() {
        for (left, longest) in [(None, 5), (Some(86_400), 60), (Some(300), 30), (Some(20), 2), (Some(-5), 1)]
        {
            assert_eq!(longest_wait(left), Duration::from_secs(longest), "{left:?}");
        }
    }

    fn root() -> Root {
        Root::new("root")
    }

    fn issued(root: &Root) -> Issued {
        let request = Request::new().unwrap();
        let mut csr = CertificateSigningRequestParams::from_pem(request.csr()).unwrap();
        csr.params.subject_alt_names = vec![SanType::URI("spiffe://a/ns/b/sa/c".try_into().unwrap())];
        let now = SystemTime::now();
        csr.params.not_before = (now - Duration::from_secs(120)).into();
        csr.params.not_after = (now + LIFE).into();
        let leaf = csr.signed_by(&root.issuer).unwrap().pem();
        request.complete(&[leaf, root.pem.clone()], false).unwrap()
    }

    fn renewal() -> Renewal {
        let tls = XdsTls { roots: PathBuf::new(), token: PathBuf::new() };
        Renewal {
            server: XdsServer::new(XdsTarget::Unix(PathBuf::new()), Some(tls)),
            secrets: Arc::default(),
            own: Arc::default(),
            snapshot: SharedSnapshot::default(),
            as_text: false,
        }
    }

    #[test]
    fn another_certificate_is_wanted_when_another_root_signs_or_none_vouches() {
        let (old, new) = (root(), root());
        let (renewal, own) = (renewal(), issued(&old));
        let soon = |of: &[&Root], tries| renewal.sooner(&own, &roots(of), tries);
        assert_eq!(soon(&[&old], 0), None);
        assert_eq!(soon(&[&new, &old], 0), None, "an order that nobody has told means nothing");
        renewal.secrets.tell_roots(roots(&[&old, &new]));
        assert_eq!(soon(&[&old, &new], 0), None, "added, and not signing yet");
        assert!(soon(&[&new, &old], 0).unwrap() <= SPREAD);
        assert_eq!(soon(&[&new, &old], TRIES), None, "in the end it is left at that");
        assert!(soon(&[&new], 0).unwrap() <= HURRY);
        assert!(soon(&[&new], TRIES + 5).unwrap() <= HURRY * 32);
    }

    #[test]
    fn only_a_certificate_of_another_root_ends_connections_politely() {
        let (old, new) = (root(), root());
        let renewal = renewal();
        let moves = renewal.snapshot.moves();
        let first = issued(&old);
        renewal.put_in_force(&first, None);
        renewal.secrets.tell_roots(roots(&[&old, &new]));
        renewal.put_in_force(&issued(&old), Some(&first));
        assert_eq!(renewal.secrets.own.succession(), 0);
        renewal.put_in_force(&issued(&new), Some(&first));
        assert_eq!(renewal.secrets.own.succession(), 1);
        assert!(moves.has_changed().unwrap());
    }

    #[test]
    fn what_the_control_plane_tells_of_roots_holds_against_what_a_certificate_brings() {
        let (old, new) = (root(), root());
        let renewal = renewal();
        let in_force = || renewal.secrets.roots.trust().unwrap().roots().roots.len();
        renewal.put_in_force(&issued(&old), None);
        assert_eq!(in_force(), 1);
        renewal.secrets.tell_roots(roots(&[&old, &new]));
        renewal.put_in_force(&issued(&old), None);
        assert_eq!(in_force(), 2, "that replica has not heard of it yet");
        renewal.secrets.forget_told();
        renewal.put_in_force(&issued(&old), None);
        assert_eq!(in_force(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn roots_that_change_end_the_wait() {
        let (old, new) = (root(), root());
        let renewal = Arc::new(renewal());
        let own = issued(&old);
        renewal.put_in_force(&own, None);
        let mut moves = renewal.snapshot.moves();
        let begun = Instant::now();
        let waiting = renewal.clone();
        let wait = tokio::spawn(async move {
            let mut tries = 0;
            waiting.until_due(&own, &mut moves, &mut tries).await;
            tries
        });
        sleep(Duration::from_secs(3600)).await;
        renewal.secrets.tell_roots(roots(&[&old, &new]));
        renewal.snapshot.nudge();
        sleep(Duration::from_secs(3600)).await;
        assert!(!wait.is_finished());
        renewal.secrets.tell_roots(roots(&[&new, &old]));
        renewal.snapshot.nudge();
        assert_eq!(wait.await.unwrap(), 1);
        assert!(begun.elapsed() <= Duration::from_secs(7200) + SPREAD);
    }
}
