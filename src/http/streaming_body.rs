//! Streaming response bodies: a bounded, non-blocking channel of blocks from a producer thread to
//! the acceptor, and the chunked encoding of the blocks. Must not depend on connections or on the
//! content.
//!
//! Neither end blocks. The producer owns the [`BodySender`]: it sends a block and registers a
//! callback for free capacity. The engine owns the [`BodyStream`]: it takes a block and is notified
//! when there is more.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering, fence};
use std::sync::{Arc, OnceLock};

use crossbeam::queue::ArrayQueue;

/// Capacity of a channel in blocks: the engine sends one while the producer builds the next.
pub const CHANNEL_BLOCKS_MAX: usize = 2;

// States of a channel: more blocks may follow, the body is complete, the producer dropped it
// incomplete.
const OPEN: u8 = 0;
const DONE: u8 = 1;
const ABORTED: u8 = 2;

type CapacityCallback = Box<dyn FnOnce() + Send>;
type NotifyCallback = Box<dyn Fn() + Send + Sync>;

/// Invariant: each end publishes its change, runs a `SeqCst` fence and then checks whether the other
/// end is waiting, so that of two concurrent ends at least one sees the other.
struct BodyChannel {
    blocks: ArrayQueue<Vec<u8>>,
    state: AtomicU8,
    /// The [`BodyStream`] was dropped.
    receiver_dropped: AtomicBool,
    /// The producer's callback for free capacity.
    capacity_callback: ArrayQueue<CapacityCallback>,
    notify: OnceLock<NotifyCallback>,
    /// A notification is in flight, so that another one is unnecessary.
    notified: AtomicBool,
}

impl BodyChannel {
    fn notify(&self) {
        fence(Ordering::SeqCst);
        if let Some(notify) = self.notify.get()
            && !self.notified.swap(true, Ordering::SeqCst)
        {
            notify();
        }
    }

    fn run_capacity_callback(&self) {
        fence(Ordering::SeqCst);
        if let Some(resume) = self.capacity_callback.pop() {
            resume();
        }
    }
}

/// The producer's end. Dropping it without [`BodySender::finish`] aborts the response, so that the
/// client can detect the truncation.
pub struct BodySender(Arc<BodyChannel>);

/// The engine's end.
pub struct BodyStream(Arc<BodyChannel>);

/// The outcome of one poll of a [`BodyStream`].
#[derive(Debug, PartialEq, Eq)]
pub enum NextBlock {
    Block(Vec<u8>),
    /// No block yet; the notify callback follows.
    Pending,
    End,
    Aborted,
}

/// Creates a channel for one response body.
pub fn body_channel() -> (BodySender, BodyStream) {
    let channel = Arc::new(BodyChannel {
        blocks: ArrayQueue::new(CHANNEL_BLOCKS_MAX),
        state: AtomicU8::new(OPEN),
        receiver_dropped: AtomicBool::new(false),
        capacity_callback: ArrayQueue::new(1),
        notify: OnceLock::new(),
        notified: AtomicBool::new(false),
    });
    (BodySender(Arc::clone(&channel)), BodyStream(channel))
}

impl BodySender {
    /// Sends a block. The channel must have capacity: at the start, in
    /// [`BodySender::on_capacity`], or if [`BodySender::has_capacity`].
    pub fn send(&self, block: Vec<u8>) {
        if !block.is_empty() {
            self.0.blocks.push(block).expect("BUG: a block was sent without capacity");
        }
        self.0.notify();
    }

    /// Whether [`BodySender::send`] may be called now.
    pub fn has_capacity(&self) -> bool {
        !self.0.blocks.is_full()
    }

    /// Restarts the response timeout while the producer works on the next block.
    pub fn keep_alive(&self) {
        self.0.notify();
    }

    /// Calls `resume` with this sender as soon as the channel has capacity: at once, or later on
    /// the engine's thread, where it must not block. Drops `resume` if the stream is dropped.
    pub fn on_capacity(self, resume: impl FnOnce(Self) + Send + 'static) {
        let channel = Arc::clone(&self.0);
        let resume: CapacityCallback = Box::new(move || resume(self));
        assert!(
            channel.capacity_callback.push(resume).is_ok(),
            "BUG: a capacity callback is already registered"
        );
        fence(Ordering::SeqCst);
        if channel.receiver_dropped.load(Ordering::SeqCst) {
            drop(channel.capacity_callback.pop());
        } else if !channel.blocks.is_full() {
            channel.run_capacity_callback();
        }
    }

    /// Whether the [`BodyStream`] was dropped.
    pub fn is_closed(&self) -> bool {
        self.0.receiver_dropped.load(Ordering::SeqCst)
    }

    /// Marks the body as complete.
    pub fn finish(self) {
        self.0.state.store(DONE, Ordering::SeqCst);
    }
}

impl Drop for BodySender {
    fn drop(&mut self) {
        if self.0.state.load(Ordering::SeqCst) == OPEN {
            self.0.state.store(ABORTED, Ordering::SeqCst);
        }
        self.0.notify();
    }
}

impl BodyStream {
    /// Registers the notify callback. The caller must poll once afterwards.
    pub(super) fn attach(&self, notify: impl Fn() + Send + Sync + 'static) {
        assert!(self.0.notify.set(Box::new(notify)).is_ok(), "BUG: a notify callback is already registered");
        fence(Ordering::SeqCst);
    }

