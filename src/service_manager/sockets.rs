//! Sockets that the service manager passes at the start (`sd_listen_fds(3)`), and those that it stores
//! for the next start (`sd_pid_notify_with_fds(3)`).

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg_addr};
use socket2::{Domain, Socket, Type};

use super::{NotifySocket, ServiceManager};

/// Descriptors of one message; the kernel allows 253.
const FDS_PER_MESSAGE_MAX: usize = 200;

/// A descriptor that the service manager has passed, as the environment names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedSocket {
    pub descriptor: RawFd,
    /// The name of the socket unit, its `FileDescriptorName=`, or the name under which it was stored.
    pub name: String,
}

/// Why a passed socket cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("LISTEN_FDS passes the socket {name:?} as descriptor {descriptor}, which {reason}")]
pub struct TakeSocketError {
    name: String,
    descriptor: RawFd,
    reason: String,
}

/// Takes the sockets that were passed to this process, with their names. May be called once.
pub fn take_listeners(passed: &[PassedSocket]) -> Result<Vec<(String, TcpListener)>, TakeSocketError> {
    let take = |socket: &PassedSocket| {
        let listener = take_listener(socket.descriptor).map_err(|reason| TakeSocketError {
            name: socket.name.clone(),
            descriptor: socket.descriptor,
            reason,
        })?;
        Ok((socket.name.clone(), listener))
    };
    passed.iter().map(take).collect()
}

fn take_listener(descriptor: RawFd) -> Result<TcpListener, String> {
    let socket = Socket::from(take_descriptor(descriptor).map_err(|error| format!("is not open: {error}"))?);
    let is_tcp = |socket: &Socket| {
        let domain = socket.domain()?;
        let is_internet = domain == Domain::IPV4 || domain == Domain::IPV6;
        Ok::<_, io::Error>(is_internet && socket.r#type()? == Type::STREAM && socket.is_listener()?)
    };
    if !is_tcp(&socket).map_err(|error| format!("is not a socket: {error}"))? {
        return Err("is not a listening TCP socket".to_owned());
    }
    // As for own listeners: accepted sockets inherit it.
    socket.set_tcp_nodelay(true).map_err(|error| format!("has no TCP_NODELAY: {error}"))?;
    Ok(socket.into())
}

/// Takes a descriptor that was open when the program started, and keeps it from child processes.
fn take_descriptor(descriptor: RawFd) -> io::Result<OwnedFd> {
    #[expect(unsafe_code, reason = "the service manager passes descriptors by their number")]
    // SAFETY: it is borrowed for this call, which fails if it is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    #[expect(unsafe_code, reason = "the service manager passes descriptors by their number")]
    // SAFETY: it is open, and was passed to this process, so nothing else in it has the descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

impl ServiceManager {
    /// Has the service manager keep `listeners` open and pass them to the next process of the service
    /// under `name`. It does so if the unit has `FileDescriptorStoreMax=`.
    pub fn store(&self, name: &str, listeners: &[TcpListener]) {
        let Some(notify) = &self.0 else { return };
        for some in listeners.chunks(FDS_PER_MESSAGE_MAX) {
            let some: Vec<BorrowedFd<'_>> = some.iter().map(AsFd::as_fd).collect();
            // FDPOLL: a listening socket has no events that end its use.
            let state = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
            if let Err(error) = send_descriptors(notify, state.as_bytes(), &some) {
                log::warn!("the service manager does not store the listening sockets: {error}");
            }
        }
    }

    /// Has the service manager close the sockets that it stores under `name`.
    pub fn remove_stored(&self, name: &str) {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
    }
}

fn send_descriptors(notify: &NotifySocket, state: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let address = match (notify.address.as_pathname(), notify.address.as_abstract_name()) {
        (Some(path), _) => SocketAddrUnix::new(path.as_os_str().as_bytes())?,
        (None, name) => SocketAddrUnix::new_abstract_name(name.unwrap_or_default())?,
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_MESSAGE_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        unreachable!("BUG: the buffer has space for a message of descriptors");
    }
    let payload = [IoSlice::new(state)];
    sendmsg_addr(&notify.socket, &address, &payload, &mut control, SendFlags::empty())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::IntoRawFd as _;

    use super::*;

    #[test]
    fn only_listening_tcp_sockets_are_taken_and_they_are_closed_on_exec() {
        let take = |name: &str, descriptor: RawFd| {
            take_listeners(&[PassedSocket { descriptor, name: name.to_owned() }])
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let taken = take("a", listener.into_raw_fd()).unwrap().remove(0);
        assert_eq!((taken.0.as_str(), taken.1.local_addr().unwrap()), ("a", address));
        let flags = rustix::io::fcntl_getfd(&taken.1).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));

        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let error = take("u", udp.into_raw_fd()).unwrap_err().to_string();
        assert!(error.contains("\"u\"") && error.contains("not a listening TCP socket"), "{error}");
        let connected = std::net::TcpStream::connect(address).unwrap();
        assert!(take("c", connected.into_raw_fd()).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = take("f", file.into_raw_fd()).unwrap_err().to_string();
        assert!(error.contains("not a socket"), "{error}");
        let error = take("none", 1_000_000).unwrap_err().to_string();
        assert!(error.contains("descriptor 1000000, which is not open"), "{error}");
    }
}
