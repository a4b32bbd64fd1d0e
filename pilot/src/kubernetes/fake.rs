//! An API server for tests: answers each request by a function, in this process.

use std::convert::Infallible;
use std::sync::Arc;

use http::{Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tower::service_fn;

/// A request: method, path with query, and the body's JSON.
pub type Call = (String, String, Value);

/// A client of a server that answers with status and JSON; several JSON values in a row are the lines of a watch.
pub fn client(answer: impl FnMut(&Call) -> (u16, Vec<Value>) + Send + 'static) -> Client {
    let answer = Arc::new(Mutex::new(answer));
    let service = service_fn(move |request: Request<Body>| {
        let answer = answer.clone();
        async move {
            let (head, body) = request.into_parts();
            let bytes = body.collect_bytes().await.unwrap_or_default();
            let path = head.uri.path_and_query().map_or("", |path| path.as_str()).to_owned();
            let body = serde_json::from_slice(&bytes).unwrap_or_default();
            let (status, lines) = answer.lock()(&(head.method.to_string(), path, body));
            let text: Vec<String> = lines.iter().map(Value::to_string).collect();
            let status = StatusCode::from_u16(status).expect("a status");
            let mut response = Response::new(Body::from(text.join("\n").into_bytes()));
            *response.status_mut() = status;
            Ok::<_, Infallible>(response)
        }
    });
    Client::new(service, "default")
}

/// What an API server answers when it doesn't do what it is asked.
pub fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": code })
}
