//! Bodies of pushes in the text format: no bytes panic, and what is taken is shown as a page that can be read again.
#![no_main]

use std::sync::Arc;
use std::time::Duration;

use aurore_events::clock::Moment;
use aurore_events::gateway::exposition::{Form, all};
use aurore_events::gateway::keys::{KeyLimits, Keys};
use aurore_events::gateway::state::State;
use aurore_events::gateway::target::Target;
use aurore_events::gateway::{group, push, text};

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    drop(push::parse(body, None));
    let Ok(parsed) = text::parse(body) else { return };
    let target = Arc::new(Target::parse("job/fuzz/a/b").expect("a path"));
    let Ok(families) = group::prepare(&target, parsed, (Moment::ZERO, 1.0)) else { return };
    let keys = Keys::new(KeyLimits { count_max: 1, age_max: Duration::from_secs(1) });
    let mut state = State::new(keys);
    if state.push(&target, families, true, (Moment::ZERO, 1.0)).is_ok() {
        let page = all(state.view(), Form::Text);
        let back = text::parse(page.as_bytes()).expect("our own page can be read");
        assert!(!back.timestamps);
        assert!(all(state.view(), Form::OpenMetrics).ends_with("# EOF\n"));
    }
});
