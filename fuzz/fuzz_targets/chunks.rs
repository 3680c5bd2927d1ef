//! Chunked bodies: no bytes panic, no split changes what comes out, nothing grows past the bound.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aurore_events::http::fuzzing::chunks(data));
