//! Access logs of listeners, HTTP connection managers and TCP proxies.

use std::sync::Arc;

use osier_proto::types::{
    accesslog::{self as xds, access_log::ConfigType},
    core::{SubstitutionFormatString, data_source, substitution_format_string::Format},
    file_access_log::{FileAccessLog, file_access_log},
    stream_access_log::{StderrAccessLog, StdoutAccessLog, stderr_access_log, stdout_access_log},
};

use super::value::{as_text, extension, not_empty, required, unsupported_extension};
use super::{At, Invalid};
use crate::config::listener::{AccessLogConfig, AccessLogFormat, AccessLogSink};
use crate::http::template::Template;

/// What Envoy writes where no format is given.
const ENVOY_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
    \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

pub(super) fn compile(field: &str, logs: &[xds::AccessLog]) -> Result<Vec<Arc<AccessLogConfig>>, Invalid> {
    logs.iter().enumerate().map(|(index, log)| one(log).at_index(field, index).map(Arc::new)).collect()
}

fn one(log: &xds::AccessLog) -> Result<AccessLogConfig, Invalid> {
    let ConfigType::TypedConfig(config) = required("typed_config", log.config_type.as_ref())?;
    let (sink, format_string) = if config.is::<FileAccessLog>() {
        let FileAccessLog { path, access_log_format } = extension(config)?;
        not_empty("typed_config.path", &path)?;
        let format = access_log_format.map(|f| match f {
            file_access_log::AccessLogFormat::LogFormat(format) => format,
        });
        (sink(&path), format)
    } else if config.is::<StdoutAccessLog>() {
        let StdoutAccessLog { access_log_format } = extension(config)?;
        let format = access_log_format.map(|f| match f {
            stdout_access_log::AccessLogFormat::LogFormat(format) => format,
        });
        (AccessLogSink::Stdout, format)
    } else if config.is::<StderrAccessLog>() {
        let StderrAccessLog { access_log_format } = extension(config)?;
        let format = access_log_format.map(|f| match f {
            stderr_access_log::AccessLogFormat::LogFormat(format) => format,
        });
        (AccessLogSink::Stderr, format)
    } else {
        return Err(unsupported_extension(config)).at("typed_config");
    };
    let format = match format_string {
        None => AccessLogFormat::Text(parse("access_log_format", ENVOY_FORMAT)?),
        Some(text) => format(&text).at("log_format").at("typed_config")?,
    };
    Ok(AccessLogConfig { sink, format })
}

/// Istio writes to the devices by path.
fn sink(path: &str) -> AccessLogSink {
    match path {
        "/dev/stdout" => AccessLogSink::Stdout,
        "/dev/stderr" => AccessLogSink::Stderr,
        path => AccessLogSink::File(path.into()),
    }
}

fn format(message: &SubstitutionFormatString) -> Result<AccessLogFormat, Invalid> {
    if message.omit_empty_values {
        return Err(Invalid::new("omit_empty_values", "is not supported"));
    }
    match required("format", message.format.as_ref())? {
        Format::TextFormat(text) => Ok(AccessLogFormat::Text(parse("text_format", text)?)),
        Format::TextFormatSource(source) => match &source.specifier {
            Some(data_source::Specifier::InlineString(text)) => {
                Ok(AccessLogFormat::Text(parse("text_format_source.inline_string", text)?))
            }
            _ => Err(Invalid::new("text_format_source", "needs `inline_string`")),
        },
        Format::JsonFormat(object) => {
            let entry = |(key, value): (&String, &prost_types::Value)| {
                let field = format!("json_format.{key}");
                let text = value.kind.as_ref().and_then(as_text);
                let text = text.ok_or_else(|| Invalid::new(field.clone(), "must be text"))?;
                Ok((key.as_str().into(), parse(&field, text)?))
            };
            let entries: Result<Vec<_>, Invalid> = object.fields.iter().map(entry).collect();
            Ok(AccessLogFormat::Json(entries?.into()))
        }
    }
}

fn parse(field: &str, text: &str) -> Result<Template, Invalid> {
    Template::parse(text).map_err(|e| Invalid::new(field, e))
}
