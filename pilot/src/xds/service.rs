//! The aggregated discovery service: one task for each stream.

use std::sync::Arc;

use osier_proto::transport::{Handler, Link};
use tonic::Status;

use super::identity::Authenticate;
use super::stream::{Shared, serve};

/// Takes streams in.
#[derive(Debug, Clone)]
pub struct Discovery {
    /// What all streams share.
    pub shared: Arc<Shared>,
    /// Who may come, on the encrypted port.
    pub authenticate: Option<Arc<dyn Authenticate>>,
}

impl Handler for Discovery {
    async fn serve(&self, link: Link) -> Result<(), Status> {
        serve(self.shared.clone(), link, self.authenticate.clone()).await
    }
}
