//! The mesh's certificate authority: who somebody is becomes a certificate that says so.
//!
//! `authority` signs, `in_force` says which one does, `limit` how often one may ask, `material` reads one that people plug in, `service` is how workloads ask
//! (`istio.v1.auth.IstioCertificateService`), `local` is the authority of a mesh without Kubernetes, `own` the certificate of the
//! control plane's servers. A certificate names the caller as it has proved to be, whatever its request says.

pub mod authority;
pub mod in_force;
pub mod limit;
pub mod local;
pub mod material;
pub mod own;
pub mod service;
