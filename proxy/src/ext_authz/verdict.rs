//! What an authorizer has said, and what it changes of requests and responses.

use std::borrow::Cow;

use bytes::Bytes;

use crate::http::fields::Fields;
use crate::http::h1::hop_by_hop::is_connection_specific;
use crate::http::head::{Known, Name, RequestHead};
use crate::http::reply::{LocalReply, details};
use crate::telemetry::record::Flags;

/// Details of a denial.
pub const DENIED: &str = "ext_authz_denied";
/// Details of a refusal without an answer; the reason follows in braces.
const ERROR: &str = "ext_authz_error";

/// What an authorizer has said.
#[derive(Debug)]
pub enum Verdict {
    /// Let in, and changed so.
    Allowed(Box<Changes>),
    /// The client gets this.
    Denied(Box<LocalReply>),
    /// Nothing that could be understood; why.
    Unanswered(Cow<'static, str>),
    /// It could not be asked, because of what the client sent. Never let in: a client must not choose whether it is looked at.
    Untellable(&'static str),
}

/// Key and value of a query parameter.
pub type Parameter = (Box<[u8]>, Box<[u8]>);

/// What becomes of a request that is let in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Headers of the request, appended ones last.
    pub request: Vec<Change>,
    /// Headers that the upstream doesn't get.
    pub remove: Vec<Box<[u8]>>,
    /// Query parameters that are set.
    pub set_query: Vec<Parameter>,
    /// Query parameters that are taken out.
    pub remove_query: Vec<Box<[u8]>>,
    /// Headers that the client gets.
    pub response: Vec<Change>,
}

/// A change of one header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    name: Box<[u8]>,
    value: Box<[u8]>,
    how: How,
}

/// How a header is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// In place of what is there.
    Set,
    /// As one more line.
    Add,
    /// Only where there is none.
    AddIfAbsent,
    /// Only where there is one.
    OverwriteIfThere,
    /// Behind what is there, after a comma; nothing where there is none.
    Append,
}

impl Change {
    /// Of the header `name`.
    pub fn new(name: &[u8], value: &[u8], how: How) -> Self {
        Self { name: name.into(), value: value.into(), how }
    }

    /// One more line, where it would be behind others.
    pub(super) fn as_line(&mut self) {
        if self.how == How::Append {
            self.how = How::Add;
        }
    }

    fn apply(&self, fields: &mut Fields) {
        let name = Name::from(&*self.name);
        if is_protected(name) {
            return;
        }
        let there = fields.contains(name);
        match self.how {
            How::Set => fields.set(name, &self.value),
            How::Add => fields.append(name, &self.value),
            How::AddIfAbsent if !there => fields.append(name, &self.value),
            How::OverwriteIfThere if there => fields.set(name, &self.value),
            How::Append if there => {
                let mut lines: Vec<&[u8]> = fields.get_all(name).collect();
                lines.push(&self.value);
                let joined = lines.join(&b","[..]);
                fields.set(name, &joined);
            }
            How::AddIfAbsent | How::OverwriteIfThere | How::Append => {}
        }
    }
}

/// What frames a message, or belongs to one connection: nobody but the codec writes it.
fn is_protected(name: Name<'_>) -> bool {
    match name {
        Name::Known(known) => {
            is_connection_specific(known)
                || matches!(known, Known::ContentLength | Known::Expect | Known::Te | Known::Trailer)
        }
        Name::Other(bytes) => bytes.starts_with(b":"),
    }
}

impl Changes {
    /// True where the request stays what it is.
    pub fn leaves_request(&self) -> bool {
        self.request.is_empty()
            && self.remove.is_empty()
            && self.set_query.is_empty()
            && self.remove_query.is_empty()
    }

    /// Changes a request.
    pub fn apply_to_request(&self, head: &mut RequestHead) {
        for change in &self.request {
            match &*change.name {
                b":path" if change.value.starts_with(b"/") => head.set_path(&change.value),
                b":method" => {
                    head.set_method(&change.value);
                }
                name if name == b":authority" || name.eq_ignore_ascii_case(b"host") => {
                    head.set_authority(&change.value);
                }
                _ => change.apply(&mut head.fields),
            }
        }
        for name in &self.remove {
            let name = Name::from(&**name);
            if !is_protected(name) {
                head.fields.remove(name);
            }
        }
        if !self.set_query.is_empty() || !self.remove_query.is_empty() {
            let path = self.with_query(head);
            head.set_path(&path);
        }
    }

    fn with_query(&self, head: &RequestHead) -> Vec<u8> {
        let gone = |key: &[u8]| {
            self.remove_query.iter().any(|name| **name == *key)
                || self.set_query.iter().any(|(name, _)| **name == *key)
        };
        let key = |parameter: &[u8]| {
            let end = parameter.iter().position(|byte| *byte == b'=').unwrap_or(parameter.len());
            parameter[..end].to_vec()
        };
        let kept = head.query().into_iter().flat_map(|query| query.split(|byte| *byte == b'&'));
        let kept = kept.filter(|parameter| !gone(&key(parameter))).map(<[u8]>::to_vec);
        let set = self.set_query.iter().filter(|(name, _)| !self.remove_query.contains(name));
        let set = set.map(|(name, value)| [&**name, b"=", value].concat());
        let query: Vec<Vec<u8>> = kept.chain(set).filter(|parameter| !parameter.is_empty()).collect();
        let mut path = head.path_only().to_vec();
        if !query.is_empty() {
            path.push(b'?');
            path.extend(query.join(&b"&"[..]));
        }
        path
    }

    /// Changes the response that the client gets.
    pub fn apply_to_response(&self, fields: &mut Fields) {
        self.response.iter().for_each(|change| change.apply(fields));
    }
}

/// The answer to what an authorizer denies, in its words.
pub(super) fn denied<'h>(
    status: u16,
    body: Bytes,
    headers: impl Iterator<Item = (&'h [u8], &'h [u8], How)>,
) -> LocalReply {
    let mut reply = LocalReply { flags: Flags::UNAUTHORIZED, ..LocalReply::new(status, body, DENIED) };
    for (name, value, how) in headers {
        Change::new(name, value, how).apply(&mut reply.head.fields);
    }
    reply
}

/// The answer where an authorizer has said nothing, or could not be asked.
pub fn unanswered(status: u16, reason: &str) -> LocalReply {
    LocalReply { flags: Flags::UNAUTHORIZED, ..LocalReply::new(status, "", unanswered_details(reason)) }
}

/// What access logs say of it.
pub fn unanswered_details(reason: &str) -> Cow<'static, str> {
    details(ERROR, reason)
}
