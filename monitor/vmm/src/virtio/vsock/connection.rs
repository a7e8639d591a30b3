//! One connection: a host stream on one side, credit on the other.
//!
//! ```text
//!   guest --DATA--> [held, at most CREDIT] --write--> stream      forwarded counts what left `held`
//!   guest <--DATA-- (never more than the guest's free buffer) <--read-- stream
//! ```

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use rustix::event::epoll::EventFlags;

use super::packet::{Header, Op};

/// Bytes the guest may send before we have passed them on.
pub const CREDIT: u32 = 64 << 10;
/// The guest is told of freed credit once this much of it is news.
const CREDIT_STEP: u32 = CREDIT / 4;
const NO_MORE_RECEIVE: u32 = 1;
const NO_MORE_SEND: u32 = 2;

/// What the device does after a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Nothing,
    /// Tells the guest.
    Reply(Op),
    /// Resets the connection, which is through.
    Close,
    /// Resets the connection for what the guest did.
    Refuse,
}

/// A connection.
pub struct Connection {
    stream: UnixStream,
    /// A header towards the guest, to be completed.
    template: Header,
    /// Bytes from the guest the stream did not take yet.
    held: Vec<u8>,
    /// Bytes passed on to the stream, ever.
    forwarded: u32,
    /// The value of `forwarded` the guest knows.
    told: u32,
    /// Bytes sent to the guest, ever.
    sent: u32,
    guest_buffer: u32,
    guest_taken: u32,
    /// The guest said it sends no more.
    guest_silent: bool,
    /// The guest said it takes no more.
    guest_deaf: bool,
    host: HostSide,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HostSide {
    Open,
    /// The stream ended; the guest does not know yet.
    Ended,
    /// The guest was told.
    Told,
    /// The stream takes nothing any more.
    Broken,
}

impl Connection {
    /// The connection a request opens, over our end of its stream.
    pub fn new(request: &Header, stream: UnixStream) -> Self {
        Self {
            stream,
            template: request.reply(Op::Response),
            held: Vec::new(),
            forwarded: 0,
            told: 0,
            sent: 0,
            guest_buffer: request.buf_alloc,
            guest_taken: request.fwd_cnt,
            guest_silent: false,
            guest_deaf: false,
            host: HostSide::Open,
        }
    }

    /// Our end of the stream.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// A header to the guest, with current credit.
    pub fn header(&self, op: Op) -> Header {
        // We only ever end our own side: what the guest still sends is taken.
        let flags = if op == Op::Shutdown { NO_MORE_SEND } else { 0 };
        let (op, fwd_cnt) = (op as u16, self.forwarded);
        Header { op, flags, buf_alloc: CREDIT, fwd_cnt, ..self.template }
    }

    /// Every packet tells what the guest can take.
    pub fn update_credit(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc;
        self.guest_taken = header.fwd_cnt;
    }

    /// Payload from the guest.
    pub fn accept(&mut self, payload: &[u8]) -> Next {
        let within_credit = self.held.len() + payload.len() <= CREDIT as usize;
        if !within_credit || self.guest_silent {
            return Next::Refuse;
        }
        self.held.extend(payload);
        self.forward();
        self.next()
    }

    /// The guest will not send, or not take, any more.
    pub fn guest_shutdown(&mut self, flags: u32) -> Next {
        self.guest_silent |= flags & NO_MORE_SEND != 0;
        self.guest_deaf |= flags & NO_MORE_RECEIVE != 0;
        self.forward();
        self.next()
    }

    fn next(&self) -> Next {
        if self.over() { Next::Close } else { Next::Nothing }
    }

    /// True once nothing can pass any more: the guest is through and its bytes are delivered, or nobody takes them.
    fn over(&self) -> bool {
        self.host == HostSide::Broken
            || (self.guest_silent && self.guest_deaf && self.held.is_empty())
    }

    /// True if there is something to tell the guest now.
    pub fn has_news(&mut self) -> bool {
        self.forward();
        self.over()
            || self.host == HostSide::Ended
            || self.credit_is_news()
            || (self.listening() && self.readable())
    }

    /// True while bytes from the host have somewhere to go.
    fn listening(&self) -> bool {
        self.host == HostSide::Open && !self.guest_deaf && self.room() > 0
    }

    /// The next packet for the guest: payload of at most `room` bytes, an end, or credit.
    pub fn take_news(&mut self, room: usize) -> (Op, Vec<u8>) {
        if self.over() {
            return (Op::Reset, Vec::new());
        }
        let want = room.min(self.room() as usize);
        if self.listening() && want > 0 {
            let mut payload = vec![0; want];
            match self.stream.read(&mut payload) {
                Ok(0) => self.host = HostSide::Ended,
                Ok(n) => {
                    payload.truncate(n);
                    self.sent = self.sent.wrapping_add(n as u32);
                    self.told = self.forwarded;
                    return (Op::Data, payload);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.host = HostSide::Ended,
            }
        }
        self.told = self.forwarded;
        match self.host {
            HostSide::Ended => {
                self.host = HostSide::Told;
                (Op::Shutdown, Vec::new())
            }
            HostSide::Open | HostSide::Told | HostSide::Broken => (Op::CreditUpdate, Vec::new()),
        }
    }

    /// What the stream is to be watched for.
    pub fn interest(&self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.listening());
        flags.set(EventFlags::OUT, !self.held.is_empty() && self.host != HostSide::Broken);
        flags
    }

    /// Passes held bytes on as far as the stream takes them.
    pub fn forward(&mut self) {
        let mut passed = 0;
        while let Some(rest) = self.held.get(passed..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(n) => passed += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.host = HostSide::Broken;
                    break;
                }
            }
        }
        self.held.drain(..passed);
        // At most CREDIT bytes are held.
        self.forwarded = self.forwarded.wrapping_add(passed as u32);
        if self.guest_silent && self.held.is_empty() {
            // Fails only if the other end is gone, which the next read tells.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// Free bytes in the guest's buffer, as far as it told us. A guest that claims to have taken more than was sent gets none.
    fn room(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.guest_taken);
        self.guest_buffer.saturating_sub(in_flight)
    }

    fn credit_is_news(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= CREDIT_STEP
    }

    /// True if a read would not block: there are bytes, or the end.
    fn readable(&self) -> bool {
        use rustix::net::RecvFlags;
        let peeked = rustix::net::recv(
            &self.stream,
            &mut [0u8; 1][..],
            RecvFlags::PEEK | RecvFlags::DONTWAIT,
        );
        !matches!(peeked, Err(rustix::io::Errno::AGAIN))
    }
}
