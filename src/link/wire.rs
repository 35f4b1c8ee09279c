//! What bytes of a connection come to on the wire. Pure.
//!
//! Counted as Ethernet counts them: preamble, frame with an 802.1Q tag (a Direct Connect virtual interface
//! has one: <https://docs.aws.amazon.com/directconnect/latest/UserGuide/WorkingWithVirtualInterfaces.html>),
//! gap, IP and TCP with timestamps.

/// A connection's way of cutting its bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Frames {
    /// Payload of a full segment.
    pub(super) segment_bytes: u32,
    /// Whether over IPv6.
    pub(super) v6: bool,
}

impl Frames {
    /// Bytes on the wire for so much payload.
    pub(super) fn wire_bytes(self, payload: u64) -> u64 {
        payload + payload.div_ceil(u64::from(self.segment_bytes.max(1))) * self.around()
    }

    /// Bytes on the wire for so many full segments.
    pub(super) fn wire_bytes_of_segments(self, segments: u32) -> u64 {
        u64::from(segments) * (u64::from(self.segment_bytes) + self.around())
    }

    fn around(self) -> u64 {
        let ip = if self.v6 { IPV6_BYTES } else { IPV4_BYTES };
        ETHERNET_BYTES + ip + TCP_BYTES
    }
}

/// Preamble and start 8, header 14, tag 4, checksum 4, gap 12.
const ETHERNET_BYTES: u64 = 42;
const IPV4_BYTES: u64 = 20;
const IPV6_BYTES: u64 = 40;
/// With the timestamps option.
const TCP_BYTES: u64 = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_frame_of_1500_is_1542_on_the_wire() {
        let v4 = Frames { segment_bytes: 1448, v6: false };
        assert_eq!(v4.wire_bytes(1448), 1542);
        assert_eq!(v4.wire_bytes(1449), 1449 + 2 * 94);
        assert_eq!(v4.wire_bytes(0), 0);
        assert_eq!(v4.wire_bytes_of_segments(3), 3 * 1542);
        assert_eq!(Frames { segment_bytes: 1428, v6: true }.wire_bytes(1428), 1542);
    }
}
