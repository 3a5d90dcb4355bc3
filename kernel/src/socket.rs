//! A small blocking netlink socket: requests in batches, dumps, a deadline on every answer.
//!
//! It belongs to the network namespace of the thread that opened it, and keeps to it.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::error::{Error, Result};

/// How long the kernel may take to answer. Requests wait for rtnl, which others may hold.
const DEADLINE: Duration = Duration::from_secs(10);
/// One send of the kernel's making; see `netlink_dump` (32 KiB) and the acks of a batch.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// Messages per send. Each failed one is answered while the send lasts, so that the answers of
/// a whole batch must fit into the socket's receive buffer.
pub const BATCH: usize = 128;
/// Bytes per send: the kernel takes a send as one buffer, bounded by the socket's send buffer.
const BATCH_BYTES: usize = 64 * 1024;
/// How often a dump that others disturbed is repeated.
const DUMP_TRIES: usize = 8;

/// Rules, sets and elements of nftables (`NFT_MSG_NEWRULE`, …), whose bytes are read here: the
/// crate's types take the lengths within them for granted, and panic where they lie.
const READ_BY_BYTES: [u16; 3] = [0x0a06, 0x0a09, 0x0a0c];
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
pub(crate) const HEADER: usize = 16;

/// One change for [`Socket::apply`].
#[derive(Debug, Clone)]
pub struct Request {
    pub(crate) message: RouteNetlinkMessage,
    /// Beside `NLM_F_REQUEST`.
    pub(crate) flags: u16,
    /// Errors that mean that there was nothing to do.
    pub(crate) done: &'static [Errno],
}

impl Request {
    pub(crate) fn new(message: RouteNetlinkMessage, flags: u16) -> Request {
        Request {
            message,
            flags,
            done: &[],
        }
    }

    /// Counts the given answers as success, e.g. ESRCH for a delete.
    pub(crate) fn done_on(mut self, done: &'static [Errno]) -> Request {
        self.done = done;
        self
    }
}

/// A netlink socket of the routing family (links, addresses, routes, neighbours).
#[derive(Debug)]
pub struct Socket {
    pub(crate) raw: Raw,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Socket> {
        Raw::open(NETLINK_ROUTE).map(|raw| Socket { raw })
    }

