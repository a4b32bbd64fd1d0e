//! Asking over gRPC: `envoy.service.auth.v3.Authorization/Check`.
//!
//! The message has texts only, so what is no UTF-8 can't be told: such a request is denied, and nothing is told in other bytes than the
//! upstream gets. Envoy replaces them, so that an authorizer judges what nobody receives.

use std::net::SocketAddr;
use std::str::from_utf8;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use bytes::{BufMut, Bytes, BytesMut};
use osier_proto::types::auth::{
    AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
    attribute_context::{HttpRequest, Peer, Request},
    check_response::HttpResponse,
};
use osier_proto::types::core::{
    self, Address, SocketAddress, address, header_value_option::HeaderAppendAction, socket_address,
};
use prost::Message;

use super::call::{Response, call};
use super::verdict::{Change, Changes, How, Verdict, denied};
use super::{Asked, Authorizer, PARTIAL_BODY, Patterns, Question, ShownBody};
use crate::http::fields::Fields;
use crate::http::head::{Known, RequestHead, Version};
use crate::worker::Worker;

const METHOD: &[u8] = b"/envoy.service.auth.v3.Authorization/Check";
/// Flag and length before a message.
const PREFIX: usize = 5;
/// What a denial without a status gets.
const FORBIDDEN: u16 = 403;

/// What a gRPC authorizer is shown.
#[derive(Debug)]
pub struct GrpcForm {
    /// Whom the call is for.
    pub authority: Box<str>,
    /// Headers of the client that it is shown.
    pub shown: Patterns,
    /// A body is told as bytes, not as text.
    pub body_as_bytes: bool,
}

impl GrpcForm {
    pub(super) async fn ask(
        &self,
        authorizer: &Authorizer,
        worker: &Arc<Worker>,
        question: Question<'_>,
    ) -> Verdict {
        let Some(message) = self.message(&question) else {
            return Verdict::Untellable("the request has bytes that are no text");
        };
        let mut body = BytesMut::with_capacity(PREFIX + message.encoded_len());
        body.put_u8(0);
        body.put_u32(message.encoded_len() as u32);
        body.extend_from_slice(&message.encode_to_vec());
        let by = (Version::Http2, self.authority.as_bytes());
        let answered = call(authorizer, worker, by, &self.head(authorizer), &body.freeze()).await;
        match answered.map_err(|error| error.detail.into_owned()).and_then(|response| read(&response)) {
            Ok(answer) => verdict(answer),
            Err(reason) => Verdict::Unanswered(reason.into()),
        }
    }

    fn head(&self, authorizer: &Authorizer) -> RequestHead {
        let mut head = RequestHead::new();
        head.version = Version::Http2;
        head.set_method(b"POST");
        head.set_authority(self.authority.as_bytes());
        head.set_path(METHOD);
        head.fields.set(Known::Te, b"trailers");
        head.fields.set(Known::ContentType, b"application/grpc");
        if let Some(limit) = authorizer.timeout {
            // Eight digits at most.
            match limit.as_millis() {
                millis @ 0..=99_999_999 => head.fields.set_fmt(Known::GrpcTimeout, format_args!("{millis}m")),
                _ => head
                    .fields
                    .set_fmt(Known::GrpcTimeout, format_args!("{}S", limit.as_secs().min(99_999_999))),
            }
        }
        head
    }

    /// `None` where something of it is no text.
    fn message(&self, question: &Question<'_>) -> Option<CheckRequest> {
        let connection = question.connection;
        let client = connection.peer.as_ref().map(ToString::to_string).unwrap_or_default();
        let own = connection.own_name.as_deref().unwrap_or_default().to_owned();
        let attributes = AttributeContext {
            source: Some(peer(connection.inputs.source, client)),
            destination: Some(peer(connection.inputs.destination, own)),
            request: match &question.request {
                Some(asked) => Some(self.request(asked)?),
                None => None,
            },
        };
        Some(CheckRequest { attributes: Some(attributes) })
    }

    fn request(&self, asked: &Asked<'_>) -> Option<Request> {
        let head = asked.head;
        let text = |bytes: &[u8]| from_utf8(bytes).ok().map(str::to_owned);
        let (path, host) = (text(head.path())?, text(head.authority())?);
        let id = head.fields.get(Known::XRequestId).and_then(text).unwrap_or_default();
        let mut http = HttpRequest {
            id,
            method: head.method_str().to_owned(),
            scheme: head.scheme.as_str().to_owned(),
            size: asked.size.and_then(|size| i64::try_from(size).ok()).unwrap_or(-1),
            protocol: head.version.as_str().to_owned(),
            ..HttpRequest::default()
        };
        let pseudo =
            [(":authority", &host), (":method", &http.method), (":path", &path), (":scheme", &http.scheme)];
        if matches!(self.shown, Patterns::All) {
            http.headers = pseudo.map(|(name, value)| (name.to_owned(), value.clone())).into();
        }
        self.show(&head.fields, &mut http)?;
        if let Some(body) = asked.body {
            self.show_body(body, &mut http)?;
        }
        (http.path, http.host) = (path, host);
        let since = asked.time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let time =
            prost_types::Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() as i32 };
        Some(Request { time: Some(time), http: Some(http) })
    }

    fn show(&self, fields: &Fields, http: &mut HttpRequest) -> Option<()> {
        for field in fields.iter().filter(|field| self.shown.has(field)) {
            let name = from_utf8(field.name).ok()?.to_ascii_lowercase();
            let value = from_utf8(field.value).ok()?;
            http.headers
                .entry(name)
                .and_modify(|joined| {
                    joined.push(',');
                    joined.push_str(value);
                })
                .or_insert_with(|| value.to_owned());
        }
        Some(())
    }

    fn show_body(&self, body: &ShownBody, http: &mut HttpRequest) -> Option<()> {
        if self.body_as_bytes {
            http.raw_body = body.bytes.clone();
        } else {
            let text = match from_utf8(&body.bytes) {
                Ok(text) => text,
                // A character that was cut in two is left to what isn't shown.
                Err(cut) if body.partial && cut.error_len().is_none() => {
                    from_utf8(&body.bytes[..cut.valid_up_to()]).ok()?
                }
                Err(_) => return None,
            };
            http.body = text.to_owned();
        }
        http.headers.insert(PARTIAL_BODY.to_owned(), body.partial.to_string());
        Some(())
    }
}

