//! Asks the mesh's certificate authority (`istio.v1.auth.IstioCertificateService`) to certify a key.

use std::time::Duration;

use osier_proto::types::ca::IstioCertificateRequest;
use osier_proto::types::ca::istio_certificate_service_client::IstioCertificateServiceClient;

use super::request::{Issued, Request, Useless};
use crate::bootstrap::XdsServer;
use crate::config::tls::Trust;
use crate::xds::connect::{self, ConnectError};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum NotIssued {
    /// A key can't be made.
    #[error("a key can't be made: {0}")]
    Key(#[from] rcgen::Error),
    /// The authority is not there.
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// It refuses.
    #[error("the certificate authority says {:?}: {}", .0.code(), .0.message())]
    Refused(Box<tonic::Status>),
    /// It answers with something else.
    #[error(transparent)]
    Useless(#[from] Useless),
}

/// Has a new key certified by `server`, which is asked at its `attempt`th address, for `life` at most. `mesh`: the roots in force.
/// `as_text`: as in [`Request::complete`].
pub async fn issue(
    server: &XdsServer,
    attempt: usize,
    life: Duration,
    mesh: Option<&Trust>,
    as_text: bool,
) -> Result<Issued, NotIssued> {
    let request = Request::new()?;
    let (channel, authorization) = connect::channel(server, attempt, mesh).await?;
    let mut call = tonic::Request::new(IstioCertificateRequest {
        csr: request.csr().to_owned(),
        validity_duration: life.as_secs() as i64,
        metadata: None,
    });
    call.set_timeout(PATIENCE);
    if let Some(authorization) = authorization {
        call.metadata_mut().insert("authorization", authorization);
    }
    let asked = tokio::time::timeout(PATIENCE, async {
        IstioCertificateServiceClient::new(channel).create_certificate(call).await
    });
    let answer = asked.await.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer")));
    let answer = answer.map_err(|status| NotIssued::Refused(Box::new(status)))?.into_inner();
    Ok(request.complete(&answer.cert_chain, as_text)?)
}