    pub(crate) fn next(&self) -> NextBlock {
        self.0.notified.store(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        // Loaded before the queue is read, so that blocks sent before the end are delivered before
        // it.
        let state = self.0.state.load(Ordering::SeqCst);
        if let Some(block) = self.0.blocks.pop() {
            self.0.run_capacity_callback();
            return NextBlock::Block(block);
        }
        match state {
            OPEN => NextBlock::Pending,
            DONE => NextBlock::End,
            _ => NextBlock::Aborted,
        }
    }
}

impl Drop for BodyStream {
    fn drop(&mut self) {
        self.0.receiver_dropped.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        // The callback owns the producer's state, which references this channel.
        drop(self.0.capacity_callback.pop());
    }
}

impl fmt::Debug for BodySender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodySender").field("blocks", &self.0.blocks.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for BodyStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyStream").field("blocks", &self.0.blocks.len()).finish_non_exhaustive()
    }
}

/// A streaming response that is being sent.
#[derive(Debug)]
pub(super) struct StreamingBody {
    stream: BodyStream,
    /// Chunked coding, which marks the end of the body. HTTP/1.0 marks it by closing the
    /// connection.
    pub(super) chunked: bool,
    pub(super) keep_alive: bool,
    pub(super) serial: u64,
}

/// The outcome of [`StreamingBody::pump`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PumpResult {
    Block,
    Empty,
    End,
    Aborted,
}

impl StreamingBody {
    pub(super) fn new(stream: BodyStream, chunked: bool, keep_alive: bool, serial: u64) -> Self {
        Self { stream, chunked, keep_alive, serial }
    }

    /// Appends the next block, or the end of the body, to `out`.
    pub(super) fn pump(&self, out: &mut Vec<u8>) -> PumpResult {
        match self.stream.next() {
            NextBlock::Block(block) if self.chunked => {
                out.reserve(block.len() + 24);
                out.extend_from_slice(format!("{:x}\r\n", block.len()).as_bytes());
                out.extend_from_slice(&block);
                out.extend_from_slice(b"\r\n");
                PumpResult::Block
            }
            NextBlock::Block(block) => {
                out.extend_from_slice(&block);
                PumpResult::Block
            }
            NextBlock::Pending => PumpResult::Empty,
            NextBlock::End => {
                if self.chunked {
                    out.extend_from_slice(b"0\r\n\r\n");
                }
                PumpResult::End
            }
            NextBlock::Aborted => PumpResult::Aborted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam::channel::unbounded;

    #[test]
    fn producer_is_called_back_when_a_block_is_taken() {
        let (sender, stream) = body_channel();
        let (park_sender, parked) = unbounded();
        let park = |sender: BodySender| {
            let park_sender = park_sender.clone();
            sender.on_capacity(move |sender| park_sender.send(sender).unwrap());
        };
        assert_eq!(stream.next(), NextBlock::Pending);
        sender.send(vec![1]);
        park(sender);
        let sender = parked.try_recv().expect("the channel has capacity for a second block");
        sender.send(vec![2]);
        park(sender);
        assert!(parked.is_empty(), "the channel is full");
        assert_eq!(stream.next(), NextBlock::Block(vec![1]));
        let sender = parked.try_recv().expect("the channel has capacity again");
        sender.send(Vec::new());
        sender.finish();
        assert_eq!(stream.next(), NextBlock::Block(vec![2]));
        assert_eq!(stream.next(), NextBlock::End);
    }

    #[test]
    fn dropping_one_end_is_seen_by_the_other() {
        let (sender, stream) = body_channel();
        sender.send(vec![1]);
        drop(sender);
        assert_eq!(stream.next(), NextBlock::Block(vec![1]));
        assert_eq!(stream.next(), NextBlock::Aborted);

        let (sender, stream) = super::body_channel();
        sender.send(vec![1]);
        sender.send(vec![2]);
        let (park_sender, parked) = unbounded::<BodySender>();
        let channel = Arc::downgrade(&sender.0);
        sender.on_capacity(move |sender| park_sender.send(sender).unwrap());
        drop(stream);
        assert!(parked.recv().is_err(), "the callback is dropped");
        assert_eq!(channel.strong_count(), 0);

        let (sender, stream) = super::body_channel();
        drop(stream);
        assert!(sender.is_closed());
        sender.on_capacity(|_sender| panic!("the stream is dropped"));
    }

    #[test]
    fn notify_is_called_once_until_next_is_polled() {
        let (sender, stream) = body_channel();
        let (notify_sender, notifications) = unbounded();
        stream.attach(move || notify_sender.send(()).unwrap());
        sender.send(vec![1]);
        sender.send(vec![2]);
        assert_eq!(notifications.try_iter().count(), 1);
        assert_eq!(stream.next(), NextBlock::Block(vec![1]));
        sender.keep_alive();
        assert_eq!(notifications.try_iter().count(), 1);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a thread of the test, which joins it")]
    fn channel_delivers_all_blocks_in_order_across_threads() {
        const BLOCKS: u32 = 20_000;
        let (sender, stream) = body_channel();
        let (resume, resumed) = unbounded::<BodySender>();
        let (notify, notified) = unbounded();
        stream.attach(move || notify.send(()).unwrap());
        let producer = std::thread::spawn(move || {
            let mut sender = sender;
            for block in 0..BLOCKS {
                sender.send(block.to_be_bytes().to_vec());
                let resume = resume.clone();
                sender.on_capacity(move |sender| resume.send(sender).unwrap());
                sender = resumed.recv().expect("the callback is called");
            }
            sender.finish();
        });
        let mut taken = 0;
        loop {
            match stream.next() {
                NextBlock::Block(block) => {
                    assert_eq!(block, u32::to_be_bytes(taken));
                    taken += 1;
                }
                NextBlock::Pending => notified.recv().expect("a notification follows"),
                NextBlock::End => break,
                NextBlock::Aborted => panic!("the body was finished"),
            }
        }
        assert_eq!(taken, BLOCKS);
        producer.join().unwrap();
    }
}
