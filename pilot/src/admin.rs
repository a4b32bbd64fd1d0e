//! The admin interface: what operators change while pilot runs. Loopback only; in a cluster people reach it by port-forward.

use std::sync::Arc;

use axum::http::{Method, StatusCode};
use osier_core::admin::{Pages, Reply, Request};
use osier_core::logging::Logging;

/// What the pages show and change.
#[derive(Debug)]
pub struct Admin {
    /// Levels.
    pub logging: Arc<Logging>,
}

const INDEX: &str = "\
/logging (POST)  show or change log levels; ?level=, ?paths=part:level,…, ?part=level
";

impl Pages for Admin {
    async fn answer(&self, request: Request) -> Reply {
        match (request.path.as_str(), &request.method) {
            ("/", _) => Reply::text(INDEX),
            ("/logging", &Method::POST) => self.logging.page(&request),
            ("/logging", method) => {
                let text = format!("Method {method} not allowed, POST required.\n");
                Reply::status(StatusCode::METHOD_NOT_ALLOWED, text)
            }
            (path, _) => Reply::status(StatusCode::NOT_FOUND, format!("no such page: {path}\n\n{INDEX}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use osier_core::logging::Levels;

    use super::*;
    use crate::program::LOG;

    #[tokio::test]
    async fn levels_are_changed_by_post_only() {
        // The log of a process can be started once, and this is the only test here that does.
        let logging = Arc::new(Logging::start(LOG, Levels::default(), false).unwrap());
        let admin = Admin { logging: logging.clone() };
        let ask = async |method: Method, path: &str, query: &[(&str, &str)]| {
            let query = query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let reply =
                admin.answer(Request { method, path: path.into(), query, ..Request::default() }).await;
            (reply.status.as_u16(), String::from_utf8(reply.body.to_vec()).unwrap())
        };
        let (status, text) = ask(Method::POST, "/logging", &[("paths", "xds:debug")]).await;
        assert_eq!(status, 200);
        assert!(text.contains("  xds       : debug\n") && text.contains("  store     : info\n"), "{text}");
        assert_eq!(ask(Method::GET, "/logging", &[("level", "trace")]).await.0, 405);
        assert_eq!(ask(Method::POST, "/logging", &[("store", "debug"), ("level", "loud")]).await.0, 400);
        assert_eq!(ask(Method::POST, "/nothing", &[]).await.0, 404);
        assert_eq!(logging.levels().to_string(), "info,xds=debug", "a refused change changes nothing");
    }
}
