//! The fields of `io.prometheus.client.Histogram` that make a native histogram: reads and writes them.

use super::native::{NATIVE_BUCKETS_MAX, NativeCounts, NativeHistogram, Span, Spans};
use super::protobuf::ParseProtobufError::{self, Invalid, TooMany};
use super::protobuf::{MessageReader, WireField};
use super::protobuf_writer as write;

/// The fields read so far.
#[derive(Debug, Default)]
pub(super) struct NativeFields {
    schema: i32,
    zero_threshold: f64,
    zero: u64,
    zero_float: f64,
    /// The fields of the negative buckets, and of the positive ones.
    sides: [SideFields; 2],
}

#[derive(Debug, Default)]
struct SideFields {
    spans: Spans,
    deltas: Vec<i64>,
    counts: Vec<f64>,
}

impl NativeFields {
    /// Takes the field of a histogram with this number; others than those of native ones are ignored.
    pub(super) fn set(&mut self, number: u64, field: WireField<'_>) -> Result<(), ParseProtobufError> {
        match number {
            5 => self.schema = int32(zigzag(field.integer()?))?,
            6 => self.zero_threshold = field.double()?,
            7 => self.zero = field.integer()?,
            8 => self.zero_float = field.double()?,
            9..=14 => {
                let side = &mut self.sides[usize::from(number >= 12)];
                match (number - 9) % 3 {
                    0 => push(&mut side.spans, span(field.bytes()?)?)?,
                    1 => each_packed(field, MessageReader::varint, WireField::integer, |delta| {
                        push(&mut side.deltas, zigzag(delta))
                    })?,
                    _ => each_packed(field, MessageReader::double, WireField::double, |count| {
                        push(&mut side.counts, count)
                    })?,
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The native histogram, if the fields are those of one, by Prometheus' rule. `count` is the count of
    /// a float histogram.
    pub(super) fn finish(self, count: Option<f64>) -> Option<NativeHistogram> {
        let [negative, positive] = self.sides;
        let is_native = !negative.spans.is_empty()
            || !positive.spans.is_empty()
            || self.zero_threshold > 0.0
            || self.zero > 0
            || self.zero_float > 0.0;
        if !is_native {
            return None;
        }
        let count = count.unwrap_or(0.0);
        let counts = if count > 0.0 || self.zero_float > 0.0 {
            NativeCounts::Float {
                count,
                zero: self.zero_float,
                positive: positive.counts,
                negative: negative.counts,
            }
        } else {
            NativeCounts::Integer { zero: self.zero, positive: positive.deltas, negative: negative.deltas }
        };
        Some(NativeHistogram {
            schema: self.schema,
            zero_threshold: self.zero_threshold,
            positive_spans: positive.spans,
            negative_spans: negative.spans,
            counts,
        })
    }
}

fn push<T>(list: &mut Vec<T>, item: T) -> Result<(), ParseProtobufError> {
    if list.len() == NATIVE_BUCKETS_MAX {
        return Err(TooMany("bucket of a native histogram", NATIVE_BUCKETS_MAX));
    }
    list.push(item);
    Ok(())
}

/// Calls `each` with every number of a repeated field, packed or not.
fn each_packed<'a, T>(
    field: WireField<'a>,
    read: fn(&mut MessageReader<'a>) -> Result<T, ParseProtobufError>,
    single: fn(WireField<'a>) -> Result<T, ParseProtobufError>,
    mut each: impl FnMut(T) -> Result<(), ParseProtobufError>,
) -> Result<(), ParseProtobufError> {
    let WireField::Bytes(bytes) = field else { return each(single(field)?) };
    let mut reader = MessageReader::new(bytes);
    while !reader.is_at_end() {
        super::steps::add(1);
        each(read(&mut reader)?)?;
    }
    Ok(())
}

fn span(bytes: &[u8]) -> Result<Span, ParseProtobufError> {
    let mut span = Span { offset: 0, length: 0 };
    MessageReader::new(bytes).fields(|number, field| {
        match number {
            1 => span.offset = int32(zigzag(field.integer()?))?,
            2 => {
                let length = u32::try_from(field.integer()?);
                span.length = length.map_err(|_too_large| Invalid("a span is too long"))?;
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(span)
}

fn zigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

fn unzigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

fn int32(value: i64) -> Result<i32, ParseProtobufError> {
    i32::try_from(value).map_err(|_too_large| Invalid("a number is out of range"))
}

/// Writes the fields, without the count of a float histogram.
pub(super) fn write_native(out: &mut Vec<u8>, native: &NativeHistogram) {
    write::integer(out, 5, unzigzag(native.schema.into()));
    write::double(out, 6, native.zero_threshold);
    match &native.counts {
        NativeCounts::Integer { zero, positive, negative } => {
            write::integer(out, 7, *zero);
            for (first, spans, deltas) in
                [(9, &native.negative_spans, negative), (12, &native.positive_spans, positive)]
            {
                write_spans(out, first, spans);
                let mut packed = Vec::with_capacity(2 * deltas.len());
                for delta in deltas {
                    write::varint(&mut packed, unzigzag(*delta));
                }
                write_packed(out, first + 1, &packed);
            }
        }
        NativeCounts::Float { zero, positive, negative, .. } => {
            write::double(out, 8, *zero);
            for (first, spans, counts) in
                [(9, &native.negative_spans, negative), (12, &native.positive_spans, positive)]
            {
                write_spans(out, first, spans);
                let packed: Vec<u8> = counts.iter().flat_map(|count| count.to_le_bytes()).collect();
                write_packed(out, first + 2, &packed);
            }
        }
    }
}

fn write_spans(out: &mut Vec<u8>, number: u64, spans: &[Span]) {
    for span in spans {
        let mut message = Vec::with_capacity(12);
        write::integer(&mut message, 1, unzigzag(span.offset.into()));
        write::integer(&mut message, 2, span.length.into());
        write::bytes(out, number, &message);
    }
}

fn write_packed(out: &mut Vec<u8>, number: u64, packed: &[u8]) {
    if !packed.is_empty() {
        write::bytes(out, number, packed);
    }
}
