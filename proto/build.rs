//! Compiles the .proto files under `proto/` without protoc: to Rust types, gRPC stubs, and a descriptor set for reflection.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message;

const ROOT: &str = "proto";
/// Without it, type URLs would come out without their customary domain.
const TYPE_URL_DOMAIN: &str = "type.googleapis.com";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={ROOT}");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let mut files = Vec::new();
    proto_files(Path::new(ROOT), &mut files)?;
    files.sort();
    let mut compiler = protox::Compiler::new([ROOT])?;
    compiler.include_imports(true).include_source_info(true).open_files(&files)?;
    let set = compiler.file_descriptor_set();

    // Comments become documentation of the Rust types; at run time nobody needs them.
    let mut bare = set.clone();
    bare.file.iter_mut().for_each(|file| file.source_code_info = None);
    fs::write(out.join("descriptors.bin"), bare.encode_to_vec())?;

    let mut config = prost_build::Config::new();
    config
        .include_file("messages.rs")
        .enable_type_names()
        .type_name_domain(["."], TYPE_URL_DOMAIN)
        .bytes(["."])
        .extern_path(".google.protobuf.Any", "crate::any::Any");
    tonic_prost_build::configure().compile_fds_with_config(set, config)?;
    Ok(())
}

fn proto_files(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            proto_files(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            found.push(path);
        }
    }
    Ok(())
}
