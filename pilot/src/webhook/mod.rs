//! What the API server asks before it stores something: pods to be injected, resources to be checked.
//!
//! `review` is the protocol (AdmissionReview v1), [`router`] the paths, `validate` the check and [`certificate`] the key that its
//! server shows. A request that is none gets 400 and why; a pod or resource that is wrong is denied with all
//! that is wrong with it. Nothing here waits for anything but the request.

pub mod certificate;
mod review;
mod validate;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;

use crate::inject::{Injector, Request};
use crate::metrics::{InjectionMetrics, Metrics, observe};
use review::{Answer, Review};

/// An API server takes objects of 3 MiB; a review holds two of them at most.
const MAX_BODY: usize = 8 << 20;
/// API servers wait 30 seconds at most, ten where they aren't told.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// What the handlers go by; shared, and changed at run time.
#[derive(Debug)]
pub struct Webhook {
    /// None before the injection values were read.
    injector: ArcSwapOption<Injector>,
    cluster_domain: Arc<str>,
    metrics: Arc<Metrics>,
}

impl Webhook {
    /// Without an injector yet: pods are put off rather than injected with what nobody asked for.
    pub fn new(cluster_domain: Arc<str>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { injector: ArcSwapOption::empty(), cluster_domain, metrics })
    }

    /// Puts an injector in force, for requests from now on.
    pub fn set_injector(&self, injector: Injector) {
        self.injector.store(Some(Arc::new(injector)));
    }
}

/// All paths.
pub fn router(webhook: Arc<Webhook>) -> Router {
    Router::new()
        .route("/inject", post(inject))
        .route("/inject/{*where}", post(inject_in))
        .route("/validate", post(validate))
        .route("/httpsReady", get(async || "ready\n"))
        .with_state(webhook)
}

async fn inject(State(webhook): State<Arc<Webhook>>, headers: HeaderMap, body: Body) -> Response {
    injected(&webhook, Location::default(), headers, body).await
}

async fn inject_in(
    State(webhook): State<Arc<Webhook>>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    match Location::parse(&path) {
        Ok(location) => injected(&webhook, location, headers, body).await,
        Err(why) => {
            webhook.metrics.injection.requests.inc();
            webhook.metrics.injection.failure.inc();
            refused(StatusCode::BAD_REQUEST, why)
        }
    }
}

/// Where pods of a request live, as its path says: `cluster/<name>/net/<name>`, with `/` written `--slash--`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Location {
    cluster: Option<String>,
    network: Option<String>,
}

impl Location {
    fn parse(path: &str) -> Result<Self, String> {
        let mut location = Self::default();
        let parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
        for pair in parts.chunks(2) {
            let value = |value: &str| Some(value.replace("--slash--", "/"));
            match pair {
                ["cluster", name] => location.cluster = value(name),
                ["net", name] => location.network = value(name),
                _ => {
                    return Err(format!(
                        "/inject/{path}: what follows /inject is cluster/<name> and net/<name>, not {:?}",
                        pair.join("/")
                    ));
                }
            }
        }
        Ok(location)
    }
}

async fn injected(webhook: &Webhook, location: Location, headers: HeaderMap, body: Body) -> Response {
    let metrics = &webhook.metrics.injection;
    metrics.requests.inc();
    let review = match read(&headers, body).await {
        Ok(review) => review,
        Err(response) => {
            metrics.failure.inc();
            return response;
        }
    };
    let Some(injector) = webhook.injector.load_full() else {
        metrics.failure.inc();
        return refused(
            StatusCode::SERVICE_UNAVAILABLE,
            "the injection values have not been read yet".into(),
        );
    };
    let start = Instant::now();
    let answer = answer_injection(&injector, metrics, &location, review);
    observe(&metrics.time, start.elapsed());
    answer.unwrap_or_else(|why| {
        metrics.failure.inc();
        refused(StatusCode::BAD_REQUEST, why)
    })
}

fn answer_injection(
    injector: &Injector,
    metrics: &InjectionMetrics,
    location: &Location,
    review: Review,
) -> Result<Response, String> {
    if review.kind.kind != "Pod" {
        return Err(format!("the review is about a {}; only Pods are injected", review.kind.kind));
    }
    let Some(pod) = review.object else { return Err("the review has no object".into()) };
    let request = Request {
        pod,
        namespace: &review.namespace,
        made_by: None,
        cluster: location.cluster.as_deref(),
        network: location.network.as_deref(),
    };
    let name = || format!("{}/{}", review.namespace, review.name);
    let before = request.pod.clone();
    let answer = match injector.inject(request) {
        Err(refusal) => {
            metrics.failure.inc();
            tracing::info!(pod = name(), "not injected: {refusal}");
            Answer::denied(review.uid, &refusal.0)
        }
        Ok(injected) => {
            for warning in &injected.warnings {
                tracing::info!(pod = name(), "{warning}");
            }
            match injected.outcome {
                Ok(after) => {
                    metrics.success.inc();
                    Answer::patched(review.uid, &json_patch::diff(&before, &after))
                }
                Err(skipped) => {
                    metrics.skip.inc();
                    tracing::debug!(pod = name(), "not injected: {skipped}");
                    Answer::allowed(review.uid)
                }
            }
            .with_warnings(injected.warnings)
        }
    };
    Ok(answer.into_response())
}

async fn validate(State(webhook): State<Arc<Webhook>>, headers: HeaderMap, body: Body) -> Response {
    let review = match read(&headers, body).await {
        Ok(review) => review,
        Err(response) => {
            webhook.metrics.validation_failed.inc();
            return response;
        }
    };
    let uid = review.uid.clone();
    let verdict = validate::check(review, &webhook.cluster_domain);
    let answer = if verdict.errors.is_empty() {
        webhook.metrics.validation_passed.inc();
        Answer::allowed(uid)
    } else {
        webhook.metrics.validation_failed.inc();
        Answer::denied(uid, &verdict.errors)
    };
    answer.with_warnings(verdict.warnings).into_response()
}

/// The review of a request, or what to answer where it has none.
async fn read(headers: &HeaderMap, body: Body) -> Result<Review, Response> {
    let wrong = |why: String| refused(StatusCode::BAD_REQUEST, why);
    let content = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content.split(';').next().map(str::trim) != Some("application/json") {
        return Err(wrong(format!("the content type must be application/json, not {content:?}")));
    }
    let body: Bytes = match tokio::time::timeout(READ_TIMEOUT, axum::body::to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => {
            let why = format!("the body can't be read, or is larger than {MAX_BODY} bytes: {error}");
            return Err(refused(StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        Err(_) => return Err(refused(StatusCode::REQUEST_TIMEOUT, "the body did not come in time".into())),
    };
    Review::parse(&body).map_err(wrong)
}

fn refused(status: StatusCode, why: String) -> Response {
    tracing::warn!("webhook: {why}");
    (status, format!("{why}\n")).into_response()
}

#[cfg(test)]
mod tests;