    /// The descriptor, for ioctls in the socket's namespace.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as the socket lives, which is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.raw.socket.as_raw_fd()) }
    }

    /// Sends the requests together, in order, and returns an answer for each. A failed one does
    /// not stop those behind it: netlink batches are not atomic.
    pub fn apply(&mut self, requests: &[Request]) -> Vec<Result<()>> {
        let mut answers = Vec::with_capacity(requests.len());
        for batch in requests.chunks(BATCH) {
            answers.extend(self.apply_batch(batch));
        }
        answers
    }

    /// Like [`Socket::apply`], for callers to whom the first failure is the whole answer.
    /// The requests behind a failed one are still sent.
    pub fn apply_all(&mut self, requests: &[Request]) -> Result<()> {
        self.apply(requests).into_iter().collect()
    }

    fn apply_batch(&mut self, batch: &[Request]) -> Vec<Result<()>> {
        let messages = batch
            .iter()
            .map(|request| (&request.message, request.flags));
        self.raw
            .exchange(messages)
            .into_iter()
            .zip(batch)
            .map(|(answer, request)| {
                answer.or_else(|failure| match failure {
                    Failure::Refused { errno, .. } if request.done.contains(&errno) => Ok(()),
                    failure => {
                        Err(failure.into_error(|| crate::describe::describe(&request.message)))
                    }
                })
            })
            .collect()
    }

    /// Asks for one object. `None` if the kernel says that there is no such thing.
    pub(crate) fn get(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>> {
        let describe = || crate::describe::describe(&message);
        match self.raw.get(&message) {
            Ok(answer) => Ok(answer),
            Err(Failure::Refused { errno, .. })
                if [Errno::ENODEV, Errno::ENOENT, Errno::ESRCH].contains(&errno) =>
            {
                Ok(None)
            }
            Err(failure) => Err(failure.into_error(describe)),
        }
    }

    /// Dumps a table; `keep` picks and converts. Repeated as a whole when others changed the
    /// table meanwhile (`NLM_F_DUMP_INTR`).
    pub(crate) fn dump<T>(
        &mut self,
        message: RouteNetlinkMessage,
        keep: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>> {
        let describe = || format!("dump: {}", crate::describe::describe(&message));
        self.raw.dump(&message, describe, keep)
    }

    /// The same for `keep` that reads the messages' bytes behind the header itself.
    pub(crate) fn dump_bytes<T>(
        &mut self,
        message: RouteNetlinkMessage,
        mut keep: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>> {
        let describe = || format!("dump: {}", crate::describe::describe(&message));
        let keep = |answer: &Answer<'_>| keep(&answer.bytes[HEADER..]);
        self.raw.dump_answers(&message, describe, keep)
    }

    /// See [`Raw::port`].
    #[cfg(feature = "monitor")]
    pub(crate) fn port(&mut self) -> std::io::Result<u32> {
        self.raw.port()
    }

    /// Lets the kernel filter dumps by what the request's header says (ifindex, table), since
    /// Linux 4.20. Older ones send everything, and callers filter anyway.
    pub fn strict_checks(&mut self) {
        let _ = self.raw.socket.set_netlink_get_strict_chk(true);
    }
}

/// A failed exchange before it has words for what was tried.
#[derive(Debug)]
pub(crate) enum Failure {
    Refused { errno: Errno, detail: String },
    Io(std::io::Error),
    Timeout,
    Decode(String),
}

impl Failure {
    pub(crate) fn into_error(self, describe: impl FnOnce() -> String) -> Error {
        let op = describe();
        match self {
            Failure::Refused { errno, detail } => Error::Refused { op, errno, detail },
            Failure::Io(source) => Error::Io { op, source },
            Failure::Timeout => Error::Timeout {
                op,
                seconds: DEADLINE.as_secs(),
            },
            Failure::Decode(reason) => Error::Decode { op, reason },
        }
    }
}

/// A netlink socket of any family.
#[derive(Debug)]
pub(crate) struct Raw {
    socket: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// One message of an answer, still undecoded.
pub(crate) struct Answer<'a> {
    pub(crate) kind: u16,
    flags: u16,
    pub(crate) sequence: u32,
    /// The socket that asked for it; 0 for what the kernel does by itself.
    #[cfg_attr(
        not(feature = "monitor"),
        expect(dead_code, reason = "for notifications")
    )]
    pub(crate) port: u32,
    /// With its header.
    pub(crate) bytes: &'a [u8],
}

impl Raw {
    pub(crate) fn open(family: isize) -> Result<Raw> {
        let op = || format!("open netlink socket of family {family}");
        let socket = netlink_sys::Socket::new(family).map_err(|e| Error::io(op(), e))?;
        // Without a text for a refusal we still work, so old kernels may lack these.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        // SAFETY: the descriptor is open for as long as `socket` lives, which outlives this call.
        let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
        let seconds = TimeVal::new(DEADLINE.as_secs() as i64, 0);
        setsockopt(&fd, sockopt::ReceiveTimeout, &seconds).map_err(|e| Error::io(op(), e))?;
        Ok(Raw {
            socket,
            sequence: 0,
            buffer: Vec::new(),
        })
    }

    /// Over a socket that somebody else answers than the kernel.
    #[cfg(feature = "fuzz")]
    pub(crate) fn over(socket: netlink_sys::Socket) -> Raw {
        Raw {
            socket,
            sequence: 0,
            buffer: Vec::new(),
        }
    }

