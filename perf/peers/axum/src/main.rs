//! The job of POST /events by axum and tokio-postgres: validate, 202 after taking the event into a
//! bounded channel, COPY BINARY in batches on one connection, 429 when the channel is full.
//!
//! GET /count gives the events accepted and stored. Settings: PORT, DATABASE_URL, BUFFER_MAX_SIZE,
//! BATCH_SIZE.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::{BufMut, BytesMut};
use chrono::{DateTime, Utc};
use futures_util::{SinkExt, pin_mut};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio_postgres::{Client, NoTls};

const COPY: &str =
    "COPY peer.events (event_id, timestamp, ingested_at, service, message, metadata) FROM STDIN BINARY";
const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// Microseconds from 1970 to 2000, where PostgreSQL's time begins.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;
const LINGER: Duration = Duration::from_millis(20);
const RETENTION_MICROS: i64 = 30 * 86_400_000_000;
const SKEW_MICROS: i64 = 300_000_000;
const TEXT_BYTES_MAX: usize = 65_536;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Event {
    #[serde(deserialize_with = "timestamp")]
    timestamp: i64,
    service: Box<str>,
    message: Box<str>,
    metadata: Option<Box<RawValue>>,
    idempotency_key: Option<Box<str>>,
}

struct Row {
    id: [u8; 16],
    ingested_at: i64,
    event: Event,
}

struct Shared {
    rows: mpsc::Sender<Row>,
    accepted: AtomicU64,
    stored: Arc<AtomicU64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Timestamp<'a> {
    Millis(i64),
    Text(&'a str),
}

/// Microseconds since 1970.
fn timestamp<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    match Timestamp::deserialize(deserializer)? {
        Timestamp::Millis(millis) => millis.checked_mul(1000),
        Timestamp::Text(text) => DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_micros()),
    }
    .ok_or_else(|| serde::de::Error::custom("invalid timestamp"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let number = |name: &str, default: usize| {
        std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let (client, connection) = tokio_postgres::connect(&std::env::var("DATABASE_URL")?, NoTls).await?;
    tokio::spawn(connection);
    let (sender, receiver) = mpsc::channel(number("BUFFER_MAX_SIZE", 50_000));
    let stored = Arc::new(AtomicU64::new(0));
    tokio::spawn(write(client, receiver, number("BATCH_SIZE", 5_000), Arc::clone(&stored)));
    let app = Router::new()
        .route("/events", post(accept))
        .route("/count", get(count))
        .layer(DefaultBodyLimit::max(8 << 20))
        .with_state(Arc::new(Shared { rows: sender, accepted: AtomicU64::new(0), stored }));
    let port = u16::try_from(number("PORT", 3000))?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    axum::serve(axum::serve::ListenerExt::tap_io(listener, |stream| drop(stream.set_nodelay(true))), app)
        .await?;
    Ok(())
}

async fn accept(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let event: Event = match serde_json::from_slice(&body) {
        Ok(event) => event,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let now = Utc::now().timestamp_micros();
    if let Err(detail) = validate(&event, now) {
        return problem(StatusCode::BAD_REQUEST, detail);
    }
    let id = event_id(event.timestamp);
    if shared.rows.try_send(Row { id, ingested_at: now, event }).is_err() {
        let mut response = problem(StatusCode::TOO_MANY_REQUESTS, "the buffer is full");
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        return response;
    }
    shared.accepted.fetch_add(1, Ordering::Relaxed);
    let body = format!("{{\"event_id\":\"{}\",\"status\":\"accepted\"}}", format_id(id));
    (StatusCode::ACCEPTED, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn count(State(shared): State<Arc<Shared>>) -> String {
    let (accepted, stored) = (shared.accepted.load(Ordering::Relaxed), shared.stored.load(Ordering::Relaxed));
    format!("{{\"accepted\":{accepted},\"stored\":{stored}}}")
}

fn validate(event: &Event, now: i64) -> Result<(), &'static str> {
    let has_nul = |text: &str| text.as_bytes().contains(&0);
    if event.timestamp < now - RETENTION_MICROS || event.timestamp > now + SKEW_MICROS {
        return Err("timestamp");
    }
    if event.service.is_empty() || event.service.len() > 100 || has_nul(&event.service) {
        return Err("service");
    }
    if event.message.is_empty() || event.message.len() > TEXT_BYTES_MAX || has_nul(&event.message) {
        return Err("message");
    }
    if event.idempotency_key.as_ref().is_some_and(|key| key.is_empty() || key.len() > 128) {
        return Err("idempotency_key");
    }
    let json = event.metadata.as_ref().map_or("{}", |metadata| metadata.get());
    if !json.starts_with('{') || json.len() > TEXT_BYTES_MAX || json.contains("\\u0000") {
        return Err("metadata");
    }
    Ok(())
}

fn problem(status: StatusCode, detail: &str) -> Response {
    let body =
        serde_json::json!({ "type": "about:blank", "status": status.as_u16(), "detail": detail }).to_string();
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response()
}

/// A UUIDv7 of the event's milliseconds.
fn event_id(micros: i64) -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&((micros / 1000) << 16).to_be_bytes());
    id[6..].copy_from_slice(&rand::random::<[u8; 10]>());
    id[6] = id[6] & 0x0f | 0x70;
    id[8] = id[8] & 0x3f | 0x80;
    id
}

fn format_id(id: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (nth, byte) in id.into_iter().enumerate() {
        if matches!(nth, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for digit in [byte >> 4, byte & 0xf] {
            text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
    }
    text
}

/// Writes batches until the channel is closed. A batch that failed is sent again.
async fn write(mut client: Client, mut rows: mpsc::Receiver<Row>, batch_size: usize, stored: Arc<AtomicU64>) {
    let mut batch = Vec::with_capacity(batch_size);
    let mut bytes = BytesMut::new();
    loop {
        if rows.recv_many(&mut batch, batch_size).await == 0 {
            return;
        }
        if batch.len() < batch_size {
            tokio::time::sleep(LINGER).await;
            while batch.len() < batch_size
                && let Ok(row) = rows.try_recv()
            {
                batch.push(row);
            }
        }
        bytes.extend_from_slice(COPY_HEADER);
        batch.iter().for_each(|row| append(&mut bytes, row));
        bytes.put_i16(-1);
        let copied = bytes.split().freeze();
        while let Err(error) = copy(&mut client, copied.clone()).await {
            eprintln!("{error}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        stored.fetch_add(batch.len() as u64, Ordering::Relaxed);
        batch.clear();
    }
}

async fn copy(client: &mut Client, bytes: bytes::Bytes) -> Result<(), tokio_postgres::Error> {
    let sink = client.copy_in(COPY).await?;
    pin_mut!(sink);
    sink.send(bytes).await?;
    sink.finish().await?;
    Ok(())
}

fn append(out: &mut BytesMut, row: &Row) {
    out.put_i16(6);
    let mut field = |bytes: &[&[u8]]| {
        out.put_i32(i32::try_from(bytes.iter().map(|part| part.len()).sum::<usize>()).unwrap_or(i32::MAX));
        bytes.iter().for_each(|part| out.put_slice(part));
    };
    let time = |micros: i64| (micros - POSTGRES_EPOCH_MICROS).to_be_bytes();
    field(&[&row.id]);
    field(&[&time(row.event.timestamp)]);
    field(&[&time(row.ingested_at)]);
    field(&[row.event.service.as_bytes()]);
    field(&[row.event.message.as_bytes()]);
    match &row.event.metadata {
        Some(json) => field(&[&[1], json.get().as_bytes()]),
        None => out.put_i32(-1),
    }
}
