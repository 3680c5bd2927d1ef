//! What a command knows about its standard output.

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Whether nobody reads what is written to `out`: a pipe whose other end is closed.
pub(super) fn is_closed(out: &impl AsFd) -> bool {
    let mut polled = [PollFd::new(out, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
        && polled[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

/// The lines of the terminal `out`; none if it is no terminal.
pub(super) fn rows(out: &impl AsFd) -> Option<u16> {
    rustix::termios::tcgetwinsize(out).ok().map(|size| size.ws_row).filter(|rows| *rows > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipe_is_closed_once_its_reader_is_gone() {
        let (reader, writer) = std::io::pipe().unwrap();
        assert!(!is_closed(&writer));
        assert_eq!(rows(&writer), None);
        drop(reader);
        assert!(is_closed(&writer));
    }
}
