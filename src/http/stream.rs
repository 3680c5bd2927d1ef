//! A body that is sent while it is being made: blocks that another thread hands over, no more of them at a time than
//! the client takes. Knows no connection and no content.
//!
//! Neither end waits. The maker, who has the [`Feed`], hands over a block and says how it goes on; that is called when
//! there is room for another. The engine, which has the [`Stream`], takes what is there and is nudged when more is.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering, fence};
use std::sync::{Arc, OnceLock};

use crossbeam::queue::ArrayQueue;

/// Blocks that may lie between maker and engine: one is sent while the next is made.
pub const BLOCKS_MAX: usize = 2;

/// More may come, all has come, or no more will though it should have.
const OPEN: u8 = 0;
const DONE: u8 = 1;
const BROKEN: u8 = 2;

type Resume = Box<dyn FnOnce() + Send>;
type Nudge = Box<dyn Fn() + Send + Sync>;

/// Invariant: whoever hands something over looks afterwards whether the other end has just begun to wait for it, with
/// a fence between: of the two one always sees the other.
struct Pipe {
    blocks: ArrayQueue<Vec<u8>>,
    state: AtomicU8,
    /// Nobody takes blocks any more.
    gone: AtomicBool,
    /// How the maker goes on.
    resume: ArrayQueue<Resume>,
    nudge: OnceLock<Nudge>,
    /// A nudge is on its way, another would say nothing new.
    nudged: AtomicBool,
}

impl Pipe {
    fn nudge(&self) {
        fence(Ordering::SeqCst);
        if let Some(nudge) = self.nudge.get()
            && !self.nudged.swap(true, Ordering::SeqCst)
        {
            nudge();
        }
    }

    fn resume(&self) {
        fence(Ordering::SeqCst);
        if let Some(resume) = self.resume.pop() {
            resume();
        }
    }
}

/// The maker's end. Dropped without [`Feed::finish`] it breaks the answer off, so that the client knows it for one
/// that is not whole.
pub struct Feed(Arc<Pipe>);

/// The engine's end.
pub struct Stream(Arc<Pipe>);

/// What the engine finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Block(Vec<u8>),
    /// Nothing now: it will be nudged.
    NotYet,
    End,
    Broken,
}

/// Both ends of a body.
pub fn stream() -> (Feed, Stream) {
    let pipe = Arc::new(Pipe {
        blocks: ArrayQueue::new(BLOCKS_MAX),
        state: AtomicU8::new(OPEN),
        gone: AtomicBool::new(false),
        resume: ArrayQueue::new(1),
        nudge: OnceLock::new(),
        nudged: AtomicBool::new(false),
    });
    (Feed(Arc::clone(&pipe)), Stream(pipe))
}

impl Feed {
    /// Hands over a block, for which there must be room: at the beginning, or when [`Feed::when_room`] says so.
    pub fn push(&self, block: Vec<u8>) {
        if !block.is_empty() {
            self.0.blocks.push(block).expect("BUG: a block was made before there was room for it");
        }
        self.0.nudge();
    }

    /// Tells the engine that something will come, though it takes its time.
    pub fn alive(&self) {
        self.0.nudge();
    }

    /// Has `resume` called with this feed as soon as there is room for a block: now, or later on the engine's thread,
    /// so that it must not block. Not called any more once the client is gone.
    pub fn when_room(self, resume: impl FnOnce(Self) + Send + 'static) {
        let pipe = Arc::clone(&self.0);
        let resume: Resume = Box::new(move || resume(self));
        assert!(pipe.resume.push(resume).is_ok(), "BUG: there is one feed, and it goes on once at a time");
        fence(Ordering::SeqCst);
        if pipe.gone.load(Ordering::SeqCst) {
            drop(pipe.resume.pop());
        } else if !pipe.blocks.is_full() {
            pipe.resume();
        }
    }

    /// Whether nobody takes it any more.
    pub fn is_gone(&self) -> bool {
        self.0.gone.load(Ordering::SeqCst)
    }

    /// All has been handed over.
    pub fn finish(self) {
        self.0.state.store(DONE, Ordering::SeqCst);
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        if self.0.state.load(Ordering::SeqCst) == OPEN {
            self.0.state.store(BROKEN, Ordering::SeqCst);
        }
        self.0.nudge();
    }
}

impl Stream {
    /// Has `nudge` called whenever there is news. The engine looks once for itself after this.
    pub(super) fn attach(&self, nudge: impl Fn() + Send + Sync + 'static) {
        assert!(self.0.nudge.set(Box::new(nudge)).is_ok(), "BUG: a body is sent once");
        fence(Ordering::SeqCst);
    }

