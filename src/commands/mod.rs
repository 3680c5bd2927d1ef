//! One-shot commands on what is stored. Each runs to its end and prints its result.

pub mod counts;
pub mod dead;
