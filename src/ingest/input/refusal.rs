//! The form of a refusal. The server refuses a request with a problem document (RFC 9457); clients
//! of some formats read another form.

use super::InputPath;
use crate::http::{Headers, Response};

/// The form in which the client of a request reads refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalFormat {
    /// A problem document.
    Problem,
}

impl RefusalFormat {
    /// The form for a request.
    pub fn of(path: InputPath, _headers: Headers<'_>) -> Self {
        match path {
            InputPath::Events => Self::Problem,
        }
    }

    /// Rewrites a problem document. Other responses are left as they are.
    pub fn apply(self, response: &mut Response) {
        if response.status < 400 {
            return;
        }
        match self {
            Self::Problem => {}
        }
    }
}
