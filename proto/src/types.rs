//! Short names for the messages' modules, and the type URLs of resources.

pub use crate::envoy::admin::v3 as admin;
pub use crate::envoy::config::accesslog::v3 as accesslog;
pub use crate::envoy::config::bootstrap::v3 as bootstrap;
pub use crate::envoy::config::cluster::v3 as cluster;
pub use crate::envoy::config::core::v3 as core;
pub use crate::envoy::config::endpoint::v3 as endpoint;
pub use crate::envoy::config::listener::v3 as listener;
pub use crate::envoy::config::rbac::v3 as rbac;
pub use crate::envoy::config::route::v3 as route;
pub use crate::envoy::extensions::access_loggers::file::v3 as file_access_log;
pub use crate::envoy::extensions::access_loggers::stream::v3 as stream_access_log;
pub use crate::envoy::extensions::filters::http::ext_authz::v3 as http_ext_authz;
pub use crate::envoy::extensions::filters::http::jwt_authn::v3 as jwt_authn;
pub use crate::envoy::extensions::filters::http::rbac::v3 as http_rbac;
pub use crate::envoy::extensions::filters::http::router::v3 as http_router;
pub use crate::envoy::extensions::filters::listener::http_inspector::v3 as http_inspector;
pub use crate::envoy::extensions::filters::listener::original_dst::v3 as original_dst;
pub use crate::envoy::extensions::filters::listener::tls_inspector::v3 as tls_inspector;
pub use crate::envoy::extensions::filters::network::ext_authz::v3 as network_ext_authz;
pub use crate::envoy::extensions::filters::network::http_connection_manager::v3 as http_connection_manager;
pub use crate::envoy::extensions::filters::network::rbac::v3 as network_rbac;
pub use crate::envoy::extensions::filters::network::sni_cluster::v3 as sni_cluster;
pub use crate::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_proxy;
pub use crate::envoy::extensions::http::header_formatters::preserve_case::v3 as preserve_case;
pub use crate::envoy::extensions::path::r#match::uri_template::v3 as uri_template;
pub use crate::envoy::extensions::request_id::uuid::v3 as uuid_request_id;
pub use crate::envoy::extensions::retry::host::previous_hosts::v3 as previous_hosts;
pub use crate::envoy::extensions::retry::priority::previous_priorities::v3 as previous_priorities;
pub use crate::envoy::extensions::transport_sockets::raw_buffer::v3 as raw_buffer;
pub use crate::envoy::extensions::transport_sockets::tls::v3 as tls;
pub use crate::envoy::extensions::upstreams::http::v3 as upstream_http;
pub use crate::envoy::service::auth::v3 as auth;
pub use crate::envoy::service::discovery::v3 as discovery;
pub use crate::envoy::service::secret::v3 as secret_discovery;
pub use crate::envoy::service::status::v3 as status;
pub use crate::envoy::r#type::matcher::v3 as matcher;
pub use crate::envoy::r#type::v3 as value;
pub use crate::google::rpc;
pub use crate::istio::networking::nds::v1 as nds;
pub use crate::istio::v1::auth as ca;
pub use crate::messages::udpa::r#type::v1 as udpa_typed_struct;
pub use crate::messages::xds::r#type::v3 as xds_typed_struct;
pub use crate::osier::filters::http::explicit_proxy::v1 as explicit_proxy;
pub use crate::osier::filters::http::peer_metadata::v1 as peer_metadata;

/// LDS.
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// RDS.
pub const ROUTE_CONFIGURATION: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// VHDS; resource names are `<route config>/<host>`.
pub const VIRTUAL_HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
/// CDS.
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// EDS.
pub const CLUSTER_LOAD_ASSIGNMENT: &str =
    "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// NDS, Istio's: hosts and their addresses for the DNS server of a sidecar.
pub const NAME_TABLE: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";
/// SDS.
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// CSDS, and what `istioctl proxy-status` asks for.
pub const CLIENT_CONFIG: &str = "type.googleapis.com/envoy.service.status.v3.ClientConfig";

/// Key of a cluster's HTTP options in `typed_extension_protocol_options`.
pub const HTTP_PROTOCOL_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

#[cfg(test)]
mod tests {
    use prost::Name;

    use super::*;

    #[test]
    fn constants_are_the_messages_own_urls() {
        assert_eq!(LISTENER, listener::Listener::type_url());
        assert_eq!(ROUTE_CONFIGURATION, route::RouteConfiguration::type_url());
        assert_eq!(VIRTUAL_HOST, route::VirtualHost::type_url());
        assert_eq!(CLUSTER, cluster::Cluster::type_url());
        assert_eq!(CLUSTER_LOAD_ASSIGNMENT, endpoint::ClusterLoadAssignment::type_url());
        assert_eq!(NAME_TABLE, nds::NameTable::type_url());
        assert_eq!(SECRET, tls::Secret::type_url());
        assert_eq!(CLIENT_CONFIG, status::ClientConfig::type_url());
        assert_eq!(HTTP_PROTOCOL_OPTIONS, upstream_http::HttpProtocolOptions::full_name());
    }
}
