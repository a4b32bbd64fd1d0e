//! Compiles the .proto files under `proto/` without protoc: to Rust types, gRPC stubs, a descriptor set for reflection, and the small
//! table by which `unknown` finds fields that are not declared.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

const ROOT: &str = "proto";
/// Names of fields and enum values that exist in Envoy's API and are not declared here, one `message number name` a line.
const UNDECLARED: &str = "undeclared.txt";
/// Without it, type URLs would come out without their customary domain.
const TYPE_URL_DOMAIN: &str = "type.googleapis.com";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={ROOT}");
    println!("cargo::rerun-if-changed={UNDECLARED}");
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

    fs::write(out.join("table.rs"), Table::new(&bare).render(&fs::read_to_string(UNDECLARED)?)?)?;

    let mut config = prost_build::Config::new();
    config
        .include_file("messages.rs")
        .enable_type_names()
        .type_name_domain(["."], TYPE_URL_DOMAIN)
        .bytes(["."])
        // Ordered maps encode the same way each time: versions are hashes of encoded content.
        .btree_map(["."])
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

/// All declared messages and enums, by full name without the leading dot.
struct Table {
    messages: BTreeMap<String, DescriptorProto>,
    enums: BTreeMap<String, EnumDescriptorProto>,
}

impl Table {
    fn new(set: &FileDescriptorSet) -> Self {
        let mut table = Self { messages: BTreeMap::new(), enums: BTreeMap::new() };
        for file in set.file.iter().filter(|file| file.package() != "google.protobuf") {
            file.message_type.iter().for_each(|message| table.add(file.package(), message));
            file.enum_type.iter().for_each(|it| table.add_enum(file.package(), it));
        }
        table
    }

    fn add(&mut self, scope: &str, message: &DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        message.nested_type.iter().for_each(|nested| self.add(&name, nested));
        message.enum_type.iter().for_each(|nested| self.add_enum(&name, nested));
        self.messages.insert(name, message.clone());
    }

    fn add_enum(&mut self, scope: &str, it: &EnumDescriptorProto) {
        self.enums.insert(format!("{scope}.{}", it.name()), it.clone());
    }

    /// Rust source of the two statics; both are sorted by name, fields and values by number.
    fn render(&self, undeclared: &str) -> Result<String, Box<dyn Error>> {
        let mut names: BTreeMap<&str, Vec<(i32, &str)>> = BTreeMap::new();
        for line in undeclared.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let words: Vec<&str> = line.split(' ').collect();
            let [scope, number, name] = words[..] else { return Err(format!("{UNDECLARED}: {line}").into()) };
            names.entry(scope).or_default().push((number.parse()?, name));
        }
        let mut out = String::from("pub(super) static MESSAGES: &[Message] = &[\n");
        for (name, message) in &self.messages {
            let mut fields: Vec<&FieldDescriptorProto> = message.field.iter().collect();
            fields.sort_by_key(|field| field.number());
            let fields: Vec<String> = fields.into_iter().map(|field| self.field(field)).collect();
            let undeclared = names.get(name.as_str()).map(Vec::as_slice).unwrap_or_default();
            writeln!(
                out,
                "Message {{ name: {name:?}, fields: &[{}], undeclared: &{undeclared:?} }},",
                fields.join(", ")
            )?;
        }
        out.push_str("];\npub(super) static ENUMS: &[Enum] = &[\n");
        for (name, it) in &self.enums {
            let mut values: Vec<i32> = it.value.iter().map(|value| value.number()).collect();
            values.sort();
            let undeclared = names.get(name.as_str()).map(Vec::as_slice).unwrap_or_default();
            writeln!(out, "Enum {{ name: {name:?}, values: &{values:?}, undeclared: &{undeclared:?} }},")?;
        }
        out.push_str("];\n");
        Ok(out)
    }

    fn field(&self, field: &FieldDescriptorProto) -> String {
        let type_name = field.type_name().trim_start_matches('.');
        let place = |of: Option<usize>| of.expect("types are declared before they are used");
        let kind = match field.r#type() {
            Type::Enum => format!("Enum({})", place(self.enums.keys().position(|name| name == type_name))),
            Type::Message if type_name == "google.protobuf.Any" => "Any".to_owned(),
            Type::Message if type_name.starts_with("google.protobuf.") => "Opaque".to_owned(),
            Type::Message => {
                let map =
                    self.messages[type_name].options.as_ref().is_some_and(|options| options.map_entry());
                let index = place(self.messages.keys().position(|name| name == type_name));
                format!("{}({index})", if map { "Map" } else { "Message" })
            }
            _ => "Opaque".to_owned(),
        };
        let (number, name, repeated) = (field.number(), field.name(), field.label() == Label::Repeated);
        format!("Field {{ number: {number}, name: {name:?}, repeated: {repeated}, kind: Kind::{kind} }}")
    }
}
