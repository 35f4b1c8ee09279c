//! What the kernel is asked about a connection, and asked to do for it.

use std::net::SocketAddr;

use nix::{
    getsockopt_impl, libc, setsockopt_impl,
    sys::socket::{
        self,
        sockopt::{GetStruct, SetStruct},
    },
};
use tokio::net::TcpStream;

use super::wire::Frames;

/// How a connection cuts its bytes into frames.
pub(super) fn frames(stream: &TcpStream) -> Frames {
    let v6 = match stream.peer_addr() {
        Ok(SocketAddr::V6(address)) => address.ip().to_ipv4_mapped().is_none(),
        Ok(SocketAddr::V4(_)) | Err(_) => false,
    };
    let segment_bytes = told(stream).map_or(SEGMENT_BYTES, |told| told.tcpi_snd_mss);
    Frames { segment_bytes, v6 }
}

/// Segments that were sent more than once.
pub(super) fn segments_sent_again(stream: &TcpStream) -> u32 {
    told(stream).map_or(0, |told| told.tcpi_total_retrans)
}

/// Lets the kernel space out the packets, so that a switch sees no bursts. Without it the rate still holds.
pub(super) fn pace(stream: &TcpStream, bytes_per_s: u64) {
    if let Err(why) = socket::setsockopt(stream, MaxPacingRate, &bytes_per_s) {
        tracing::debug!(%why, "SO_MAX_PACING_RATE");
    }
}

fn told(stream: &TcpStream) -> Option<libc::tcp_info> {
    socket::getsockopt(stream, TcpInfo).ok()
}

/// `TCP_INFO`
#[derive(Clone, Copy, Debug)]
struct TcpInfo;

getsockopt_impl!(
    TcpInfo,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    libc::tcp_info,
    GetStruct<libc::tcp_info>
);

/// `SO_MAX_PACING_RATE`, bytes per second. The kernel takes 32 bits or 64.
#[derive(Clone, Copy, Debug)]
struct MaxPacingRate;

setsockopt_impl!(
    MaxPacingRate,
    libc::SOL_SOCKET,
    libc::SO_MAX_PACING_RATE,
    u64,
    SetStruct<'_, u64>
);

/// Of Ethernet with TCP timestamps.
const SEGMENT_BYTES: u32 = 1448;
