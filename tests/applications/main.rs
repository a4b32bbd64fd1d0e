//! Real applications behind sidecars, as a user starts them: `osier up` on a folder, `osier run` for each program.
//!
//! The applications listen on 127.0.0.1 only, and the services' ports differ from theirs, so a call that arrives went
//! through both sidecars.

mod databases;
mod grpc;
mod mesh;
mod nginx;
mod outside;
mod redis;
mod streams;
