//! One-shot commands on stored data, and clients of a server. Each prints its result and exits.

pub mod counts;
pub mod dead;
pub mod documentation;
pub mod healthcheck;
pub mod journal;
pub mod send;
