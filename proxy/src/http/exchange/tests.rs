//! Whole exchanges over loopback sockets: a raw client, the real server, a scripted upstream.

mod authentication;
mod authorization;
mod external;
mod faults;
mod fidelity;
mod forward;
mod http2;
mod mesh;
mod rig;
mod upgrades;

/// The future of one exchange: it exists once per request in flight.
#[test]
fn an_exchange_takes_little_memory() {
    use crate::http::body::RequestBody;
    use crate::http::head::RequestHead;
    use crate::http::server::{Arrival, Responder};
    fn size<'a, F: Future<Output = ()>>(
        _: impl Fn(Arrival<'a>, &'a mut RequestHead, RequestBody<'a>, Responder<'a>) -> F,
    ) -> usize {
        size_of::<F>()
    }
    let bytes = size(super::handle);
    assert!(bytes <= 6 * 1024, "{bytes} bytes");
}