    pub(crate) fn next(&self) -> Next {
        self.0.nudged.store(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        // Before the look into the queue: what was handed over before the end is sent before it.
        let state = self.0.state.load(Ordering::SeqCst);
        if let Some(block) = self.0.blocks.pop() {
            self.0.resume();
            return Next::Block(block);
        }
        match state {
            OPEN => Next::NotYet,
            DONE => Next::End,
            _ => Next::Broken,
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.gone.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        // With it goes the maker's state, which holds this pipe.
        drop(self.0.resume.pop());
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("blocks", &self.0.blocks.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("blocks", &self.0.blocks.len()).finish_non_exhaustive()
    }
}

/// A streamed answer on its way to a client.
#[derive(Debug)]
pub(super) struct Sending {
    stream: Stream,
    /// In chunks, so that its end can be told from a broken connection; HTTP/1.0 has the connection's end alone.
    pub(super) chunked: bool,
    pub(super) keep_alive: bool,
    pub(super) serial: u64,
}

/// What a look at it brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pumped {
    Block,
    Nothing,
    End,
    Broken,
}

impl Sending {
    pub(super) fn new(stream: Stream, chunked: bool, keep_alive: bool, serial: u64) -> Self {
        Self { stream, chunked, keep_alive, serial }
    }

    /// Appends the next block to `out`, or the end.
    pub(super) fn pump(&self, out: &mut Vec<u8>) -> Pumped {
        match self.stream.next() {
            Next::Block(block) if self.chunked => {
                out.reserve(block.len() + 24);
                out.extend_from_slice(format!("{:x}\r\n", block.len()).as_bytes());
                out.extend_from_slice(&block);
                out.extend_from_slice(b"\r\n");
                Pumped::Block
            }
            Next::Block(block) => {
                out.extend_from_slice(&block);
                Pumped::Block
            }
            Next::NotYet => Pumped::Nothing,
            Next::End => {
                if self.chunked {
                    out.extend_from_slice(b"0\r\n\r\n");
                }
                Pumped::End
            }
            Next::Broken => Pumped::Broken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam::channel::unbounded;

    #[test]
    fn the_maker_goes_on_as_the_engine_takes_and_ends() {
        let (feed, stream) = stream();
        let (sender, parked) = unbounded();
        let park = |feed: Feed| {
            let sender = sender.clone();
            feed.when_room(move |feed| sender.send(feed).unwrap());
        };
        assert_eq!(stream.next(), Next::NotYet);
        feed.push(vec![1]);
        park(feed);
        let feed = parked.try_recv().expect("there is room for a second block");
        feed.push(vec![2]);
        park(feed);
        assert!(parked.is_empty(), "it is full");
        assert_eq!(stream.next(), Next::Block(vec![1]));
        let feed = parked.try_recv().expect("there is room again");
        feed.push(Vec::new());
        feed.finish();
        assert_eq!(stream.next(), Next::Block(vec![2]));
        assert_eq!(stream.next(), Next::End);
    }

    #[test]
    fn whoever_lets_go_is_noticed_by_the_other() {
        let (feed, stream) = stream();
        feed.push(vec![1]);
        drop(feed);
        assert_eq!(stream.next(), Next::Block(vec![1]));
        assert_eq!(stream.next(), Next::Broken);

        let (feed, stream) = super::stream();
        feed.push(vec![1]);
        feed.push(vec![2]);
        let (sender, parked) = unbounded::<Feed>();
        let pipe = Arc::downgrade(&feed.0);
        feed.when_room(move |feed| sender.send(feed).unwrap());
        drop(stream);
        assert!(parked.recv().is_err(), "what would have gone on is dropped");
        assert_eq!(pipe.strong_count(), 0);

        let (feed, stream) = super::stream();
        drop(stream);
        assert!(feed.is_gone());
        feed.when_room(|_feed| panic!("nobody takes it"));
    }

    #[test]
    fn nudges_come_once_until_somebody_looks() {
        let (feed, stream) = stream();
        let (sender, nudges) = unbounded();
        stream.attach(move || sender.send(()).unwrap());
        feed.push(vec![1]);
        feed.push(vec![2]);
        assert_eq!(nudges.try_iter().count(), 1);
        assert_eq!(stream.next(), Next::Block(vec![1]));
        feed.alive();
        assert_eq!(nudges.try_iter().count(), 1);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a thread of the test, which joins it")]
    fn all_blocks_arrive_in_order_whatever_the_timing() {
        const BLOCKS: u32 = 20_000;
        let (feed, stream) = stream();
        let (resume, resumed) = unbounded::<Feed>();
        let (nudge, nudged) = unbounded();
        stream.attach(move || nudge.send(()).unwrap());
        let maker = std::thread::spawn(move || {
            let mut feed = feed;
            for block in 0..BLOCKS {
                feed.push(block.to_be_bytes().to_vec());
                let resume = resume.clone();
                feed.when_room(move |feed| resume.send(feed).unwrap());
                feed = resumed.recv().expect("it goes on");
            }
            feed.finish();
        });
        let mut taken = 0;
        loop {
            match stream.next() {
                Next::Block(block) => {
                    assert_eq!(block, u32::to_be_bytes(taken));
                    taken += 1;
                }
                Next::NotYet => nudged.recv().expect("more comes"),
                Next::End => break,
                Next::Broken => panic!("it was finished"),
            }
        }
        assert_eq!(taken, BLOCKS);
        maker.join().unwrap();
    }
}
