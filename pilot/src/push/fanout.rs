//! Who must hear of a change: connections, and one mailbox for each.
//!
//! A connection is registered with the snapshot that is current at that moment, under the same lock that publishing takes. So
//! no change can fall between "took the snapshot" and "gets the pushes".

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::PushRequest;
use super::debounce::Merge;
use crate::metrics::{Metrics, observe};
use crate::model::ProxyView;
use crate::snapshot::MeshSnapshot;

/// All connections and the snapshot that is in force.
#[derive(Debug)]
pub struct Fanout {
    state: Mutex<State>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct State {
    snapshot: Arc<MeshSnapshot>,
    mailboxes: HashMap<u64, Arc<Mailbox>>,
    next: u64,
}

/// Where a connection finds what it has to send.
#[derive(Debug)]
pub struct Mailbox {
    pending: Mutex<Option<Mail>>,
    wake: Notify,
    /// Whom the connection belongs to, once it is known.
    view: RwLock<Option<ProxyView>>,
}

/// A merged push, and since when it waits.
#[derive(Debug)]
pub struct Mail {
    /// What to push.
    pub request: PushRequest,
    queued: Instant,
}

/// A connection's place; leaving it takes the mailbox away.
#[derive(Debug)]
pub struct Registered {
    fanout: Arc<Fanout>,
    id: u64,
    mailbox: Arc<Mailbox>,
}

impl Fanout {
    /// Nobody connected, nothing known.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        let state = State { snapshot: Arc::default(), mailboxes: HashMap::new(), next: 1 };
        Arc::new(Self { state: Mutex::new(state), metrics })
    }

    /// Puts a snapshot in force and tells everybody whom the change can concern.
    pub fn publish(&self, request: PushRequest) {
        let mut state = self.state.lock();
        state.snapshot = request.snapshot.clone();
        for mailbox in state.mailboxes.values() {
            mailbox.put(&request);
        }
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> Arc<MeshSnapshot> {
        self.state.lock().snapshot.clone()
    }

    /// Registers a connection. It hears of everything that is published after the snapshot that it gets here.
    pub fn register(self: &Arc<Self>) -> (Registered, Arc<MeshSnapshot>) {
        let mailbox =
            Arc::new(Mailbox { pending: Mutex::new(None), wake: Notify::new(), view: RwLock::new(None) });
        let mut state = self.state.lock();
        let id = state.next;
        state.next += 1;
        state.mailboxes.insert(id, mailbox.clone());
        self.metrics.connected.set(state.mailboxes.len() as i64);
        (Registered { fanout: self.clone(), id, mailbox }, state.snapshot.clone())
    }
}

impl Mailbox {
    fn put(&self, request: &PushRequest) {
        // Before it is known who this is everything is kept.
        if self.view.read().as_ref().is_some_and(|view| !request.change.concerns(view)) {
            return;
        }
        let mut pending = self.pending.lock();
        match &mut *pending {
            Some(mail) => mail.request.merge(request.clone()),
            None => *pending = Some(Mail { request: request.clone(), queued: Instant::now() }),
        }
        drop(pending);
        self.wake.notify_one();
    }
}

impl Registered {
    /// Number of the connection, unique in this process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Says whom the connection belongs to. From here on it hears only what can concern this client.
    pub fn identify(&self, view: ProxyView) {
        *self.mailbox.view.write() = Some(view);
    }

    /// Waits for something to push, and takes it.
    pub async fn mail(&self) -> PushRequest {
        loop {
            if let Some(mail) = self.mailbox.pending.lock().take() {
                observe(&self.fanout.metrics.queue_time, mail.queued.elapsed());
                return mail.request;
            }
            self.mailbox.wake.notified().await;
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut state = self.fanout.state.lock();
        state.mailboxes.remove(&self.id);
        self.fanout.metrics.connected.set(state.mailboxes.len() as i64);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::r#gen::key::tests::view;
    use crate::model::{Exports, ServiceKey};
    use crate::snapshot::Change;
    use osier_core::host::Host;

    fn change(host: &str, exports: &Exports) -> Change {
        let mut change = Change::default();
        change.services.insert(ServiceKey { host: Host::new(host), namespace: "default".into() });
        change.audience.add(exports);
        change
    }

    fn request(version: u64, host: &str, exports: &Exports) -> PushRequest {
        let snapshot = MeshSnapshot { version, ..Default::default() };
        PushRequest::new(Arc::new(snapshot), change(host, exports))
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_has_one_pending_push_with_everything_in_it() {
        let fanout = Fanout::new(Arc::default());
        let (connection, snapshot) = fanout.register();
        assert_eq!(snapshot.version, 0);
        connection.identify(view("default", []).proxy);
        for n in 1..=1000 {
            fanout.publish(request(n, &format!("s{n}"), &Exports::Public));
        }
        let mail = connection.mail().await;
        assert_eq!((mail.snapshot.version, mail.change.services.len()), (1000, 1000));
        let more = tokio::time::timeout(Duration::from_secs(1), connection.mail()).await;
        assert!(more.is_err(), "there is only one");
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_concern_a_client_does_not_wake_it() {
        let fanout = Fanout::new(Arc::default());
        let (connection, _) = fanout.register();
        connection.identify(view("default", []).proxy);
        let elsewhere = Exports::Namespaces(["other".into()].into());
        fanout.publish(request(1, "a", &elsewhere));
        assert!(tokio::time::timeout(Duration::from_secs(1), connection.mail()).await.is_err());
        fanout.publish(request(2, "b", &Exports::Namespaces(["default".into()].into())));
        assert_eq!(connection.mail().await.snapshot.version, 2);
        assert_eq!(fanout.snapshot().version, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn before_a_client_is_known_it_hears_everything() {
        let fanout = Fanout::new(Arc::default());
        let (connection, _) = fanout.register();
        fanout.publish(request(1, "a", &Exports::Namespaces(["other".into()].into())));
        assert_eq!(connection.mail().await.snapshot.version, 1);
        drop(connection);
        assert!(fanout.state.lock().mailboxes.is_empty());
    }
}
