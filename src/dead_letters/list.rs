//! The response of `GET /dead`: a page of dead letters with the events that their rows contain.

use std::collections::HashMap;

use super::params::{ListParams, encode_cursor};
use crate::event::{Event, EventId};
use crate::json::Scanner;
use crate::json::text::quote;
use crate::query::page::{write_id, write_members};
use crate::storage::StoreError;
use crate::storage::dead::{DeadEvent, DeadLetters};

/// Bytes of a dead letter in the page beside its texts, rounded up.
const ENTRY_OVERHEAD_BYTES: usize = 512;

/// Reads the page that `params` selects as JSON. It ends early at `bytes_max`, but has one dead letter
/// if there is one.
pub(super) fn read_page(
    letters: &dyn DeadLetters,
    params: &ListParams,
    bytes_max: usize,
) -> Result<Vec<u8>, StoreError> {
    let total = letters.count_dead(&params.filter)?;
    // One more than the limit, to know whether there is a next page.
    let mut listed = letters.list_dead(&params.filter, params.after, params.limit + 1)?;
    let mut has_more = listed.len() > params.limit as usize;
    listed.truncate(params.limit as usize);
    // Rows are read for so many only that the page can have.
    let fitting =
        leading(&listed, bytes_max, |dead| dead.row_bytes + dead.reason.len() + ENTRY_OVERHEAD_BYTES);
    has_more |= fitting < listed.len();
    listed.truncate(fitting);
    let ids: Vec<EventId> = listed.iter().map(|dead| dead.event_id).collect();
    let rows = letters.dead_rows(&ids)?.into_iter().filter(has_valid_metadata);
    let rows: HashMap<EventId, Event> = rows.map(|event| (event.event_id, event)).collect();

    let mut out = b"{\"dead\":[".to_vec();
    let mut last = None;
    for dead in &listed {
        let at = out.len();
        write_dead(&mut out, dead, rows.get(&dead.event_id), last.is_none());
        if out.len() > bytes_max && last.is_some() {
            out.truncate(at);
            has_more = true;
            break;
        }
        last = Some(dead.key());
    }
    let next =
        last.filter(|_| has_more).map_or("null".to_owned(), |key| format!("\"{}\"", encode_cursor(key)));
    let page =
        format!("],\"page\":{{\"limit\":{},\"next_cursor\":{next},\"total\":{total}}}}}", params.limit);
    out.extend_from_slice(page.as_bytes());
    Ok(out)
}

/// The number of leading items whose sizes add up to at most `max`, at least one.
fn leading<T>(items: &[T], max: usize, size: impl Fn(&T) -> usize) -> usize {
    let mut sum = 0;
    let mut fits = |item: &T| {
        sum += size(item);
        sum <= max
    };
    items.iter().take_while(|item| fits(item)).count().max(1).min(items.len())
}

/// Any client with write access to the table may have changed the row, and the page must stay JSON.
fn has_valid_metadata(event: &Event) -> bool {
    event.metadata.as_deref().is_none_or(|metadata| {
        let mut scanner = Scanner::new(metadata.as_bytes());
        scanner.next_token();
        scanner.value().is_ok() && {
            scanner.next_token();
            scanner.is_at_end()
        }
    })
}

fn write_dead(out: &mut Vec<u8>, dead: &DeadEvent, event: Option<&Event>, is_first: bool) {
    out.extend_from_slice(if is_first { b"{" } else { b",{" });
    write_id(out, dead.event_id);
    out.extend_from_slice(format!(",\"timestamp\":\"{}\",\"service\":", dead.timestamp).as_bytes());
    quote(out, &dead.service);
    out.extend_from_slice(b",\"sqlstate\":");
    quote(out, &dead.sqlstate);
    out.extend_from_slice(b",\"reason\":");
    quote(out, &dead.reason);
    out.extend_from_slice(format!(",\"died_at\":\"{}\",\"event\":", dead.died_at).as_bytes());
    match event {
        None => out.extend_from_slice(b"null"),
        Some(event) => {
            out.push(b'{');
            write_id(out, event.event_id);
            write_members(out, event);
            out.push(b'}');
        }
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{ArrivalNumber, Timestamp};

    #[test]
    fn leading_items_fit_and_are_at_least_one() {
        let check = |sizes: &[usize], max, wanted| assert_eq!(leading(sizes, max, |size| *size), wanted);
        check(&[], 10, 0);
        check(&[11, 1], 10, 1);
        check(&[5, 5, 1], 10, 2);
        check(&[5, 6, 1], 10, 1);
        check(&[1, 2, 3], 100, 3);
    }

    #[test]
    fn metadata_that_is_no_json_is_not_written() {
        let with = |metadata: Option<&str>| Event {
            event_id: EventId::floor(1),
            timestamp: Timestamp::from_millis(1),
            service: "s".to_owned(),
            message: "m".to_owned(),
            metadata: metadata.map(str::to_owned),
            ingested_at: Timestamp::from_millis(1),
            arrival: ArrivalNumber::default(),
        };
        for good in [None, Some("{}"), Some(" {\"a\": [1, \"x\"]} ")] {
            assert!(has_valid_metadata(&with(good)), "{good:?}");
        }
        for bad in ["", "{", "{}}", "\"a\":1", "{} x"] {
            assert!(!has_valid_metadata(&with(Some(bad))), "{bad:?}");
        }
    }
}
