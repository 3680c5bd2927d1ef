//! Parses the query strings of the routes of `/dead`. All errors are reported together. An unknown or
//! repeated parameter is an error: without its filter a purge would delete other dead letters.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::{DAYS_MAX, died_before};
use crate::event::{EventId, Timestamp};
use crate::http::problem::FieldErrors;
use crate::query::parameters::{ParameterReader, pairs, parse_number, parse_service};
use crate::storage::dead::{DeadFilter, DeadKey};

/// Dead letters of one request.
pub(super) const LIMIT_MAX: u32 = 1000;
const LIST_LIMIT_DEFAULT: u32 = 100;

const LIST_NAMES: &[&str] = &["service", "sqlstate", "event_id", "older_than_days", "limit", "cursor"];
const PURGE_NAMES: &[&str] = &["service", "sqlstate", "event_id", "older_than_days", "all", "confirm"];

/// The parameters of `GET /dead`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListParams {
    pub(super) filter: DeadFilter,
    pub(super) limit: u32,
    pub(super) after: Option<DeadKey>,
}

/// The parameters of `POST /dead/replay`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReplayParams {
    pub(super) filter: DeadFilter,
    pub(super) limit: u32,
    pub(super) after: Option<EventId>,
}

/// The parameters of `DELETE /dead`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PurgeParams {
    pub(super) filter: DeadFilter,
    pub(super) is_confirmed: bool,
}

#[derive(Default)]
struct Params {
    reader: ParameterReader,
    filter: DeadFilter,
    limit: Option<u32>,
    cursor: Option<String>,
    all: bool,
    confirm: bool,
}

impl ListParams {
    pub(super) fn parse(query: &str, now: Timestamp) -> Result<Self, FieldErrors> {
        let mut params = Params::read(query, LIST_NAMES, now);
        let after = params.cursor.take().and_then(|cursor| {
            let key = decode_cursor(&cursor);
            if key.is_none() {
                params.reader.push_error("cursor", "must be a next_cursor of an earlier page, unchanged");
            }
            key
        });
        let limit = params.limit.unwrap_or(LIST_LIMIT_DEFAULT);
        params.finish(|filter| Self { filter, limit, after })
    }
}

impl ReplayParams {
    pub(super) fn parse(query: &str, now: Timestamp) -> Result<Self, FieldErrors> {
        let mut params = Params::read(query, LIST_NAMES, now);
        let after = params.cursor.take().and_then(|cursor| {
            let id = cursor.parse().ok();
            if id.is_none() {
                params.reader.push_error("cursor", "must be the next_cursor of an earlier replay, unchanged");
            }
            id
        });
        let limit = params.limit.unwrap_or(LIMIT_MAX);
        params.finish(|filter| Self { filter, limit, after })
    }
}

impl PurgeParams {
    pub(super) fn parse(query: &str, now: Timestamp) -> Result<Self, FieldErrors> {
        let mut params = Params::read(query, PURGE_NAMES, now);
        if params.filter == DeadFilter::default() && !params.all && params.reader.errors.is_empty() {
            params.reader.push_error("all", "must be true to delete all dead letters; or give a filter");
        }
        let is_confirmed = params.confirm;
        params.finish(|filter| Self { filter, is_confirmed })
    }
}

