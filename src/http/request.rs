//! A complete and validated request, borrowed from the engine's buffers.

use std::fmt;
use std::net::IpAddr;

use super::response::Promise;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Patch,
    /// A method that no route supports: 405 or 501.
    Other,
}

impl Method {
    /// Methods are case-sensitive (RFC 9110, 9.1).
    pub fn parse(name: &str) -> Self {
        match name {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "DELETE" => Self::Delete,
            "OPTIONS" => Self::Options,
            "PATCH" => Self::Patch,
            _ => Self::Other,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
            Self::Patch => "PATCH",
            Self::Other => "other",
        }
    }
}

/// The header fields in the order received.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'a>(pub &'a [httparse::Header<'a>]);

impl<'a> Headers<'a> {
    /// Returns the value of the first field with this case-insensitive name, trimmed of whitespace.
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.all(name).next()
    }

    /// Returns the values of all fields with this name.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.0
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value.trim_ascii())
    }
}

/// One request, with its whole body after transfer decoding.
pub struct Request<'a> {
    pub method: Method,
    /// The path as received, percent-encoded, without the query.
    pub path: &'a str,
    /// The query without `?`; empty if there is none.
    pub query: &'a str,
    pub headers: Headers<'a>,
    pub body: &'a [u8],
    pub peer: IpAddr,
    /// Creates the promise of the response; tests substitute their own.
    pub promise: &'a dyn Fn() -> Promise,
}

impl Request<'_> {
    /// Creates a promise of the response for a thread that may block. The handler then returns
    /// [`super::HandlerResult::Pending`].
    pub fn promise(&self) -> Promise {
        (self.promise)()
    }
}

impl fmt::Debug for Request<'_> {
    /// Omits the headers and the body, which may contain secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({} bytes from {})", self.method.name(), self.path, self.body.len(), self.peer)
    }
}