fn peer(address: SocketAddr, principal: String) -> Peer {
    let address = SocketAddress {
        address: address.ip().to_canonical().to_string(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(address.port().into())),
        ..SocketAddress::default()
    };
    let address = Address { address: Some(address::Address::SocketAddress(address)) };
    Peer { address: Some(address), principal }
}

/// The message of a call that succeeded.
fn read(response: &Response) -> Result<CheckResponse, String> {
    let status = |fields: &Fields| fields.get(Known::GrpcStatus).map(<[u8]>::to_vec);
    let code = response.trailers.as_ref().and_then(status).or_else(|| status(&response.head.fields));
    match (response.head.status, code.as_deref()) {
        (200, Some(b"0")) => {}
        (200, Some(code)) => return Err(format!("gRPC status {}", String::from_utf8_lossy(code))),
        (200, None) => return Err("no gRPC status".into()),
        (status, _) => return Err(format!("status {status}")),
    }
    let (prefix, message) = response.body.split_at_checked(PREFIX).ok_or("no message")?;
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if prefix[0] != 0 || length != message.len() {
        return Err("not one plain message".into());
    }
    CheckResponse::decode(message).map_err(|error| error.to_string())
}

fn verdict(answer: CheckResponse) -> Verdict {
    let code = answer.status.map_or(0, |status| status.code);
    match (code, answer.http_response) {
        (0, None) => Verdict::Allowed(Box::default()),
        (0, Some(HttpResponse::OkResponse(ok))) => Verdict::Allowed(Box::new(changes(ok))),
        // One that lets in with the words of a denial contradicts itself.
        (_, Some(HttpResponse::DeniedResponse(response))) => denial(response),
        (_, None | Some(HttpResponse::OkResponse(_))) => denial(DeniedHttpResponse::default()),
    }
}

fn denial(response: DeniedHttpResponse) -> Verdict {
    let status = response.status.and_then(|status| u16::try_from(status.code).ok());
    let status = status.filter(|status| (200..600).contains(status)).unwrap_or(FORBIDDEN);
    let headers: Vec<(Bytes, Bytes, How)> = response.headers.iter().filter_map(option).collect();
    // An authorizer's headers come in place of ours, and among themselves each counts.
    let headers = headers.iter().map(|(name, value, how)| {
        let how = if *how == How::Set { How::Add } else { *how };
        (&name[..], &value[..], how)
    });
    Verdict::Denied(Box::new(denied(status, response.body.into(), headers)))
}

fn changes(ok: OkHttpResponse) -> Changes {
    let those = |options: &[core::HeaderValueOption]| -> Vec<Change> {
        let options = options.iter().filter_map(option);
        let mut changes: Vec<_> = options.collect();
        changes.sort_by_key(|(_, _, how)| *how == How::Append);
        changes.iter().map(|(name, value, how)| Change::new(name, value, *how)).collect()
    };
    let mut response = those(&ok.response_headers_to_add);
    // Towards the client there is nothing yet that it could be behind.
    response.iter_mut().for_each(Change::as_line);
    Changes {
        request: those(&ok.headers),
        remove: ok.headers_to_remove.iter().map(|name| name.as_bytes().into()).collect(),
        set_query: ok
            .query_parameters_to_set
            .iter()
            .map(|parameter| (parameter.key.as_bytes().into(), parameter.value.as_bytes().into()))
            .collect(),
        remove_query: ok.query_parameters_to_remove.iter().map(|key| key.as_bytes().into()).collect(),
        response,
    }
}

/// Name, value and what is done with them; `None` without a name.
fn option(option: &core::HeaderValueOption) -> Option<(Bytes, Bytes, How)> {
    let header = option.header.as_ref().filter(|header| !header.key.is_empty())?;
    let value = match header.value.as_bytes() {
        [] => header.raw_value.clone(),
        value => Bytes::copy_from_slice(value),
    };
    let how = match (option.append, HeaderAppendAction::try_from(option.append_action)) {
        (Some(true), _) => How::Append,
        (Some(false), _) => How::Set,
        (None, Ok(HeaderAppendAction::AddIfAbsent)) => How::AddIfAbsent,
        (None, Ok(HeaderAppendAction::OverwriteIfExists)) => How::OverwriteIfThere,
        // Left out, both forms mean to replace here.
        (None, Ok(HeaderAppendAction::AppendIfExistsOrAdd | HeaderAppendAction::OverwriteIfExistsOrAdd)) => {
            How::Set
        }
        (None, Err(_)) => return None,
    };
    Some((Bytes::copy_from_slice(header.key.as_bytes()), value, how))
}
