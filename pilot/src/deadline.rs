//! Waiting for a time that may never come.

use tokio::time::Instant;

/// Completes at `deadline`; without one, never.
pub async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
