//! `struct virtio_vsock_hdr` (virtio 1.2 section 5.10.6), little-endian, copied out of guest memory before it is looked at.

/// Bytes of a header.
pub const HEADER_SIZE: usize = 44;
const TYPE_STREAM: u16 = 1;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Open a connection.
    Request = 1,
    /// It is open.
    Response = 2,
    /// It is gone, or never was.
    Reset = 3,
    /// One or both sides send no more.
    Shutdown = 4,
    /// Payload.
    Data = 5,
    /// How much the sender can take.
    CreditUpdate = 6,
    /// How much can you take?
    CreditRequest = 7,
}

/// A packet header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// CID of the sender.
    pub src_cid: u64,
    /// CID of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Type of socket.
    pub kind: u16,
    /// Operation, as sent.
    pub op: u16,
    /// Flags of a shutdown.
    pub flags: u32,
    /// Sender's buffer for this connection.
    pub buf_alloc: u32,
    /// Bytes the sender has taken out of it, ever, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header; every pattern of bytes is one.
    pub fn decode(bytes: &[u8; HEADER_SIZE]) -> Self {
        let mut rest = &bytes[..];
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// Writes a header.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_SIZE);
        bytes.extend(self.src_cid.to_le_bytes());
        bytes.extend(self.dst_cid.to_le_bytes());
        bytes.extend(self.src_port.to_le_bytes());
        bytes.extend(self.dst_port.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.buf_alloc.to_le_bytes());
        bytes.extend(self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The operation, if it is one.
    pub fn op(&self) -> Option<Op> {
        use Op::{CreditRequest, CreditUpdate, Data, Request, Reset, Response, Shutdown};
        [Request, Response, Reset, Shutdown, Data, CreditUpdate, CreditRequest]
            .into_iter()
            .find(|op| *op as u16 == self.op)
    }

    /// True for stream sockets, the only type there is here.
    pub fn is_stream(&self) -> bool {
        self.kind == TYPE_STREAM
    }

    /// An answer to this packet, without payload and credit.
    pub fn reply(&self, op: Op) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op as u16,
            ..Self::default()
        }
    }
}

/// The next `N` bytes; the fields of a header add up to its size.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let Some((head, tail)) = rest.split_first_chunk() else { return [0; N] };
    *rest = tail;
    *head
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn encoding_is_the_inverse_of_decoding(bytes in any::<[[u8; 11]; 4]>()) {
            let bytes: [u8; HEADER_SIZE] = bytes.concat().try_into().unwrap();
            prop_assert_eq!(Header::decode(&bytes).encode(), bytes.to_vec());
        }
    }
}
