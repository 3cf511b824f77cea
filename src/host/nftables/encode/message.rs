//! Writes netlink messages of nf_tables: headers, attributes, and attributes in attributes.

/// nf_tables' number among the subsystems of nfnetlink (linux/netfilter/nfnetlink.h).
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `nlmsghdr` and `nfgenmsg`, bytes.
const HEADERS: usize = 16 + 4;
/// NFPROTO_INET
const INET: u8 = 1;
/// NLM_F_REQUEST
const REQUEST: u16 = 1;
/// NLM_F_ACK
const ACK: u16 = 4;
/// Of a message that makes something: NLM_F_CREATE.
pub(super) const CREATE: u16 = 0x400;
/// Of a rule that goes behind the others: NLM_F_APPEND.
pub(super) const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;

/// What a message does (NFT_MSG_*, linux/netfilter/nf_tables.h).
#[derive(Clone, Copy, Debug)]
#[repr(u16)]
pub(super) enum Kind {
    NewTable = 0,
    NewChain = 3,
    DeleteChain = 5,
    NewRule = 6,
    DeleteRule = 8,
    NewSet = 9,
    DeleteSet = 11,
    NewElements = 12,
    DeleteElements = 14,
    NewObject = 18,
}

/// The messages of one transaction, with what each of them is about for errors.
#[derive(Debug)]
pub(in crate::host::nftables) struct Batch {
    bytes: Vec<u8>,
    /// By sequence number; the first and the last are the batch's own.
    about: Vec<String>,
}

impl Batch {
    pub(super) fn new() -> Self {
        let mut batch = Self {
            bytes: Vec::new(),
            about: Vec::new(),
        };
        batch.frame(BATCH_BEGIN, "the transaction");
        batch
    }

    /// Appends a message about `about`. The kernel answers the first one of a batch also when all is well.
    pub(super) fn message(
        &mut self,
        kind: Kind,
        flags: u16,
        about: &str,
        body: impl FnOnce(&mut Attributes<'_>),
    ) {
        let answered = if self.about.len() == 1 { ACK } else { 0 };
        let start = self.bytes.len();
        self.header(
            SUBSYSTEM << 8 | kind as u16,
            REQUEST | flags | answered,
            INET,
            0,
        );
        self.about.push(about.to_owned());
        body(&mut Attributes(&mut self.bytes));
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        if let Some(field) = self.bytes.get_mut(start..start + 4) {
            field.copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// The whole transaction.
    pub(in crate::host::nftables) fn finish(mut self) -> Finished {
        self.frame(BATCH_END, "the transaction");
        Finished {
            bytes: self.bytes,
            about: self.about,
        }
    }

    fn frame(&mut self, kind: u16, about: &str) {
        self.header(kind, REQUEST, 0, SUBSYSTEM);
        self.about.push(about.to_owned());
    }

    fn header(&mut self, kind: u16, flags: u16, family: u8, resource: u16) {
        let sequence = u32::try_from(self.about.len()).unwrap_or(u32::MAX);
        let length = u32::try_from(HEADERS).unwrap_or(u32::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
    }
}

/// A transaction that can be sent.
#[derive(Debug)]
pub(in crate::host) struct Finished {
    /// The messages, one behind the other.
    pub(in crate::host::nftables) bytes: Vec<u8>,
    about: Vec<String>,
}

impl Finished {
    /// What the message with this sequence number is about.
    pub(in crate::host::nftables) fn about(&self, sequence: u32) -> &str {
        let about = usize::try_from(sequence)
            .ok()
            .and_then(|index| self.about.get(index));
        about.map_or("the transaction", String::as_str)
    }
}

/// Attributes at the end of a message. Each begins at a multiple of four bytes.
pub(super) struct Attributes<'a>(&'a mut Vec<u8>);

impl<'a> Attributes<'a> {
    /// Attributes that are written apart, to be appended to a message later.
    pub(super) fn into(bytes: &'a mut Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The same place, for somebody who writes on for a while.
    pub(super) fn again(&mut self) -> Attributes<'_> {
        Attributes(self.0)
    }

    /// Attributes that were written apart.
    pub(super) fn append(&mut self, attributes: &[u8]) {
        self.0.extend(attributes);
    }

    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.within(kind, |inner| inner.0.extend(value));
    }

    /// A number in network byte order.
    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A text, ended by NUL.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.within(kind, |inner| {
            inner.0.extend(value.as_bytes());
            inner.0.push(0);
        });
    }

    pub(super) fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Attributes<'_>)) {
        self.within(kind | NESTED, body);
    }

    fn within(&mut self, kind: u16, body: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        body(&mut Attributes(self.0));
        // too long is refused by the kernel; what we nest is bounded far below that
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        if let Some(field) = self.0.get_mut(start..start + 2) {
            field.copy_from_slice(&length.to_ne_bytes());
        }
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}
