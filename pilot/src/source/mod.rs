//! Where resources come from: a folder of YAML, or an API server.
//!
//! `yaml` reads text into nodes that know their lines, `decode` fills typed structs from nodes and names the path of whatever does
//! not fit, `object` makes one checked resource of one document (`mesh_config` that of the mesh), `folder` holds what the files say, `watch` follows them.
//! `kubernetes` follows an API server; `json` turns its objects into nodes. `selection` says which namespaces count.

pub mod decode;
pub mod folder;
pub mod json;
pub mod kubernetes;
mod mesh_config;
pub mod object;
mod selection;
pub mod watch;
pub mod yaml;

pub use mesh_config::check_text as check_mesh_config;
