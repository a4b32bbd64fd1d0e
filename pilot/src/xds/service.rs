//! The aggregated discovery service: one task for each stream.

use std::sync::Arc;

use osier_proto::transport::{Handler, Link};
use tonic::Status;

use super::stream::{Shared, serve};

/// Takes streams in.
#[derive(Debug, Clone)]
pub struct Discovery(pub Arc<Shared>);

impl Handler for Discovery {
    async fn serve(&self, link: Link) -> Result<(), Status> {
        serve(self.0.clone(), link).await
    }
}
