//! The client's end: one stream of either method that drives a [`Client`].

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use super::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MAX_RESPONSE_BYTES};
use crate::types::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::types::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::xds::client::{Client, Received};
use crate::xds::{Request, Response, Variant};

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
    variant: Variant,
    outgoing: Outgoing,
    responses: Responses,
}

/// Where the requests of one stream go. There is room for one that isn't on its way yet.
enum Outgoing {
    Incremental(mpsc::Sender<DeltaDiscoveryRequest>),
    StateOfTheWorld(mpsc::Sender<DiscoveryRequest>),
}

type Opening = Pin<Box<dyn Future<Output = Result<Incoming, Status>> + Send>>;

/// A server may send its response head with its first message only, so requests have to go out before the call has returned.
enum Responses {
    Opening(Opening),
    Open(Incoming),
}

enum Incoming {
    Incremental(Box<Streaming<DeltaDiscoveryResponse>>),
    StateOfTheWorld(Box<Streaming<DiscoveryResponse>>),
}

impl Connection {
    /// Connects and opens the stream. After it, call [`Client::on_connected`].
    pub async fn open(endpoint: &Endpoint, variant: Variant) -> Result<Self, ConnectError> {
        Ok(Self::over(endpoint.connect().await?, variant, None))
    }

    /// Opens a stream over a channel that exists. `authorization` says who calls, e.g. `Bearer …`.
    pub fn over(channel: Channel, variant: Variant, authorization: Option<AsciiMetadataValue>) -> Self {
        let mut stub =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES);
        let (outgoing, opening): (Outgoing, Opening) = match variant {
            Variant::Incremental => {
                let (requests, outgoing) = mpsc::channel(1);
                let opening = async move {
                    let call = stub.delta_aggregated_resources(call(outgoing, authorization));
                    Ok(Incoming::Incremental(Box::new(call.await?.into_inner())))
                };
                (Outgoing::Incremental(requests), Box::pin(opening))
            }
            Variant::StateOfTheWorld => {
                let (requests, outgoing) = mpsc::channel(1);
                let opening = async move {
                    let call = stub.stream_aggregated_resources(call(outgoing, authorization));
                    Ok(Incoming::StateOfTheWorld(Box::new(call.await?.into_inner())))
                };
                (Outgoing::StateOfTheWorld(requests), Box::pin(opening))
            }
        };
        Self { variant, outgoing, responses: Responses::Opening(opening) }
    }

    /// Sends what the client has to say, until a response comes. An error is the end of the stream: then call
    /// [`Client::on_disconnected`] and open another one at the time that it says. The client must be of the stream's variant.
    ///
    /// Cancel safe: nothing is lost when the future is dropped, so it can stand in a `select!` beside whatever else changes `client`.
    pub async fn next(&mut self, client: &mut Client) -> Result<Received, Status> {
        if client.variant() != self.variant {
            return Err(Status::internal("the client speaks the other variant of the protocol"));
        }
        loop {
            let blocked = self.outgoing.send_all(client);
            tokio::select! {
                response = self.responses.next() => {
                    let now = tokio::time::Instant::now().into_std();
                    return response.map(|response| client.on_response(response, now));
                }
                () = self.outgoing.room(), if blocked => {}
            }
        }
    }

    /// Ends the stream politely: the server sees its end, and not a transport that broke. Waits at most `patience` for it to end its
    /// side too; false where it didn't.
    pub async fn finish(self, patience: Duration) -> bool {
        let Self { outgoing, mut responses, .. } = self;
        drop(outgoing);
        let until_its_end = async { while responses.next().await.is_ok() {} };
        // A server that does not end its side is left behind.
        tokio::time::timeout(patience, until_its_end).await.is_ok()
    }
}

fn call<T>(
    outgoing: mpsc::Receiver<T>,
    authorization: Option<AsciiMetadataValue>,
) -> tonic::Request<ReceiverStream<T>> {
    let mut call = tonic::Request::new(ReceiverStream::new(outgoing));
    if let Some(authorization) = authorization {
        call.metadata_mut().insert("authorization", authorization);
    }
    call
}

impl Outgoing {
    /// Sends what the client has to say; true where there is no room for all of it.
    fn send_all(&self, client: &mut Client) -> bool {
        while self.has_room() {
            match (self, client.next_request()) {
                (_, None) => return false,
                // Where the stream has ended, the response side knows why.
                (Self::Incremental(sender), Some(Request::Incremental(request))) => {
                    let _ended = sender.try_send(request).is_err();
                }
                (Self::StateOfTheWorld(sender), Some(Request::StateOfTheWorld(request))) => {
                    let _ended = sender.try_send(request).is_err();
                }
                // `next` has seen to it that they are of one variant.
                _ => return false,
            }
        }
        !self.is_closed()
    }

    fn has_room(&self) -> bool {
        match self {
            Self::Incremental(sender) => !sender.is_closed() && sender.capacity() > 0,
            Self::StateOfTheWorld(sender) => !sender.is_closed() && sender.capacity() > 0,
        }
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Incremental(sender) => sender.is_closed(),
            Self::StateOfTheWorld(sender) => sender.is_closed(),
        }
    }

    async fn room(&self) {
        match self {
            Self::Incremental(sender) => drop(sender.reserve().await),
            Self::StateOfTheWorld(sender) => drop(sender.reserve().await),
        }
    }
}

impl Responses {
    async fn next(&mut self) -> Result<Response, Status> {
        let closed = || Status::unavailable("the server closed the stream");
        loop {
            match self {
                Self::Opening(opening) => *self = Self::Open(opening.as_mut().await?),
                Self::Open(Incoming::Incremental(stream)) => {
                    return stream.message().await?.map(Response::Incremental).ok_or_else(closed);
                }
                Self::Open(Incoming::StateOfTheWorld(stream)) => {
                    return stream.message().await?.map(Response::StateOfTheWorld).ok_or_else(closed);
                }
            }
        }
    }
}
