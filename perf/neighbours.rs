//! Latency of a connection beside a busy neighbour: sends a single-event POST every half
//! millisecond, while another connection of the same acceptor sends expensive requests. Prints
//! percentiles per neighbour, in microseconds.
//!
//! `neighbours ADDRESS [SECONDS]`, as in `neighbours 127.0.0.1:3999 3`, against a server with one
//! acceptor.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use aurore_events::clock::Clock;
use flate2::Compression;
use flate2::write::GzEncoder;

const PAUSE: Duration = Duration::from_micros(500);
/// The delay between two large requests; long enough that the buffer holds all events.
const LARGE_PAUSE: Duration = Duration::from_millis(50);
const BATCH_BYTES: usize = 8 << 20;
const PLAIN_BYTES: usize = 32 << 20;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn event(nth: usize) -> String {
    let millis = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis());
    format!(
        "{{\"timestamp\":{millis},\"service\":\"checkout\",\"message\":\"payment {nth} accepted in 128 ms for order {}\",\
         \"metadata\":{{\"region\":\"eu-west-1\",\"attempt\":1,\"trace\":\"{:032x}\"}}}}",
        nth % 4711,
        nth.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    )
}

fn lines(bytes: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(bytes);
    for nth in 0.. {
        let line = event(nth);
        if body.len() + line.len() + 1 > bytes {
            break;
        }
        body.extend_from_slice(line.as_bytes());
        body.push(b'\n');
    }
    body
}

fn post(kind: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/{kind}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// The status of the next response; skips its body.
    fn status(&mut self) -> Result<u16, BoxError> {
        let (mut line, mut status, mut length) = (String::new(), 0, 0);
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            match line.trim_end().split_once(' ') {
                Some(("HTTP/1.1", rest)) => status = rest[..3].parse()?,
                Some(("Content-Length:", bytes)) => length = bytes.parse()?,
                Some(_) => {}
                None => break,
            }
        }
        io::copy(&mut self.0.by_ref().take(length), &mut io::sink())?;
        Ok(status)
    }

    fn exchange(&mut self, request: &[u8]) -> Result<u16, BoxError> {
        self.0.get_mut().write_all(request)?;
        self.status()
    }
}

/// Sends `request` repeatedly until `stop`, and returns the number of requests.
fn large(address: &str, request: &[u8], stop: &AtomicBool) -> Result<u64, BoxError> {
    let mut client = Client::connect(address)?;
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let status = client.exchange(request)?;
        if status != 202 {
            return Err(format!("a large request got {status}").into());
        }
        count += 1;
        std::thread::sleep(LARGE_PAUSE);
    }
    Ok(count)
}

/// Sends single events at full speed without waiting for the responses.
fn pipelining(address: &str, stop: &AtomicBool) -> Result<u64, BoxError> {
    let mut reader = Client::connect(address)?;
    let mut writer = reader.0.get_ref().try_clone()?;
    let (sent, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let requests = post("json", event(1).as_bytes()).repeat(100);
    std::thread::scope(|scope| {
        let (sent, over) = (&sent, &over);
        let writing = scope.spawn(move || -> io::Result<()> {
            while !stop.load(Ordering::Relaxed) {
                writer.write_all(&requests)?;
                sent.fetch_add(100, Ordering::Relaxed);
            }
            over.store(true, Ordering::Release);
            Ok(())
        });
        let mut read = 0;
        while !over.load(Ordering::Acquire) || read < sent.load(Ordering::Relaxed) {
            if read < sent.load(Ordering::Relaxed) {
                reader.status()?;
                read += 1;
            } else {
                std::thread::yield_now();
            }
        }
        writing.join().map_err(|_panic| "the writing thread panicked")??;
        Ok(read)
    })
}

/// The latencies of single-event POSTs in microseconds, sorted.
fn measure(address: &str, time: Duration) -> Result<Vec<u64>, BoxError> {
    let mut client = Client::connect(address)?;
    let clock = Clock::system();
    let (begin, mut times) = (clock.now(), Vec::new());
    while clock.now().since(begin) < time {
        let request = post("json", event(7).as_bytes());
        let before = clock.now();
        let status = client.exchange(&request)?;
        times.push(u64::try_from(clock.now().since(before).as_micros())?);
        if status != 202 {
            return Err(format!("a small request got {status}").into());
        }
        std::thread::sleep(PAUSE);
    }
    times.sort_unstable();
    Ok(times)
}

fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (address, seconds) = match arguments.as_slice() {
        [address] => (address, 3),
        [address, seconds] => (address, seconds.parse()?),
        _ => return Err("usage: neighbours ADDRESS [SECONDS]".into()),
    };
    let time = Duration::from_secs(seconds);
    let mut out = io::stdout();
    writeln!(out, "| neighbour | its requests | p50 | p99 | max |\n|---|---|---|---|---|")?;
    for name in ["none", "pipelines single events", "8 MiB of NDJSON at a time", "32 MiB of NDJSON, gzipped"]
    {
        // Generated for each neighbour, since the server rejects old events.
        let request = match name.split_once(' ') {
            Some(("8", _)) => post("x-ndjson", &lines(BATCH_BYTES)),
            Some(("32", _)) => {
                let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
                gzip.write_all(&lines(PLAIN_BYTES))?;
                let body = gzip.finish()?;
                post("x-ndjson\r\nContent-Encoding: gzip", &body)
            }
            _ => Vec::new(),
        };
        let stop = AtomicBool::new(false);
        let (count, times) = std::thread::scope(|scope| -> Result<_, BoxError> {
            let (stop, request) = (&stop, &request);
            let neighbour = scope.spawn(move || match name.split_once(' ') {
                None => Ok(0),
                Some(("pipelines", _)) => pipelining(address, stop),
                Some(_) => large(address, request, stop),
            });
            std::thread::sleep(Duration::from_millis(100));
            let times = measure(address, time);
            stop.store(true, Ordering::Relaxed);
            let count = neighbour.join().map_err(|_panic| "a neighbour panicked")??;
            Ok((count, times?))
        })?;
        let at = |permille: usize| times[(times.len() - 1) * permille / 1000];
        writeln!(out, "| {name} | {count} | {} | {} | {} |", at(500), at(990), at(1000))?;
    }
    Ok(())
}
