//! A connection whose bytes go when the link grants them.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use tokio::{net::TcpStream, time::Sleep};

use super::{Link, socket, wire::Frames};

/// A TCP connection, shaped where there is a link.
#[derive(Debug)]
pub struct Shaped {
    io: TokioIo<TcpStream>,
    share: Option<Share>,
}

/// A connection's part in a link.
#[derive(Debug)]
struct Share {
    link: Arc<Link>,
    frames: Frames,
    /// Bytes that may be written once `pause` is over.
    granted: usize,
    pause: Option<Pin<Box<Sleep>>>,
    sent_again: u32,
}

impl Shaped {
    /// As the routing table has it, as fast as it goes.
    pub(super) fn free(io: TokioIo<TcpStream>) -> Self {
        Self { io, share: None }
    }

    /// Within the link's rate.
    pub(super) fn within(link: Arc<Link>, io: TokioIo<TcpStream>) -> Self {
        let stream = io.inner();
        socket::pace(stream, link.rate().0 / 8);
        let frames = socket::frames(stream);
        Self { io, share: Some(Share { link, frames, granted: 0, pause: None, sent_again: 0 }) }
    }
}

impl Share {
    /// How many of `wanted` bytes may be written now.
    fn poll_grant(
        &mut self,
        stream: &TcpStream,
        wanted: usize,
        cx: &mut Context<'_>,
    ) -> Poll<usize> {
        if self.granted == 0 && wanted > 0 {
            let again = socket::segments_sent_again(stream);
            let lost = again.wrapping_sub(self.sent_again);
            self.sent_again = again;
            let repeated = self.frames.wire_bytes_of_segments(lost);
            let (bytes, pause) = self.link.grant(wanted, self.frames, repeated);
            self.granted = bytes;
            self.pause = pause.map(|pause| Box::pin(tokio::time::sleep(pause)));
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        Poll::Ready(self.granted.min(wanted))
    }
}

impl Write for Shaped {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let io = Pin::new(&mut this.io);
        let Some(share) = &mut this.share else { return io.poll_write_vectored(cx, pieces) };
        let wanted = pieces.iter().map(|piece| piece.len()).sum();
        let most = ready!(share.poll_grant(io.inner(), wanted, cx));
        let (few, count) = within(pieces, most);
        let written = ready!(io.poll_write_vectored(cx, &few[..count]))?;
        share.granted = share.granted.saturating_sub(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The first of the pieces that hold no more than `most` bytes, the last of them cut.
fn within<'a>(pieces: &'a [IoSlice<'a>], most: usize) -> ([IoSlice<'a>; PIECES_MAX], usize) {
    let (mut few, mut count, mut left) = ([IoSlice::new(&[]); PIECES_MAX], 0, most);
    for piece in pieces.iter().take(PIECES_MAX) {
        if left == 0 {
            break;
        }
        let length = piece.len().min(left);
        few[count] = IoSlice::new(&piece[..length]);
        (count, left) = (count + 1, left - length);
    }
    (few, count)
}

impl Read for Shaped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        room: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, room)
    }
}

impl Connection for Shaped {
    fn connected(&self) -> Connected {
        self.io.connected()
    }
}

/// As many TLS records as a grant holds at most, and some.
const PIECES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_where_the_grant_ends() {
        let pieces = [IoSlice::new(b"abc"), IoSlice::new(b""), IoSlice::new(b"defg")];
        let text = |most| {
            let (few, count) = within(&pieces, most);
            few[..count].iter().flat_map(|piece| piece.to_vec()).collect::<Vec<u8>>()
        };
        assert_eq!(text(0), b"");
        assert_eq!(text(2), b"ab");
        assert_eq!(text(5), b"abcde");
        assert_eq!(text(99), b"abcdefg");
    }
}
