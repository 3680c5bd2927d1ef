//! Declares the header `Durability` for the `OpenAPI` document.

use crate::openapi::schema::{Schema, one_of};
use crate::openapi::{Header, Parameter};

const LEVEL: Schema = one_of(&["memory", "written", "synced"]);

pub const DURABILITY: Parameter = Parameter::header(
    "Durability",
    LEVEL,
    "The guarantee of a 202; the default is the setting DURABILITY. memory: buffered. written: written to the \
     operating system. synced: synced to disk.",
)
.shared("Durability");

/// The header of a response to a change.
pub const DURABILITY_REACHED: &[Header] =
    &[Header { name: "Durability", description: "The durability level reached.", schema: LEVEL }];

#[cfg(test)]
mod tests {
    use crate::journal::Durability;

    #[test]
    fn the_levels_are_those_of_the_header() {
        assert_eq!(Durability::ALL.map(Durability::name), ["memory", "written", "synced"]);
    }
}
