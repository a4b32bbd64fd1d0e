//! The server's end: both ADS methods as one kind of link, one task each.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Status, Streaming};

use super::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MAX_REQUEST_BYTES};
use crate::types::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use crate::types::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::types::secret_discovery::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use crate::xds::{Request, Response, Variant};

const STREAM_WINDOW: u32 = 1 << 20;

/// A gRPC server with the settings that long-lived streams need.
pub fn server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW)
}

/// SDS alone, as Envoy asks the agent beside it. Each stream is handed to `handler` in a task of its own.
pub fn secret_service<H: Handler>(handler: H) -> SecretDiscoveryServiceServer<impl SecretDiscoveryService> {
    let service = Service { handler: Arc::new(handler) };
    SecretDiscoveryServiceServer::new(service).max_decoding_message_size(MAX_REQUEST_BYTES)
}

/// The ADS service. Each stream is handed to `handler` in a task of its own.
pub fn service<H: Handler>(handler: H) -> AggregatedDiscoveryServiceServer<impl AggregatedDiscoveryService> {
    let service = Service { handler: Arc::new(handler) };
    AggregatedDiscoveryServiceServer::new(service).max_decoding_message_size(MAX_REQUEST_BYTES)
}

/// Serves one client from its first request to its end.
pub trait Handler: Send + Sync + 'static {
    /// What is returned ends the stream; an error is told to the client.
    fn serve(&self, link: Link) -> impl Future<Output = Result<(), Status>> + Send;
}

/// The two directions of one stream.
pub struct Link {
    /// Which method was called.
    pub variant: Variant,
    /// The client's address.
    pub remote: Option<SocketAddr>,
    /// What came with the call, e.g. `authorization`.
    pub metadata: MetadataMap,
    /// From the client.
    pub requests: Requests,
    /// To the client.
    pub responses: Responses,
}

/// Requests of one stream.
pub enum Requests {
    /// Delta.
    Incremental(Box<Streaming<DeltaDiscoveryRequest>>),
    /// SotW.
    StateOfTheWorld(Box<Streaming<DiscoveryRequest>>),
}

/// Where the responses of one stream go. There is room for one that the client hasn't read.
#[derive(Clone)]
pub enum Responses {
    /// Delta.
    Incremental(mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>),
    /// SotW.
    StateOfTheWorld(mpsc::Sender<Result<DiscoveryResponse, Status>>),
}

impl Link {
    /// The next request; `None` at the end of the stream. Cancel safe.
    pub async fn request(&mut self) -> Result<Option<Request>, Status> {
        self.requests.next().await
    }

    /// [`Responses::ready`].
    pub async fn ready(&self) -> bool {
        self.responses.ready().await
    }

    /// [`Responses::is_ready`].
    pub fn is_ready(&self) -> bool {
        self.responses.is_ready()
    }

    /// [`Responses::send`].
    pub async fn send(&self, response: Response) -> bool {
        self.responses.send(response).await
    }
}

impl Requests {
    /// The next request; `None` at the end of the stream. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Request>, Status> {
        match self {
            Self::Incremental(stream) => Ok(stream.message().await?.map(Request::Incremental)),
            Self::StateOfTheWorld(stream) => Ok(stream.message().await?.map(Request::StateOfTheWorld)),
        }
    }
}

impl Responses {
    /// Waits until there is room for a response. Only then is it worth asking the machine for one: what changes until then merges.
    /// Cancel safe. Returns false where the client is gone.
    pub async fn ready(&self) -> bool {
        match self {
            Self::Incremental(sender) => sender.reserve().await.is_ok(),
            Self::StateOfTheWorld(sender) => sender.reserve().await.is_ok(),
        }
    }

    /// True where there is room for a response right now.
    pub fn is_ready(&self) -> bool {
        match self {
            Self::Incremental(sender) => sender.capacity() > 0,
            Self::StateOfTheWorld(sender) => sender.capacity() > 0,
        }
    }

    /// Sends a response; waits where there is no room. Returns false where the client is gone. Not cancel safe: use
    /// [`Responses::ready`] to wait.
    pub async fn send(&self, response: Response) -> bool {
        match (self, response) {
            (Self::Incremental(sender), Response::Incremental(response)) => {
                sender.send(Ok(response)).await.is_ok()
            }
            (Self::StateOfTheWorld(sender), Response::StateOfTheWorld(response)) => {
                sender.send(Ok(response)).await.is_ok()
            }
            // A machine of the other variant: its responses are not for this client.
            _ => false,
        }
    }

    async fn end(self, status: Status) {
        // Where the client is gone there is nobody to tell.
        let _gone = match self {
            Self::Incremental(sender) => sender.send(Err(status)).await.is_err(),
            Self::StateOfTheWorld(sender) => sender.send(Err(status)).await.is_err(),
        };
    }
}

struct Service<H> {
    handler: Arc<H>,
}

type IncrementalResponses = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;
type WholeResponses = ReceiverStream<Result<DiscoveryResponse, Status>>;

impl<H: Handler> Service<H> {
    fn spawn(&self, link: Link) {
        let handler = self.handler.clone();
        tokio::spawn(async move {
            let responses = link.responses.clone();
            if let Err(status) = handler.serve(link).await {
                responses.end(status).await;
            }
        });
    }

    fn incremental(
        &self,
        call: tonic::Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> tonic::Response<IncrementalResponses> {
        let (sender, receiver) = mpsc::channel(1);
        self.spawn(Link {
            variant: Variant::Incremental,
            remote: call.remote_addr(),
            metadata: call.metadata().clone(),
            requests: Requests::Incremental(Box::new(call.into_inner())),
            responses: Responses::Incremental(sender),
        });
        tonic::Response::new(ReceiverStream::new(receiver))
    }

    fn state_of_the_world(
        &self,
        call: tonic::Request<Streaming<DiscoveryRequest>>,
    ) -> tonic::Response<WholeResponses> {
        let (sender, receiver) = mpsc::channel(1);
        self.spawn(Link {
            variant: Variant::StateOfTheWorld,
            remote: call.remote_addr(),
            metadata: call.metadata().clone(),
            requests: Requests::StateOfTheWorld(Box::new(call.into_inner())),
            responses: Responses::StateOfTheWorld(sender),
        });
        tonic::Response::new(ReceiverStream::new(receiver))
    }
}

#[tonic::async_trait]
impl<H: Handler> AggregatedDiscoveryService for Service<H> {
    type DeltaAggregatedResourcesStream = IncrementalResponses;
    type StreamAggregatedResourcesStream = WholeResponses;

    async fn delta_aggregated_resources(
        &self,
        call: tonic::Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<tonic::Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Ok(self.incremental(call))
    }

    async fn stream_aggregated_resources(
        &self,
        call: tonic::Request<Streaming<DiscoveryRequest>>,
    ) -> Result<tonic::Response<Self::StreamAggregatedResourcesStream>, Status> {
        Ok(self.state_of_the_world(call))
    }
}

#[tonic::async_trait]
impl<H: Handler> SecretDiscoveryService for Service<H> {
    type DeltaSecretsStream = IncrementalResponses;
    type StreamSecretsStream = WholeResponses;

    async fn delta_secrets(
        &self,
        call: tonic::Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<tonic::Response<Self::DeltaSecretsStream>, Status> {
        Ok(self.incremental(call))
    }

    async fn stream_secrets(
        &self,
        call: tonic::Request<Streaming<DiscoveryRequest>>,
    ) -> Result<tonic::Response<Self::StreamSecretsStream>, Status> {
        Ok(self.state_of_the_world(call))
    }
}
