//! An AuthorizationPolicy in our own words: rules of tests, each on one attribute of who asks or of what is asked for.

use std::sync::Arc;

use ipnet::IpNet;

/// What an AuthorizationPolicy says, beside whom it covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// What becomes of what its rules match.
    pub action: AuthorizationAction,
    /// It is evaluated and counted, and decides nothing.
    pub dry_run: bool,
    /// Who is asked about what its rules match, where the action is CUSTOM.
    pub provider: Option<Arc<str>>,
    /// One that matches is enough. Without any, nothing matches.
    pub rules: Vec<AuthorizationRule>,
}

/// `action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AuthorizationAction {
    /// Somebody else is asked about what matches.
    Custom,
    /// What matches is noted.
    Audit,
    /// What matches is denied.
    Deny,
    /// What matches is allowed, and what no such policy matches is denied.
    Allow,
}

/// Matches where one source, one operation and all conditions do. An empty list of sources or operations matches all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuthorizationRule {
    /// Who asks: in each, all tests must hold.
    pub from: Vec<Vec<Test>>,
    /// What is asked for: in each, all tests must hold.
    pub to: Vec<Vec<Test>>,
    /// What else must hold.
    pub when: Vec<Test>,
}

/// What an attribute must be, and must not be. An empty list demands nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Values<T> {
    /// One of these.
    pub any_of: Vec<T>,
    /// None of these.
    pub none_of: Vec<T>,
}

/// A test on one attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// The caller's identity, without `spiffe://`.
    Principal(Values<TextMatch>),
    /// Whose token the request has.
    RequestPrincipal(Values<RequestPrincipal>),
    /// A claim of its token, by the names on the way to it.
    Claim(Vec<Arc<str>>, Values<TextMatch>),
    /// Namespaces of the caller, each with its stars.
    Namespace(Values<Arc<str>>),
    /// Accounts of the caller.
    ServiceAccount(Values<Account>),
    /// Trust domains of the caller, each with its star.
    TrustDomain(Values<Arc<str>>),
    /// The other end of the connection.
    PeerIp(Values<IpNet>),
    /// The client, as `x-forwarded-for` says where that is trusted.
    RemoteIp(Values<IpNet>),
    /// A request header.
    Header(Arc<str>, Values<TextMatch>),
    /// `:authority`, without regard to case.
    Host(Values<TextMatch>),
    /// The port of the workload.
    Port(Values<u16>),
    /// `:method`.
    Method(Values<TextMatch>),
    /// The path without query.
    Path(Values<PathMatch>),
    /// The address of the workload.
    DestinationIp(Values<IpNet>),
    /// SNI.
    ServerName(Values<TextMatch>),
}

/// How a text is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextMatch {
    /// `abc`.
    Exact(Arc<str>),
    /// `abc*`.
    Prefix(Arc<str>),
    /// `*abc`.
    Suffix(Arc<str>),
    /// `*`: there, and not empty.
    Present,
}

/// Issuer and subject of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestPrincipal {
    /// `iss`.
    pub issuer: TextMatch,
    /// `sub`.
    pub subject: TextMatch,
}

/// How a path is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// As a text.
    Text(TextMatch),
    /// By segments: `*` is one, `**` any number.
    Template(Arc<str>),
}

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl TextMatch {
    /// Reads a value of a policy. A star within is an ordinary character.
    pub fn parse(text: &str) -> Self {
        match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(""), _) => Self::Present,
            (Some(suffix), _) => Self::Suffix(suffix.into()),
            (None, Some(prefix)) => Self::Prefix(prefix.into()),
            (None, None) => Self::Exact(text.into()),
        }
    }
}

impl RequestPrincipal {
    /// Reads a value of a policy: issuer and subject, split at the last slash, since an issuer may have some of its own. A star
    /// before belongs to the issuer, where there is a slash, and one after to the subject.
    pub fn parse(text: &str) -> Self {
        let exact = |text: &str| TextMatch::Exact(text.into());
        let (issuer, subject) = match (text.rsplit_once('/'), text.starts_with('*'), text.ends_with('*')) {
            _ if text == "*" => (TextMatch::Present, TextMatch::Present),
            (Some((issuer, subject)), true, _) => (TextMatch::parse(issuer), exact(subject)),
            (Some((issuer, subject)), false, true) => (exact(issuer), TextMatch::parse(subject)),
            (Some((issuer, subject)), false, false) => (exact(issuer), exact(subject)),
            (None, true, _) => (TextMatch::Present, TextMatch::Suffix(text[1..].into())),
            (None, false, true) => (TextMatch::Prefix(text[..text.len() - 1].into()), TextMatch::Present),
            (None, false, false) => (exact(text), exact("")),
        };
        Self { issuer, subject }
    }
}

impl Test {
    /// True for attributes that opaque connections don't have.
    pub fn is_http_only(&self) -> bool {
        matches!(
            self,
            Self::Header(..)
                | Self::Host(_)
                | Self::Method(_)
                | Self::Path(_)
                | Self::RequestPrincipal(_)
                | Self::Claim(..)
        )
    }

    /// True for attributes of who asks, false for those of what is asked for.
    pub fn is_of_caller(&self) -> bool {
        match self {
            Self::Principal(_)
            | Self::RequestPrincipal(_)
            | Self::Claim(..)
            | Self::Namespace(_)
            | Self::ServiceAccount(_)
            | Self::TrustDomain(_)
            | Self::PeerIp(_)
            | Self::RemoteIp(_)
            | Self::Header(..) => true,
            Self::Host(_)
            | Self::Port(_)
            | Self::Method(_)
            | Self::Path(_)
            | Self::DestinationIp(_)
            | Self::ServerName(_) => false,
        }
    }
}

impl AuthorizationRule {
    /// All tests.
    pub fn tests(&self) -> impl Iterator<Item = &Test> {
        self.from.iter().chain(&self.to).flatten().chain(&self.when)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_principals_are_issuer_and_subject() {
        use TextMatch::{Exact, Prefix, Present, Suffix};
        for (text, issuer, subject) in [
            ("*", Present, Present),
            ("*/sub", Present, Exact("sub".into())),
            ("*x/sub", Suffix("x".into()), Exact("sub".into())),
            ("*x", Present, Suffix("x".into())),
            ("iss/*", Exact("iss".into()), Present),
            ("iss/pre*", Exact("iss".into()), Prefix("pre".into())),
            ("pre*", Prefix("pre".into()), Present),
            ("iss/sub", Exact("iss".into()), Exact("sub".into())),
            ("https://a/b/sub", Exact("https://a/b".into()), Exact("sub".into())),
            ("abc", Exact("abc".into()), Exact("".into())),
            ("*/*", Present, Exact("*".into())),
        ] {
            assert_eq!(RequestPrincipal::parse(text), RequestPrincipal { issuer, subject }, "{text}");
        }
    }
}
