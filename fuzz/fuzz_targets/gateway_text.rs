//! Text push bodies: the parser never panics, its steps are bounded by the length of the body, and
//! the page rendered from an accepted push parses again.
#![no_main]

use std::sync::Arc;
use std::time::Duration;

use aurore_events::clock::Moment;
use aurore_events::gateway::exposition::render_all;
use aurore_events::gateway::grouping_key::GroupingKey;
use aurore_events::gateway::idempotency::{IdempotencyKeys, KeyLimits};
use aurore_events::gateway::state::GatewayState;
use aurore_events::gateway::validate::ParseLimits;
use aurore_events::gateway::{push, steps, text, validate};
use aurore_events::metrics::text_format::ExpositionFormat;

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let check_steps = || assert!(steps::take() <= steps::PER_BYTE_MAX * (body.len() as u64 + 1));
    steps::take();
    drop(push::parse(body, None));
    check_steps();
    let parsed = text::parse(body, ParseLimits::NONE);
    check_steps();
    let Ok(parsed) = parsed else { return };
    let grouping_key = Arc::new(GroupingKey::parse("job/fuzz/a/b").expect("a valid path"));
    let Ok(families) = validate::validate_push(&grouping_key, parsed, (Moment::ZERO, 1.0)) else { return };
    let keys = IdempotencyKeys::new(KeyLimits { count_max: 1, age_max: Duration::from_secs(1) });
    let mut state = GatewayState::new(keys);
    if state.push(&grouping_key, families, true, (Moment::ZERO, 1.0)).is_ok() {
        let page = render_all(state.snapshot(), ExpositionFormat::Text);
        let parsed = text::parse(page.as_bytes(), ParseLimits::NONE).expect("the parser accepts the rendered page");
        assert!(!parsed.has_timestamps);
        assert!(render_all(state.snapshot(), ExpositionFormat::OpenMetrics).ends_with("# EOF\n"));
    }
});
