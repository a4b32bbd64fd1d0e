//! gRPC's health check, as the kubelet asks it: in plaintext, for one service.

use std::io;
use std::net::{IpAddr, SocketAddr};

use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::client;

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    status: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

/// Asks whether `service` is served, from `source` where one is given; the error says what is instead.
pub async fn check(
    address: SocketAddr,
    source: Option<IpAddr>,
    service: &str,
    user_agent: &str,
) -> Result<(), String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    let endpoint = endpoint.user_agent(user_agent.to_owned()).map_err(|error| error.to_string())?;
    // Connected here rather than by tonic: for the source address, and for what the system says.
    let stream = client::connect(address, source).await;
    let mut stream = Some(stream.map_err(|error| error.to_string())?);
    let connector = service_fn(move |_| {
        let stream = stream.take().map(TokioIo::new);
        std::future::ready(stream.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "closed")))
    });
    let channel = endpoint.connect_with_connector(connector).await.map_err(|error| error.to_string())?;
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| error.to_string())?;
    let request = tonic::Request::new(HealthCheckRequest { service: service.to_owned() });
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    match grpc.unary(request, path, codec).await {
        Ok(response) => match response.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            other => Err(format!("status is {other:?}")),
        },
        Err(status) if status.code() == tonic::Code::Unimplemented => {
            Err("the server doesn't know grpc.health.v1.Health".to_owned())
        }
        Err(status) => Err(format!("{}: {}", status.code(), status.message())),
    }
}
