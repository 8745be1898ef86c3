//! Changes of tables, chains, rules and sets, put in force in one step.

use std::io;

use super::{
    Family,
    wire::{self, Header, NLM_F_ACK, NLM_F_REQUEST, Socket, Subsystem},
};

/// Says that messages for a subsystem begin and end to be one step: `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BEGIN: u16 = 16;
const END: u16 = 17;

/// `nlmsg_flags` begin at this byte of a message.
const FLAGS_AT: usize = 6;

/// What is to be done to something: the kernel's number for it, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    message: u8,
    flags: u16,
}

impl Order {
    // linux/netfilter/nf_tables.h and linux/netlink.h: NLM_F_CREATE is 0x400, NLM_F_EXCL 0x200 and NLM_F_APPEND 0x800.
    pub(super) const NEW_TABLE: Self = Self { message: 0, flags: 0 };
    pub(super) const REMOVE_TABLE: Self = Self { message: 2, flags: 0 };
    pub(super) const NEW_CHAIN: Self = Self { message: 3, flags: 0x400 };
    pub(super) const NEW_RULE: Self = Self { message: 6, flags: 0x400 | 0x200 | 0x800 };
    pub(super) const NEW_SET: Self = Self { message: 9, flags: 0x400 };
    pub(super) const NEW_ELEMENTS: Self = Self { message: 12, flags: 0x400 };
    pub(super) const REMOVE_ELEMENTS: Self = Self { message: 14, flags: 0 };
}

/// What is to be done, as the kernel reads it.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// Where the last order begins.
    last: Option<usize>,
    sequence: u32,
}

impl Batch {
    pub(super) fn new() -> Self {
        let mut batch = Self { bytes: Vec::new(), last: None, sequence: 0 };
        batch.mark(BEGIN);
        batch
    }

    pub(super) fn add(&mut self, family: Family, order: Order, content: &[u8]) {
        self.last = Some(self.bytes.len());
        let header = Header {
            kind: Subsystem::Rules.kind(order.message),
            flags: NLM_F_REQUEST | order.flags,
            sequence: self.sequence,
            family: family.number(),
            resource: 0,
        };
        self.put(&header, content);
    }

    fn mark(&mut self, kind: u16) {
        let resource = Subsystem::Rules as u16;
        let header = Header { kind, flags: NLM_F_REQUEST, sequence: self.sequence, family: 0, resource };
        self.put(&header, &[]);
    }

    fn put(&mut self, header: &Header, content: &[u8]) {
        self.bytes.extend(wire::message(header, content));
        self.sequence += 1;
    }

    /// Sends it and waits until the kernel has put it in force or refused it as a whole.
    pub(super) fn send(mut self) -> io::Result<()> {
        let Some(last) = self.last else {
            return Ok(());
        };
        let awaited = self.sequence - 1;
        // The kernel answers what it is asked to answer, and besides whatever it refuses, in their order: with the last
        // one's answer all are there, and the first that is a refusal is why nothing was done.
        for (byte, flag) in self.bytes.iter_mut().skip(last + FLAGS_AT).zip(NLM_F_ACK.to_ne_bytes()) {
            *byte |= flag;
        }
        self.mark(END);
        let socket = Socket::open()?;
        socket.make_room(self.bytes.len())?;
        socket.send(&self.bytes)?;
        loop {
            for answer in socket.receive()? {
                answer.check()?;
                if answer.sequence == awaited {
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kinds and flags of the messages in there.
    fn messages(mut bytes: &[u8]) -> Vec<(u16, u16)> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let field = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
            found.push((field(4), field(6)));
            bytes = &bytes[usize::from(field(0))..];
        }
        found
    }

    #[test]
    fn batch_is_what_the_kernel_takes_for_one_step() {
        let mut batch = Batch::new();
        batch.add(Family::Bridge, Order::NEW_TABLE, &wire::text(1, c"one"));
        batch.add(Family::Inet, Order::NEW_RULE, &[]);
        batch.mark(END);

        let ours = |number: u16| 10 << 8 | number;
        assert_eq!(messages(&batch.bytes), [(16, 1), (ours(0), 1), (ours(6), 0xe01), (17, 1)]);
        assert_eq!(&batch.bytes[16..20], [0, 0, 0, 10], "the subsystem that the batch is for");
        assert_eq!(batch.bytes[20 + 16], 7, "a table of a bridge");
    }

    #[test]
    fn nothing_to_do_needs_no_kernel() {
        assert!(Batch::new().send().is_ok());
    }
}
