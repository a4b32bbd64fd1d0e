//! Where resources come from: a folder of YAML.
//!
//! `yaml` reads text into nodes that know their lines, `decode` fills typed structs from nodes and names the path of whatever does
//! not fit, `schema` has those structs, `object` makes one checked resource of one document, `folder` follows the files.

pub mod decode;
pub mod yaml;
