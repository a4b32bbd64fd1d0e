//! What every response gets before it goes to the client: `server`, `date`, `via`, and what peers exchange taken out.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use super::forwarded::append_listed;
use crate::config::listener::{HttpManager, ServerHeader};
use crate::http::head::{Known, RequestHead, ResponseHead};

/// Finishes the head of a response, of the upstream's or our own making.
pub fn finish(manager: &HttpManager, request: &RequestHead, head: &mut ResponseHead) {
    match &manager.server_header {
        ServerHeader::Overwrite(name) => head.fields.set(Known::Server, name.as_bytes()),
        ServerHeader::AppendIfAbsent(name) if !head.fields.contains(Known::Server) => {
            head.fields.append(Known::Server, name.as_bytes());
        }
        ServerHeader::AppendIfAbsent(_) | ServerHeader::PassThrough => {}
    }
    if !head.fields.contains(Known::Date) {
        with_date(|date| head.fields.append(Known::Date, date));
    }
    if let Some(via) = &manager.via {
        append_listed(&mut head.fields, Known::Via, via.as_bytes(), b", ");
    }
    if manager.request_id_in_response
        && let Some(id) = request.fields.get(Known::XRequestId)
    {
        head.fields.set(Known::XRequestId, id);
    }
}

/// Calls `use_it` with the date (RFC 9110 5.6.7), which is formatted once a second and thread.
fn with_date(use_it: impl FnOnce(&[u8])) {
    thread_local! {
        static DATE: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    DATE.with_borrow_mut(|(second, text)| {
        let now = SystemTime::now();
        let this_second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if *second != this_second {
            *second = this_second;
            *text = httpdate::fmt_http_date(now);
        }
        use_it(text.as_bytes());
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::test_support::manager;

    fn finished(change: impl FnOnce(&mut HttpManager), lines: &[(&str, &str)]) -> ResponseHead {
        let mut config = manager();
        change(&mut config);
        let mut request = RequestHead::new();
        request.fields.append("x-request-id", b"id");
        let mut head = ResponseHead::new(200);
        for (name, value) in lines {
            head.fields.append(*name, value.as_bytes());
        }
        finish(&config, &request, &mut head);
        head
    }

    #[test]
    fn server() {
        let overwrite =
            |config: &mut HttpManager| config.server_header = ServerHeader::Overwrite("envoy".into());
        let absent =
            |config: &mut HttpManager| config.server_header = ServerHeader::AppendIfAbsent("envoy".into());
        let pass = |config: &mut HttpManager| config.server_header = ServerHeader::PassThrough;
        let get = |head: &ResponseHead| head.fields.get(Known::Server).map(<[u8]>::to_vec);
        let theirs = [("server", "nginx")];
        assert_eq!(get(&finished(overwrite, &theirs)).unwrap(), b"envoy");
        assert_eq!(get(&finished(overwrite, &[])).unwrap(), b"envoy");
        assert_eq!(get(&finished(absent, &theirs)).unwrap(), b"nginx");
        assert_eq!(get(&finished(absent, &[])).unwrap(), b"envoy");
        assert_eq!(get(&finished(pass, &theirs)).unwrap(), b"nginx");
        assert_eq!(get(&finished(pass, &[])), None);
    }

    #[test]
    fn date_is_kept_or_added() {
        let theirs = [("date", "Tue, 15 Nov 1994 08:12:31 GMT")];
        let head = finished(|_| {}, &theirs);
        assert_eq!(head.fields.get_all(Known::Date).collect::<Vec<_>>(), [theirs[0].1.as_bytes()]);
        let head = finished(|_| {}, &[]);
        let date = std::str::from_utf8(head.fields.get(Known::Date).unwrap()).unwrap();
        let age = SystemTime::now().duration_since(httpdate::parse_http_date(date).unwrap()).unwrap();
        assert!(age.as_secs() < 60, "{date}");
    }

    #[test]
    fn via_and_request_id_where_asked() {
        let head = finished(|_| {}, &[("via", "1.1 a")]);
        assert_eq!(head.fields.get(Known::Via), Some(&b"1.1 a"[..]));
        assert!(!head.fields.contains(Known::XRequestId));
        let both = |config: &mut HttpManager| {
            config.via = Some("osier".into());
            config.request_id_in_response = true;
        };
        let head = finished(both, &[("via", "1.1 a")]);
        assert_eq!(head.fields.get(Known::Via), Some(&b"1.1 a, osier"[..]));
        assert_eq!(head.fields.get(Known::XRequestId), Some(&b"id"[..]));
    }
}
