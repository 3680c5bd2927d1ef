//! Encodes events as NDJSON or CSV, plain or gzipped, into a sequence of blocks. Must not depend on
//! storage or HTTP.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::page::{write_id, write_members};
use crate::event::Event;

/// The format of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// One event per line, with the members of a page's event.
    Ndjson,
    /// RFC 4180 with a header line. Values are not altered; spreadsheet formulas are not escaped.
    Csv,
}

const CSV_HEADER: &[u8] = b"event_id,timestamp,service,message,metadata,ingested_at\r\n";

/// Encodes events one by one and returns the output in blocks.
#[derive(Debug)]
pub(super) struct Encoder {
    format: ExportFormat,
    output: EncoderOutput,
}

#[derive(Debug)]
enum EncoderOutput {
    Plain(Vec<u8>),
    Gzip { plain: Vec<u8>, encoder: Box<GzEncoder<Vec<u8>>> },
}

impl Encoder {
    pub(super) fn new(format: ExportFormat, gzipped: bool) -> Self {
        let mut plain = Vec::new();
        if format == ExportFormat::Csv {
            plain.extend_from_slice(CSV_HEADER);
        }
        let sink = if gzipped {
            EncoderOutput::Gzip { plain, encoder: Box::new(GzEncoder::new(Vec::new(), Compression::fast())) }
        } else {
            EncoderOutput::Plain(plain)
        };
        Self { format, output: sink }
    }

    pub(super) fn write(&mut self, event: &Event) {
        let (EncoderOutput::Plain(out) | EncoderOutput::Gzip { plain: out, .. }) = &mut self.output;
        match self.format {
            ExportFormat::Ndjson => {
                out.push(b'{');
                write_id(out, event.event_id);
                write_members(out, event);
                out.extend_from_slice(b"}\n");
            }
            ExportFormat::Csv => {
                out.extend_from_slice(&event.event_id.text());
                out.extend_from_slice(format!(",{},", event.timestamp).as_bytes());
                csv_field(out, &event.service);
                out.push(b',');
                csv_field(out, &event.message);
                out.push(b',');
                csv_field(out, event.metadata.as_deref().unwrap_or_default());
                out.extend_from_slice(format!(",{}\r\n", event.ingested_at).as_bytes());
            }
        }
    }

    /// Takes the output available for the next block; the whole rest if `last`.
    pub(super) fn block(&mut self, last: bool) -> Vec<u8> {
        match &mut self.output {
            EncoderOutput::Plain(out) => std::mem::take(out),
            EncoderOutput::Gzip { plain, encoder } => {
                encoder.write_all(plain).expect("a write to a Vec does not fail");
                plain.clear();
                if last {
                    encoder.try_finish().expect("a write to a Vec does not fail");
                }
                std::mem::take(encoder.get_mut())
            }
        }
    }
}

/// Writes a CSV field, quoted if it contains a quote, a comma or a line break.
fn csv_field(out: &mut Vec<u8>, text: &str) {
    if !text.bytes().any(|byte| matches!(byte, b'"' | b',' | b'\r' | b'\n')) {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    out.push(b'"');
    for part in text.split_inclusive('"') {
        out.extend_from_slice(part.as_bytes());
        if part.ends_with('"') {
            out.push(b'"');
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;
    use crate::event::{ArrivalNumber, EventId, Timestamp};

    fn event(service: &str, message: &str, metadata: Option<&str>) -> Event {
        Event {
            event_id: EventId::floor(1),
            timestamp: Timestamp::from_millis(1),
            service: service.to_owned(),
            message: message.to_owned(),
            metadata: metadata.map(str::to_owned),
            ingested_at: Timestamp::from_millis(2),
            arrival: ArrivalNumber::default(),
        }
    }

    fn written(format: ExportFormat, gzipped: bool, events: &[Event]) -> Vec<u8> {
        let mut encoder = Encoder::new(format, gzipped);
        let mut all = Vec::new();
        for event in events {
            encoder.write(event);
            all.extend(encoder.block(false));
        }
        all.extend(encoder.block(true));
        all
    }

    /// An independent reader of RFC 4180.
    fn records(csv: &str) -> Vec<Vec<String>> {
        let mut records = vec![vec![String::new()]];
        let (mut quoted, mut chars) = (false, csv.chars().peekable());
        while let Some(char) = chars.next() {
            let record = records.last_mut().expect("records starts with one field");
            let field = record.last_mut().expect("records starts with one field");
            match char {
                '"' if quoted && chars.next_if_eq(&'"').is_some() => field.push('"'),
                '"' => quoted = !quoted,
                ',' if !quoted => record.push(String::new()),
                '\r' if !quoted => {
                    assert_eq!(chars.next(), Some('\n'), "lines end in CR LF");
                    records.push(vec![String::new()]);
                }
                _ => field.push(char),
            }
        }
        assert_eq!(records.pop(), Some(vec![String::new()]), "the last line is ended");
        records
    }

    #[test]
    fn encoder_writes_one_event_per_ndjson_or_csv_line() {
        let events = [event("s", "a \"b\"\n", Some(r#"{"k": 1}"#)), event("=1+1", "x,y", None)];
        assert_eq!(
            String::from_utf8(written(ExportFormat::Ndjson, false, &events[..1])).unwrap(),
            "{\"event_id\":\"00000000-0001-0000-0000-000000000000\",\"timestamp\":\"1970-01-01T00:00:00.001000Z\",\
             \"service\":\"s\",\"message\":\"a \\\"b\\\"\\n\",\"metadata\":{\"k\": 1},\
             \"ingested_at\":\"1970-01-01T00:00:00.002000Z\"}\n"
        );
        assert_eq!(
            String::from_utf8(written(ExportFormat::Csv, false, &events)).unwrap(),
            "event_id,timestamp,service,message,metadata,ingested_at\r\n\
             00000000-0001-0000-0000-000000000000,1970-01-01T00:00:00.001000Z,s,\"a \"\"b\"\"\n\",\
             \"{\"\"k\"\": 1}\",1970-01-01T00:00:00.002000Z\r\n\
             00000000-0001-0000-0000-000000000000,1970-01-01T00:00:00.001000Z,=1+1,\"x,y\",,\
             1970-01-01T00:00:00.002000Z\r\n"
        );
        assert_eq!(written(ExportFormat::Csv, false, &[]), CSV_HEADER);
        assert_eq!(written(ExportFormat::Ndjson, false, &[]), b"");
    }

    #[test]
    fn gzipped_blocks_form_one_stream() {
        let events = vec![event("s", "m", None); 1000];
        for format in [ExportFormat::Ndjson, ExportFormat::Csv] {
            let small = written(format, true, &events);
            let mut back = Vec::new();
            flate2::read::GzDecoder::new(small.as_slice()).read_to_end(&mut back).unwrap();
            assert_eq!(back, written(format, false, &events));
        }
    }

    proptest! {
        #[test]
        fn csv_fields_round_trip_any_text(texts in prop::collection::vec("[\"',;\r\n\\PC]{1,12}", 1..8)) {
            let events: Vec<_> = texts.iter().map(|text| event(text, text, Some(text))).collect();
            let read = records(&String::from_utf8(written(ExportFormat::Csv, false, &events)).unwrap());
            prop_assert_eq!(read.len(), texts.len() + 1);
            for (record, text) in read[1..].iter().zip(&texts) {
                prop_assert_eq!(record.len(), 6);
                prop_assert!(record[2..5].iter().all(|field| field == text), "{:?}", record);
            }
        }
    }
}
