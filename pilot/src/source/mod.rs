//! Where resources come from: a folder of YAML.
//!
//! `yaml` reads text into nodes that know their lines, `decode` fills typed structs from nodes and names the path of whatever does
//! not fit, `object` makes one checked resource of one document (`mesh_config` that of the mesh), `folder` holds what the files say, `watch` follows them.

pub mod decode;
pub mod folder;
pub mod json;
mod mesh_config;
pub mod object;
pub mod watch;
pub mod yaml;
