//! One-shot commands on stored data. Each prints its result and exits.

pub mod counts;
pub mod dead;
pub mod journal;
