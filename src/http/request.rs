//! A request as a handler sees it: borrowed from the engine's buffers, complete, already checked.

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
    /// A method that no route has: answered 405 or 501.
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

/// The header fields in the order they came.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'a>(pub &'a [httparse::Header<'a>]);

impl<'a> Headers<'a> {
    /// The value of the first field of this name, in any case, without the white space around it.
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.all(name).next()
    }

    /// The values of all fields of this name.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.0
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value.trim_ascii())
    }
}

/// One request. The body is whole, the framing has been taken off.
pub struct Request<'a> {
    pub method: Method,
    /// The path as it was sent, percent-encoding and all, without the query.
    pub path: &'a str,
    /// What follows the `?`; empty without one.
    pub query: &'a str,
    pub headers: Headers<'a>,
    pub body: &'a [u8],
    pub peer: IpAddr,
    /// Makes the promise of its answer: the engine's, or what a test puts in its place.
    pub promise: &'a dyn Fn() -> Promise,
}

impl Request<'_> {
    /// A promise of this request's answer, for a thread that may block. The handler then returns
    /// [`super::Answer::Later`].
    pub fn promise(&self) -> Promise {
        (self.promise)()
    }
}

impl fmt::Debug for Request<'_> {
    /// Leaves out the body and the headers, which may hold what a log must not.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({} bytes from {})", self.method.name(), self.path, self.body.len(), self.peer)
    }
}
