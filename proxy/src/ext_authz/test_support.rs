//! An authorizer for tests that is asked by gRPC.

use std::net::SocketAddr;
use std::sync::Arc;

use osier_proto::types::auth::authorization_server::{Authorization, AuthorizationServer};
pub use osier_proto::types::auth::check_response::HttpResponse;
use osier_proto::types::auth::{CheckRequest, CheckResponse};
pub use osier_proto::types::auth::{DeniedHttpResponse, OkHttpResponse};
pub use osier_proto::types::core::QueryParameter;
use osier_proto::types::core::{HeaderValue, HeaderValueOption};
use osier_proto::types::rpc;
pub use osier_proto::types::value::HttpStatus;
use parking_lot::Mutex;

/// It gives one answer.
#[derive(Clone, Default)]
pub struct Check {
    answer: CheckResponse,
    /// What it was asked.
    pub asked: Arc<Mutex<Vec<CheckRequest>>>,
}

#[tonic::async_trait]
impl Authorization for Check {
    async fn check(
        &self,
        request: tonic::Request<CheckRequest>,
    ) -> Result<tonic::Response<CheckResponse>, tonic::Status> {
        self.asked.lock().push(request.into_inner());
        match self.answer.status.as_ref().map(|status| status.code) {
            Some(-1) => Err(tonic::Status::unavailable("no")),
            _ => Ok(tonic::Response::new(self.answer.clone())),
        }
    }
}

impl Check {
    /// Starts one with this code (-1 fails the call) and this response.
    pub async fn start(code: i32, http_response: Option<HttpResponse>) -> (SocketAddr, Self) {
        let status = Some(rpc::Status { code, ..Default::default() });
        let check = Self { answer: CheckResponse { status, http_response }, asked: Arc::default() };
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(AuthorizationServer::new(check.clone()));
        let incoming = tonic::transport::server::TcpIncoming::from(socket);
        tokio::spawn(server.serve_with_incoming(incoming));
        (address, check)
    }
}

/// A header that an answer sets.
pub fn option(name: &str, value: &str, append: Option<bool>) -> HeaderValueOption {
    let header = HeaderValue { key: name.into(), value: value.into(), ..Default::default() };
    HeaderValueOption { header: Some(header), append, ..Default::default() }
}
