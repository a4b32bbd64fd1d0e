//! The client's end: one `DeltaAggregatedResources` stream that drives a [`Client`].

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use super::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MAX_RESPONSE_BYTES};
use crate::types::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::types::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::xds::client::{Client, Received};

/// Limit of one attempt to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const STREAM_WINDOW: u32 = 1 << 20;

/// The address of the server is no URI, or it cannot be reached.
#[derive(Debug, thiserror::Error)]
#[error("cannot reach the xDS server: {source}")]
pub struct ConnectError {
    /// What tonic said.
    #[from]
    source: tonic::transport::Error,
}

/// A server, e.g. `http://127.0.0.1:15010`, with the settings that a long-lived stream needs.
pub fn endpoint(uri: &str) -> Result<Endpoint, ConnectError> {
    Ok(Endpoint::from_shared(uri.to_owned())?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW))
}

/// An open stream.
pub struct Connection {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Responses,
}

type Opening = Pin<Box<dyn Future<Output = Result<Streaming<DeltaDiscoveryResponse>, Status>> + Send>>;

/// A server may send its response head with its first message only, so requests have to go out before the call has returned.
enum Responses {
    Opening(Opening),
    Open(Box<Streaming<DeltaDiscoveryResponse>>),
}

impl Connection {
    /// Connects and opens the stream. After it, call [`Client::on_connected`].
    pub async fn open(endpoint: &Endpoint) -> Result<Self, ConnectError> {
        Ok(Self::over(endpoint.connect().await?))
    }

    /// Opens a stream over a channel that exists.
    pub fn over(channel: Channel) -> Self {
        let mut stub =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES);
        let (requests, outgoing) = mpsc::channel(1);
        let opening = async move {
            let response = stub.delta_aggregated_resources(ReceiverStream::new(outgoing)).await?;
            Ok(response.into_inner())
        };
        Self { requests, responses: Responses::Opening(Box::pin(opening)) }
    }

    /// Sends what the client has to say, until a response comes. An error is the end of the stream: then call
    /// [`Client::on_disconnected`] and open another one at the time that it says.
    ///
    /// Cancel safe: nothing is lost when the future is dropped, so it can stand in a `select!` beside whatever else changes `client`.
    pub async fn next(&mut self, client: &mut Client) -> Result<Received, Status> {
        loop {
            let mut blocked = false;
            loop {
                match self.requests.try_reserve() {
                    Ok(permit) => match client.next_request() {
                        Some(request) => permit.send(request),
                        None => break,
                    },
                    Err(mpsc::error::TrySendError::Full(())) => {
                        blocked = true;
                        break;
                    }
                    // The response side knows why.
                    Err(mpsc::error::TrySendError::Closed(())) => break,
                }
            }
            tokio::select! {
                response = self.responses.next() => return response.map(|response| client.on_response(response)),
                room = self.requests.reserve(), if blocked => drop(room),
            }
        }
    }

    /// Ends the stream politely: the server sees its end, and not a transport that broke. Waits at most `patience` for that.
    pub async fn finish(self, patience: Duration) {
        let Self { requests, mut responses } = self;
        drop(requests);
        let until_its_end = async { while responses.next().await.is_ok() {} };
        // A server that does not end its side is left behind.
        let _ended = tokio::time::timeout(patience, until_its_end).await.is_ok();
    }
}

impl Responses {
    async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        loop {
            match self {
                Self::Opening(opening) => *self = Self::Open(Box::new(opening.as_mut().await?)),
                Self::Open(stream) => {
                    let closed = || Status::unavailable("the server closed the stream");
                    return stream.message().await?.ok_or_else(closed);
                }
            }
        }
    }
}
