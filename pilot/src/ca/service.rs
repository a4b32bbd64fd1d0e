//! `istio.v1.auth.IstioCertificateService`: certificates for whoever proves who it is.
//!
//! The names of a certificate are those of the caller. Messages to callers are Istio's where an agent may look at them; who was
//! refused and why is in the log.

use std::sync::Arc;
use std::time::Duration;

use osier_proto::types::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use osier_proto::types::ca::{IstioCertificateRequest, IstioCertificateResponse};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::authority::SignError;
use super::in_force::Signs;
use super::limit::Limits;
use crate::metrics::Metrics;
use crate::snapshot::MeshSnapshot;
use crate::xds::identity::{Authenticate, of_call};

/// Largest request.
const MAX_MESSAGE: usize = 64 * 1024;

/// Signs for callers.
#[derive(Debug)]
pub struct Certificates {
    /// Who signs.
    pub authority: Signs,
    /// Who callers are.
    pub authenticate: Arc<dyn Authenticate>,
    /// Says what the trust domain is.
    pub mesh: watch::Receiver<Arc<MeshSnapshot>>,
    /// How often they may ask.
    pub limits: Limits,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// The service, for a gRPC server.
pub fn service(certificates: Certificates) -> IstioCertificateServiceServer<impl IstioCertificateService> {
    IstioCertificateServiceServer::new(certificates).max_decoding_message_size(MAX_MESSAGE)
}

#[tonic::async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        call: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.metrics.csrs.inc();
        let signed = self.sign(call).await;
        match &signed {
            Ok(_) => self.metrics.certificates_issued.inc(),
            Err(status) => tracing::warn!("no certificate: {:?}: {}", status.code(), status.message()),
        }
        signed
    }
}

impl Certificates {
    async fn sign(
        &self,
        call: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = of_call(&*self.authenticate, call.metadata()).await?;
        let spiffe = caller.identity.spiffe(&self.mesh.borrow().mesh.trust_domain);
        self.limits.admit(&caller).map_err(|wait| {
            let wait = wait.as_secs() + 1;
            Status::resource_exhausted(format!("{spiffe} has asked too often: ask again in {wait} s"))
        })?;
        let request = call.into_inner();
        let life = u64::try_from(request.validity_duration).ok().filter(|seconds| *seconds > 0);
        let authority = self.authority.borrow().clone();
        let authority =
            authority.ok_or_else(|| Status::internal("the certificate authority is not ready"))?;
        let signed = authority.workload(&request.csr, &spiffe, life.map(Duration::from_secs));
        let cert_chain = signed.map_err(|error| match error {
            SignError::Request(_) | SignError::TooLong { .. } => Status::invalid_argument(error.to_string()),
            SignError::Ended | SignError::Issue(_) => Status::internal(error.to_string()),
        })?;
        tracing::debug!(%spiffe, "certificate issued");
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use futures_util::future::BoxFuture;
    use rcgen::{CertificateParams, KeyPair};
    use tonic::Code;

    use super::*;
    use crate::ca::authority::tests::authority;
    use crate::xds::identity::{Caller, Denied, Identity};

    #[derive(Debug)]
    struct Known;

    impl Authenticate for Known {
        fn authenticate(&self, token: String) -> BoxFuture<'_, Result<Caller, Denied>> {
            let known = match token.as_str() {
                "web" => Ok(Identity { namespace: "a".into(), service_account: "web".into() }.into()),
                _ => Err(Denied::Token("nobody's".into())),
            };
            std::future::ready(known).boxed()
        }
    }

    async fn ask(token: Option<&str>, csr: &str, seconds: i64, ready: bool) -> Result<Vec<String>, Code> {
        let (_keep, receiver) = watch::channel(ready.then(|| Arc::new(authority())));
        let certificates = Certificates {
            authority: receiver,
            authenticate: Arc::new(Known),
            mesh: watch::channel(Arc::default()).1,
            limits: Limits::default(),
            metrics: Arc::new(Metrics::new()),
        };
        let mut call = Request::new(IstioCertificateRequest {
            csr: csr.into(),
            validity_duration: seconds,
            metadata: None,
        });
        if let Some(token) = token {
            call.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let answer = certificates.create_certificate(call).await;
        answer.map(|answer| answer.into_inner().cert_chain).map_err(|status| status.code())
    }

    #[tokio::test]
    async fn only_who_proves_who_it_is_gets_a_certificate() {
        let csr = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
        let csr = csr.pem().unwrap();
        assert_eq!(ask(Some("web"), &csr, 0, true).await.unwrap().len(), 2);
        for (token, csr, seconds, ready, code) in [
            (None, csr.as_str(), 0, true, Code::Unauthenticated),
            (Some("other"), &csr, 0, true, Code::Unauthenticated),
            (Some("web"), "nothing", 0, true, Code::InvalidArgument),
            (Some("web"), &csr, 10 * 365 * 24 * 3600, true, Code::InvalidArgument),
            (Some("web"), &csr, 0, false, Code::Internal),
        ] {
            assert_eq!(ask(token, csr, seconds, ready).await.unwrap_err(), code, "{token:?} {seconds}");
        }
    }
}
