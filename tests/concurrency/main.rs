//! Models of the wake-up protocols: a thread sleeps unless another one has left it something, and
//! the other one wakes it only if it sleeps; and of the capacity that threads share. `loom` runs the server's own code in every interleaving
//! of the threads and with every reordering that the memory model allows. The parkers of the models
//! have no timeout, and report a thread that sleeps when no other is left to wake it.
//!
//! Each model also runs with a mistake in the order of the steps, and must find it.

mod acceptor;
mod buffer;
mod journal;
mod parker;
mod writer;

/// What the server's files refer to.
mod clock {
    pub(crate) use aurore_events::clock::Moment;
}