impl Params {
    fn read(query: &str, names: &[&'static str], now: Timestamp) -> Self {
        let (mut reader, mut params) = (ParameterReader::default(), Self::default());
        for pair in pairs(query) {
            reader.read(pair, names, |name, value| params.set(name, value, now));
        }
        Self { reader, ..params }
    }

    fn set(&mut self, name: &'static str, value: String, now: Timestamp) -> Result<(), String> {
        match name {
            "service" => self.filter.service = Some(parse_service(value)?),
            "sqlstate" => self.filter.sqlstate = Some(parse_sqlstate(value)?),
            "event_id" => {
                self.filter.event_id = Some(value.parse().map_err(|error| format!("is {error}"))?);
            }
            "older_than_days" => {
                let days = parse_whole(&value, 0, DAYS_MAX)?;
                self.filter.before = Some(died_before(now, days));
            }
            "limit" => self.limit = Some(parse_whole(&value, 1, LIMIT_MAX)?),
            "cursor" => self.cursor = Some(value),
            "all" => self.all = parse_bool(&value)?,
            "confirm" => self.confirm = parse_bool(&value)?,
            _ => unreachable!("BUG: {name} is a known name and has no parser"),
        }
        Ok(())
    }

    fn finish<T>(self, make: impl FnOnce(DeadFilter) -> T) -> Result<T, FieldErrors> {
        if self.reader.errors.is_empty() { Ok(make(self.filter)) } else { Err(self.reader.errors) }
    }
}

fn parse_sqlstate(value: String) -> Result<String, String> {
    let is_code = value.len() == 5 && value.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
    if is_code { Ok(value) } else { Err("must be five digits or capital letters".to_owned()) }
}

fn parse_whole(value: &str, least: u32, most: u32) -> Result<u32, String> {
    let number = parse_number(value, least.into(), most.into())?;
    Ok(number.try_into().expect("BUG: it is at most `most`"))
}

fn parse_bool(value: &str) -> Result<bool, String> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

/// The cursor of a list: time of death and id of its last dead letter, as base64url.
pub(super) fn encode_cursor((died_at, id): DeadKey) -> String {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&died_at.micros().to_be_bytes());
    bytes[8..].copy_from_slice(id.bytes());
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn decode_cursor(text: &str) -> Option<DeadKey> {
    let bytes: [u8; 24] = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
    let (died_at, id) = bytes.split_first_chunk::<8>()?;
    let died_at = Timestamp::from_micros(i64::from_be_bytes(*died_at));
    // A time that PostgreSQL cannot have would fail the statement.
    let is_in_range = (0..crate::event::MILLIS_END).contains(&died_at.millis());
    is_in_range.then_some((died_at, EventId::from_bytes(id.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_795_435_200_000);
    const ID: &str = "00000000-0005-0000-0000-000000000000";

    #[track_caller]
    fn check_refused<T: std::fmt::Debug>(
        parse: fn(&str, Timestamp) -> Result<T, FieldErrors>,
        query: &str,
        wanted: &[(&str, &str)],
    ) {
        let errors = parse(query, NOW).unwrap_err();
        let got: Vec<_> = errors.listed().iter().map(|e| (e.field.as_ref(), e.detail.as_str())).collect();
        assert_eq!(got.len(), wanted.len(), "{query}: {got:?}");
        for ((field, detail), (wanted_field, part)) in got.iter().zip(wanted) {
            assert_eq!(field, wanted_field, "{query}");
            assert!(detail.contains(part), "{query}: {detail}");
        }
    }

    #[test]
    fn every_filter_is_read() {
        let query = format!("service=a%20b&sqlstate=22P02&event_id={ID}&older_than_days=1");
        let filter = DeadFilter {
            service: Some("a b".to_owned()),
            sqlstate: Some("22P02".to_owned()),
            event_id: Some(EventId::floor(5)),
            before: Some(Timestamp::from_micros(NOW.micros() - 86_400_000_000)),
        };
        let list = ListParams::parse(&query, NOW).unwrap();
        assert_eq!(list, ListParams { filter: filter.clone(), limit: 100, after: None });
        let replay = ReplayParams::parse(&format!("{query}&limit=7&cursor={ID}"), NOW).unwrap();
        let wanted = ReplayParams { filter: filter.clone(), limit: 7, after: Some(EventId::floor(5)) };
        assert_eq!(replay, wanted);
        let purge = PurgeParams::parse(&format!("{query}&confirm=true"), NOW).unwrap();
        assert_eq!(purge, PurgeParams { filter, is_confirmed: true });
        let all = PurgeParams::parse("all=true", NOW).unwrap();
        assert_eq!(all, PurgeParams { filter: DeadFilter::default(), is_confirmed: false });
    }

    #[test]
    fn errors_name_the_parameter_and_are_reported_together() {
        check_refused(ListParams::parse, "limit=0", &[("limit", "from 1 to 1000")]);
        check_refused(ListParams::parse, "limit=1001", &[("limit", "from 1 to 1000")]);
        check_refused(ListParams::parse, "cursor=abc", &[("cursor", "next_cursor")]);
        check_refused(ReplayParams::parse, "cursor=abc", &[("cursor", "next_cursor")]);
        check_refused(ListParams::parse, "older_than_days=36501", &[("older_than_days", "from 0 to 36500")]);
        check_refused(ListParams::parse, "confirm=true", &[("confirm", "not a parameter")]);
        check_refused(PurgeParams::parse, "", &[("all", "must be true")]);
        check_refused(PurgeParams::parse, "all=false&confirm=true", &[("all", "must be true")]);
        check_refused(PurgeParams::parse, "all=yes", &[("all", "true or false")]);
        check_refused(PurgeParams::parse, "limit=5&all=true", &[("limit", "not a parameter")]);
        check_refused(
            PurgeParams::parse,
            "service=&sqlstate=22p02&event_id=1&service=a",
            &[
                ("service", "1 to 100"),
                ("sqlstate", "five"),
                ("event_id", "is"),
                ("service", "more than once"),
            ],
        );
    }

    proptest! {
        #[test]
        fn a_cursor_round_trips(micros in 0..crate::event::MILLIS_END * 1000, id in any::<[u8; 16]>()) {
            let key = (Timestamp::from_micros(micros), EventId::from_bytes(id));
            prop_assert_eq!(decode_cursor(&encode_cursor(key)), Some(key));
        }
    }
}
