//! How much a connection must have received for the kernel to wake us.
//!
//! The server sends message by message, and the runtime's poller hears of each, whether or not anyone
//! wants to read: thousands of wake-ups a second. While `SO_RCVLOWAT` asks for more than has come
//! the kernel keeps still; when it is lowered again, it tells at once of what has come (`tcp_set_rcvlowat`
//! in <https://github.com/torvalds/linux/blob/v6.1/net/ipv4/tcp.c>). The end of a connection is told in
//! any case. Through a nap it asks for more than comes ([`Lull`]); of rows that nobody waits for, for many
//! ([`wake_at`], kept by the connection).
//!
//! **Invariant:** who waits for one byte is woken by one: when no [`Lull`] is alive, and after
//! `wake_at(1)`.

use std::{os::fd::AsRawFd, time::Duration};

use nix::{
    libc, setsockopt_impl,
    sys::socket::{self, MsgFlags, sockopt::SetStruct},
};
use tokio::net::TcpStream;

/// A connection that wakes nobody. Cancel-safe: dropped, it wakes again.
#[derive(Debug)]
struct Lull<'a>(&'a TcpStream);

/// Naps so long. Whether there is something to be read afterwards.
pub(super) async fn nap(stream: &TcpStream, length: Duration) -> bool {
    let lull = Lull::begin(stream);
    tokio::time::sleep(length).await;
    drop(lull);
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    // An end and an error are for the reader to find.
    socket::recv(stream.as_raw_fd(), &mut [0], flags) != Err(nix::errno::Errno::EAGAIN)
}

impl<'a> Lull<'a> {
    fn begin(stream: &'a TcpStream) -> Self {
        wake_at(stream, LULL_BYTES);
        Self(stream)
    }
}

impl Drop for Lull<'_> {
    fn drop(&mut self) {
        wake_at(self.0, ONE);
    }
}

/// Has the kernel tell of what came once it is so much. Without it all works, at more expense.
pub(super) fn wake_at(stream: &TcpStream, bytes: libc::c_int) {
    if let Err(why) = socket::setsockopt(stream, WakeAt, &bytes) {
        tracing::debug!(%why, "SO_RCVLOWAT");
    }
}

/// `SO_RCVLOWAT`
#[derive(Clone, Copy, Debug)]
struct WakeAt;

setsockopt_impl!(
    WakeAt,
    libc::SOL_SOCKET,
    libc::SO_RCVLOWAT,
    libc::c_int,
    SetStruct<'_, libc::c_int>
);

/// Whatever comes wakes us.
pub(super) const ONE: libc::c_int = 1;
/// In the stream of changes.
pub(super) const NAP: Duration = Duration::from_millis(1);
/// More than a nap brings. The kernel makes room for twice as much; 2 MiB were measured, and brought nothing.
pub(super) const LULL_BYTES: libc::c_int = 256 << 10;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tokio::{io::AsyncReadExt, net::TcpListener, time::timeout};

    use super::*;

    async fn pair() -> (std::net::TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (server, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_connection_wakes_nobody_until_the_lull_is_over() {
        let (mut server, mut stream) = pair().await;
        let mut one = [0];
        for _ in 0..2 {
            // The runtime takes a socket for readable until it was found empty.
            assert!(stream.try_read(&mut one).is_err());
            let lull = Lull::begin(&stream);
            server.write_all(b"x").unwrap();
            assert!(timeout(20 * NAP, stream.readable()).await.is_err(), "woken during the lull");
            drop(lull);
            timeout(1000 * NAP, stream.read_exact(&mut one)).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn a_nap_tells_whether_there_is_something_to_read() {
        let (mut server, mut stream) = pair().await;
        assert!(!nap(&stream, NAP).await);
        server.write_all(b"x").unwrap();
        assert!(nap(&stream, NAP).await);
        stream.read_exact(&mut [0]).await.unwrap();
        assert!(!nap(&stream, NAP).await);
        drop(server);
        assert!(nap(&stream, NAP).await, "an end is to be read too");
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    }
}
