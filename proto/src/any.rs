//! `google.protobuf.Any` whose value is shared bytes.
//!
//! A control plane sends one encoded resource to many proxies; with `Bytes` each of them costs a reference, not a copy.

use bytes::Bytes;
use prost::{DecodeError, Message, Name};

/// An encoded message with the name of its type.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Any {
    /// Type URL, e.g. `type.googleapis.com/envoy.config.cluster.v3.Cluster`.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The encoded message.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// Why an [`Any`] could not be read as the type that was wanted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AnyError {
    /// It holds another type.
    #[error("expected {expected}, found {found}")]
    WrongType {
        /// Type URL that was wanted.
        expected: String,
        /// Type URL that was there.
        found: String,
    },
    /// Its bytes are not that type.
    #[error("{type_url}: {source}")]
    Malformed {
        /// Type URL.
        type_url: String,
        /// What the decoder said.
        #[source]
        source: DecodeError,
    },
}

impl Any {
    /// Encodes `message`.
    pub fn pack<M: Message + Name>(message: &M) -> Self {
        Self { type_url: M::type_url(), value: message.encode_to_vec().into() }
    }

    /// True where this holds an `M`.
    pub fn is<M: Name>(&self) -> bool {
        self.type_name() == M::full_name()
    }

    /// Decodes the content, which must be an `M`. Byte fields of the result share this value's memory.
    pub fn unpack<M: Message + Name + Default>(&self) -> Result<M, AnyError> {
        if !self.is::<M>() {
            return Err(AnyError::WrongType { expected: M::type_url(), found: self.type_url.clone() });
        }
        M::decode(self.value.clone())
            .map_err(|source| AnyError::Malformed { type_url: self.type_url.clone(), source })
    }

    /// The type's full name: what follows the last slash of the URL.
    pub fn type_name(&self) -> &str {
        self.type_url.rsplit('/').next().unwrap_or_default()
    }
}

impl Name for Any {
    const NAME: &'static str = "Any";
    const PACKAGE: &'static str = "google.protobuf";

    fn type_url() -> String {
        "type.googleapis.com/google.protobuf.Any".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::config::core::v3::{Locality, Pipe};

    #[test]
    fn packs_and_unpacks_with_the_customary_url() {
        let any = Any::pack(&Pipe { path: "/run/x".into() });
        assert_eq!(any.type_url, "type.googleapis.com/envoy.config.core.v3.Pipe");
        assert_eq!(any.unpack::<Pipe>().unwrap().path, "/run/x");
        assert!(matches!(any.unpack::<Locality>(), Err(AnyError::WrongType { .. })));
    }

    #[test]
    fn malformed_content_names_its_type() {
        let any = Any { type_url: Pipe::type_url(), value: Bytes::from_static(&[0x0a, 0x7f]) };
        assert!(any.unpack::<Pipe>().unwrap_err().to_string().contains("envoy.config.core.v3.Pipe"));
    }
}