    /// The number by which the kernel knows this socket in notifications. It gets one with its
    /// first request, if not here.
    #[cfg(feature = "monitor")]
    pub(crate) fn port(&mut self) -> std::io::Result<u32> {
        let mut address = netlink_sys::SocketAddr::new(0, 0);
        self.socket.get_address(&mut address)?;
        match address.port_number() {
            0 => self.socket.bind_auto().map(|address| address.port_number()),
            port => Ok(port),
        }
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Appends a message to what will be sent, and returns its sequence number.
    pub(crate) fn push<I: NetlinkSerializable>(
        &mut self,
        out: &mut Vec<u8>,
        payload: &I,
        flags: u16,
    ) -> u32 {
        let sequence = self.next_sequence();
        let length = HEADER + payload.buffer_len();
        let start = out.len();
        // Messages are aligned to four bytes.
        out.resize(start + length.next_multiple_of(4), 0);
        let message = &mut out[start..start + length];
        message[0..4].copy_from_slice(&(length as u32).to_ne_bytes());
        message[4..6].copy_from_slice(&payload.message_type().to_ne_bytes());
        message[6..8].copy_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        message[8..12].copy_from_slice(&sequence.to_ne_bytes());
        payload.serialize(&mut message[HEADER..]);
        sequence
    }

    /// Sends messages in one go (more only when they outgrow the send buffer) and collects an
    /// answer for each. Only the last is acknowledged: the kernel answers failures unasked.
    pub(crate) fn exchange<'a, I: NetlinkSerializable + 'a>(
        &mut self,
        messages: impl ExactSizeIterator<Item = (&'a I, u16)>,
    ) -> Vec<std::result::Result<(), Failure>> {
        let total = messages.len();
        let mut answers: Vec<std::result::Result<(), Failure>> = Vec::with_capacity(total);
        let mut out = Vec::with_capacity(total.min(BATCH) * 160);
        let mut first = None;
        for (at, (payload, flags)) in messages.enumerate() {
            let last = at + 1 == total || out.len() > BATCH_BYTES;
            let ack = if last { NLM_F_ACK } else { 0 };
            let sequence = self.push(&mut out, payload, flags | ack);
            let first_of_send = *first.get_or_insert(sequence);
            answers.push(Ok(()));
            if last {
                let sent = answers.len();
                let start = sent - (sequence.wrapping_sub(first_of_send) as usize + 1);
                if let Err(failure) =
                    self.send_and_collect(&out, first_of_send, &mut answers[start..], false)
                {
                    let text = format!("{failure:?}");
                    answers[start] = Err(failure);
                    for answer in &mut answers[start + 1..] {
                        *answer = Err(Failure::Decode(text.clone()));
                    }
                }
                out.clear();
                first = None;
            }
        }
        answers
    }

    /// Sends messages as one nfnetlink batch. Its ends answer only when the batch as a whole
    /// fails, and then with the number of its beginning.
    pub(crate) fn exchange_between<I: NetlinkSerializable>(
        &mut self,
        begin: &I,
        messages: &[(I, u16)],
        end: &I,
    ) -> std::result::Result<(), Failure> {
        let mut out = Vec::with_capacity(4096);
        let first = self.push(&mut out, begin, 0);
        for (at, (payload, flags)) in messages.iter().enumerate() {
            let last = at + 1 == messages.len();
            self.push(&mut out, payload, flags | if last { NLM_F_ACK } else { 0 });
        }
        self.push(&mut out, end, 0);
        let mut answers: Vec<_> = (0..=messages.len()).map(|_| Ok(())).collect();
        self.send_and_collect(&out, first, &mut answers, true)?;
        answers.into_iter().collect()
    }

    fn send_and_collect(
        &mut self,
        out: &[u8],
        first: u32,
        answers: &mut [std::result::Result<(), Failure>],
        first_decides: bool,
    ) -> std::result::Result<(), Failure> {
        self.send(out)?;
        let last = answers.len() - 1;
        let mut finished = false;
        while !finished {
            self.receive(|answer| {
                let at = answer.sequence.wrapping_sub(first) as usize;
                if answer.kind != NLMSG_ERROR || at > last {
                    return Ok(()); // left over from an exchange that was given up
                }
                if let Some(failure) = refusal(&answer) {
                    answers[at] = Err(failure);
                    finished |= first_decides && at == 0;
                }
                finished |= at == last;
                Ok(())
            })?;
        }
        Ok(())
    }

    pub(crate) fn get<I>(&mut self, payload: &I) -> std::result::Result<Option<I>, Failure>
    where
        I: NetlinkSerializable + NetlinkDeserializable,
    {
        let mut out = Vec::with_capacity(128);
        // With an ack behind the answer, an object that cannot be decoded cannot hang us.
        let sequence = self.push(&mut out, payload, NLM_F_ACK);
        self.send(&out)?;
        let mut object = None;
        let mut finished = false;
        while !finished {
            self.receive(|answer| {
                if answer.sequence != sequence {
                    return Ok(());
                }
                if answer.kind == NLMSG_ERROR {
                    finished = true;
                    return refusal(&answer).map_or(Ok(()), Err);
                }
                object = Some(decode(answer.bytes)?);
                Ok(())
            })?;
        }
        Ok(object)
    }

    /// Asks with one type and decodes the answers as another, which may be the same.
    pub(crate) fn dump<Q, I, T>(
        &mut self,
        payload: &Q,
        describe: impl Fn() -> String,
        mut keep: impl FnMut(I) -> Option<T>,
    ) -> Result<Vec<T>>
    where
        Q: NetlinkSerializable,
        I: NetlinkDeserializable,
    {
        // What cannot be decoded is newer than our crates, so not ours.
        let keep = |answer: &Answer<'_>| keep(decode(answer.bytes).ok()?);
        self.dump_answers(payload, describe, keep)
    }

    /// The same for `keep` that reads the answers' bytes itself.
    pub(crate) fn dump_answers<Q, T>(
        &mut self,
        payload: &Q,
        describe: impl Fn() -> String,
        mut keep: impl FnMut(&Answer<'_>) -> Option<T>,
    ) -> Result<Vec<T>>
    where
        Q: NetlinkSerializable,
    {
        for _ in 0..DUMP_TRIES {
            match self.dump_once(payload, &mut keep) {
                Ok(Some(objects)) => return Ok(objects),
                Ok(None) => {}
                Err(Failure::Refused {
                    errno: Errno::EINTR,
                    ..
                }) => {}
                Err(failure) => return Err(failure.into_error(describe)),
            }
        }
        Err(Error::Interrupted { op: describe() })
    }

    /// `None` if the table changed meanwhile.
    fn dump_once<Q, T>(
        &mut self,
        payload: &Q,
        keep: &mut impl FnMut(&Answer<'_>) -> Option<T>,
    ) -> std::result::Result<Option<Vec<T>>, Failure>
    where
        Q: NetlinkSerializable,
    {
        let mut out = Vec::with_capacity(128);
        let sequence = self.push(&mut out, payload, NLM_F_DUMP);
        self.send(&out)?;
        let mut objects = Vec::new();
        let mut interrupted = false;
        let mut finished = false;
        while !finished {
            let received = self.receive(|answer| {
                if answer.sequence != sequence {
                    return Ok(());
                }
                interrupted |= answer.flags & NLM_F_DUMP_INTR != 0;
                match answer.kind {
                    NLMSG_DONE => {
                        finished = true;
                        // A dump that fails half way says so in its last message.
                        refusal(&answer).map_or(Ok(()), Err)
                    }
                    NLMSG_ERROR => {
                        finished = true;
                        refusal(&answer).map_or(Ok(()), Err)
                    }
                    _ => {
                        objects.extend(keep(&answer));
                        Ok(())
                    }
                }
            });
            match received {
                // The kernel had no memory for the next part. It goes on with the next read, and
                // refuses another dump before this one's end (EBUSY).
                Err(Failure::Io(error)) if is_overrun(&error) => interrupted = true,
                received => received?,
            }
        }
        Ok((!interrupted).then_some(objects))
    }

    pub(crate) fn send(&self, out: &[u8]) -> std::result::Result<(), Failure> {
        self.socket.send(out, 0).map_err(Failure::Io)?;
        Ok(())
    }

    fn receive(
        &mut self,
        mut take: impl FnMut(Answer<'_>) -> std::result::Result<(), Failure>,
    ) -> std::result::Result<(), Failure> {
        self.buffer.clear();
        self.buffer.reserve(RECEIVE_BUFFER);
        let count = loop {
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(count) => break count,
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EINTR) => {}
                    Some(Errno::EAGAIN) => return Err(Failure::Timeout),
                    _ => return Err(Failure::Io(error)),
                },
            }
        };
        let mut rest = &self.buffer[..count];
        let mut result = Ok(());
        while let Some((answer, behind)) = split(rest) {
            // All of it is read even when one answer fails, so that none is met later.
            result = result.and(take(answer));
            rest = behind;
        }
        match rest {
            [] => result,
            _ => result.and(Err(Failure::Decode(
                "a read ended within a message".to_owned(),
            ))),
        }
    }
}

fn is_overrun(error: &std::io::Error) -> bool {
    error.raw_os_error().map(Errno::from_raw) == Some(Errno::ENOBUFS)
}

/// The first message of `bytes`, and what is behind it.
pub(crate) fn split(bytes: &[u8]) -> Option<(Answer<'_>, &[u8])> {
    let header = bytes.get(..HEADER)?;
    let length = u32_at(header, 0) as usize;
    let message = bytes.get(..length.max(HEADER))?;
    let answer = Answer {
        kind: u16_at(header, 4),
        flags: u16_at(header, 6),
        sequence: u32_at(header, 8),
        port: u32_at(header, 12),
        bytes: message,
    };
    let next = length.max(HEADER).next_multiple_of(4);
    Some((answer, bytes.get(next..).unwrap_or_default()))
}

/// The error in an NLMSG_ERROR (none in an ack) or at the end of a dump.
fn refusal(answer: &Answer<'_>) -> Option<Failure> {
    let body = &answer.bytes[HEADER..];
    let code = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?);
    if code == 0 {
        return None;
    }
    // The failed message follows, whole or only its header, then the attributes.
    let echoed = match answer.kind {
        NLMSG_DONE => 0,
        _ if answer.flags & NLM_F_CAPPED != 0 => HEADER,
        _ => body.get(4..8).map_or(0, |b| u32_at(b, 0) as usize),
    };
    let attributes = match answer.flags & NLM_F_ACK_TLVS {
        0 => &[][..],
        _ => body
            .get(4 + echoed.next_multiple_of(4)..)
            .unwrap_or_default(),
    };
    Some(Failure::Refused {
        errno: Errno::from_raw(code.saturating_neg()),
        detail: text_attribute(attributes, NLMSGERR_ATTR_MSG).unwrap_or_default(),
    })
}

fn text_attribute(mut attributes: &[u8], wanted: u16) -> Option<String> {
    loop {
        let length = u16_at(attributes.get(..4)?, 0) as usize;
        let kind = u16_at(attributes, 2) & 0x3fff;
        let value = attributes.get(4..length)?;
        if kind == wanted {
            let text = value.split(|b| *b == 0).next()?;
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

pub(crate) fn decode<I: NetlinkDeserializable>(bytes: &[u8]) -> std::result::Result<I, Failure> {
    let kind = bytes.get(..HEADER).map(|header| u16_at(header, 4));
    if kind.is_some_and(|kind| READ_BY_BYTES.contains(&kind)) {
        let reason = "a rule, a set or an element came instead of an object";
        return Err(Failure::Decode(reason.to_owned()));
    }
    let message = NetlinkMessage::<I>::deserialize(bytes)
        .map_err(|error| Failure::Decode(error.to_string()))?;
    match message.payload {
        NetlinkPayload::InnerMessage(inner) => Ok(inner),
        _ => Err(Failure::Decode(
            "a control message came instead of an object".to_owned(),
        )),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
