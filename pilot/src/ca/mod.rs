//! The mesh's certificate authority: who somebody is becomes a certificate that says so.
//!
//! `authority` signs, `service` is how workloads ask (`istio.v1.auth.IstioCertificateService`), `local` is the authority of a mesh
//! without Kubernetes. A certificate names the caller as it has proved to be, whatever its request says.

pub mod authority;
pub mod local;
pub mod own;
pub mod service;
