//! Listening sockets: one per acceptor on one address with `SO_REUSEPORT`, so that the kernel
//! distributes the connections, or those of a service manager, which acceptors may share. Must not
//! depend on protocols.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// The backlog of a listener. The kernel caps it at `net.core.somaxconn`, 4096 by default.
const BACKLOG: i32 = 4096;

/// Binds `count` listeners to one address. Port 0 selects one free port for all of them.
pub fn bind(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    // SO_REUSEPORT works across processes too: without this probe, a second server that is started
    // by mistake would take half of the connections.
    let probe = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    probe.set_reuse_address(true)?;
    probe.bind(&address.into())?;
    drop(probe);

    let mut address = address;
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count {
        let listener = bind_one(address)?;
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Distributes sockets over `count` acceptors, so that each socket has an acceptor and each acceptor has
/// a socket of every address. Acceptors share a socket if there are fewer of its address than acceptors:
/// one that is not busy accepts the next connection.
pub fn share(sockets: &[TcpListener], count: usize) -> io::Result<Vec<Vec<TcpListener>>> {
    let mut by_address: Vec<(SocketAddr, Vec<&TcpListener>)> = Vec::new();
    for socket in sockets {
        let address = socket.local_addr()?;
        match by_address.iter_mut().find(|(known, _)| *known == address) {
            Some((_, same)) => same.push(socket),
            None => by_address.push((address, vec![socket])),
        }
    }
    let mut shares: Vec<Vec<TcpListener>> = std::iter::repeat_with(Vec::new).take(count).collect();
    for (_, same) in by_address {
        for nth in 0..same.len().max(count) {
            shares[nth % count].push(same[nth % same.len()].try_clone()?);
        }
    }
    Ok(shares)
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait until old connections leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Accepted sockets inherit TCP_NODELAY: a response must not wait for the ACK of the previous
    // one.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bind_gives_all_listeners_the_same_port() {
        let listeners = bind("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let ports: Vec<u16> = listeners.iter().map(|one| one.local_addr().unwrap().port()).collect();
        assert_eq!(ports.len(), 3);
        assert!(ports[0] != 0 && ports.iter().all(|port| *port == ports[0]));
    }

    #[test]
    fn share_gives_each_socket_an_acceptor_and_each_acceptor_a_socket_of_every_address() {
        #[track_caller]
        fn check(addresses: &[(&str, usize)], count: usize, shares: &[usize]) {
            let sockets: Vec<_> = addresses
                .iter()
                .flat_map(|(address, sockets)| bind(address.parse().unwrap(), *sockets).unwrap())
                .collect();
            let by_acceptor = share(&sockets, count).unwrap();
            assert_eq!(by_acceptor.iter().map(Vec::len).collect::<Vec<_>>(), shares);
            let address = |socket: &TcpListener| socket.local_addr().unwrap();
            let all: std::collections::HashSet<_> = sockets.iter().map(address).collect();
            for share in &by_acceptor {
                assert_eq!(share.iter().map(address).collect::<std::collections::HashSet<_>>(), all);
            }
            // Each socket is in a share: a connection waits in the backlog of one of them.
            drop(sockets);
            for target in &all {
                for _ in 0..50 {
                    let _client = std::net::TcpStream::connect(target).unwrap();
                    let accepted = || {
                        by_acceptor.iter().flatten().any(|socket| {
                            socket.set_nonblocking(true).unwrap();
                            socket.accept().is_ok()
                        })
                    };
                    assert!((0..1000).any(|_| accepted()), "no acceptor has the connection");
                }
            }
        }
        check(&[("127.0.0.1:0", 1)], 1, &[1]);
        check(&[("127.0.0.1:0", 1)], 3, &[1, 1, 1]);
        check(&[("127.0.0.1:0", 2)], 2, &[1, 1]);
        check(&[("127.0.0.1:0", 3)], 2, &[2, 1]);
        check(&[("127.0.0.1:0", 2), ("127.0.0.2:0", 1)], 3, &[2, 2, 2]);
        assert_eq!(share(&[], 2).unwrap().len(), 2);
    }

    #[test]
    fn bind_fails_on_a_taken_address_even_with_reuse_port() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(bind(taken.local_addr().unwrap(), 1).is_err());
        let shared = bind("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        assert!(bind(shared[0].local_addr().unwrap(), 1).is_err());
    }
}
