//! What the crate nftnl lacks, straight from libnftnl: expressions of any kind, named sets and maps, elements of both.

use std::{
    ffi::{CStr, CString, c_char, c_void},
    os::fd::{AsRawFd, BorrowedFd},
    ptr::NonNull,
};

use nftnl::{
    MsgType, NlMsg, Rule,
    expr::Expression,
    nftnl_sys::{self as c, libc},
};

/// An attribute of an expression.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// One byte.
    Byte(u8),
    /// A number.
    Number(u32),
    /// Data that is compared or loaded.
    Bytes(Vec<u8>),
    /// A name.
    Name(CString),
}

/// One step of a rule: the kernel's name of its kind, and its attributes by libnftnl's numbers.
#[derive(Clone, Debug)]
pub(in crate::network::netlink) struct Step {
    pub(super) kind: &'static CStr,
    pub(super) attributes: Vec<(u32, Value)>,
}

/// libnftnl's attribute numbers are small; its functions take them as 16 bits.
fn number(attribute: u32) -> u16 {
    u16::try_from(attribute).unwrap_or(u16::MAX)
}

/// Lengths of what is at most some bytes long.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// What libnftnl allocated. There is nothing sensible to do without a few bytes of memory: the standard library aborts
/// then too.
fn allocated<T>(pointer: *mut T) -> NonNull<T> {
    NonNull::new(pointer).unwrap_or_else(|| std::process::abort())
}

impl Expression for Step {
    fn to_expr(&self, _rule: &Rule) -> NonNull<c::nftnl_expr> {
        // SAFETY: the name is a C string. An expression that is not null is ours until a rule takes it.
        let step = allocated(unsafe { c::nftnl_expr_alloc(self.kind.as_ptr()) });
        for (attribute, value) in &self.attributes {
            let attribute = number(*attribute);
            match value {
                // SAFETY: the expression is alive; libnftnl copies what it is given before it returns.
                Value::Byte(byte) => unsafe { c::nftnl_expr_set_u8(step.as_ptr(), attribute, *byte) },
                // SAFETY: as above.
                Value::Number(word) => unsafe { c::nftnl_expr_set_u32(step.as_ptr(), attribute, *word) },
                Value::Bytes(bytes) => {
                    // SAFETY: as above, and so many bytes are there.
                    unsafe {
                        c::nftnl_expr_set(step.as_ptr(), attribute, bytes.as_ptr().cast(), length(bytes));
                    }
                }
                Value::Name(name) => {
                    // SAFETY: as above, and it is a C string.
                    unsafe { c::nftnl_expr_set_str(step.as_ptr(), attribute, name.as_ptr()) };
                }
            }
        }
        step
    }
}

/// A named set or map, or some of its elements, on its way to the kernel.
pub(super) struct RawSet {
    set: NonNull<c::nftnl_set>,
    family: u16,
}

impl RawSet {
    pub(super) fn new(family: u16, table: &CStr, name: &CStr) -> Self {
        // SAFETY: no preconditions; it is ours if it is not null.
        let set = allocated(unsafe { c::nftnl_set_alloc() });
        let this = Self { set, family };
        this.number(c::NFTNL_SET_FAMILY, u32::from(family));
        // SAFETY: the set is alive, the names are C strings and are copied.
        unsafe {
            c::nftnl_set_set_str(set.as_ptr(), number(c::NFTNL_SET_TABLE), table.as_ptr());
            c::nftnl_set_set_str(set.as_ptr(), number(c::NFTNL_SET_NAME), name.as_ptr());
        }
        this
    }

    fn number(&self, attribute: u32, value: u32) {
        // SAFETY: the set is alive.
        unsafe { c::nftnl_set_set_u32(self.set.as_ptr(), number(attribute), value) };
    }

    /// What its keys and, for a map, its data are: the number by which `nft` shows them, and their bytes.
    pub(super) fn describe(&self, id: u32, key: (u32, u32), data: Option<(u32, u32)>) {
        self.number(c::NFTNL_SET_ID, id);
        self.number(c::NFTNL_SET_KEY_TYPE, key.0);
        self.number(c::NFTNL_SET_KEY_LEN, key.1);
        if let Some(data) = data {
            self.number(c::NFTNL_SET_FLAGS, libc::NFT_SET_MAP.unsigned_abs());
            self.number(c::NFTNL_SET_DATA_TYPE, data.0);
            self.number(c::NFTNL_SET_DATA_LEN, data.1);
        }
    }

    pub(super) fn add(&self, key: &[u8], data: &[u8]) {
        // SAFETY: no preconditions; it is ours if it is not null.
        let element = allocated(unsafe { c::nftnl_set_elem_alloc() });
        let put = |attribute, bytes: &[u8]| {
            // SAFETY: the element is alive, so many bytes are there, and they are copied.
            unsafe {
                c::nftnl_set_elem_set(
                    element.as_ptr(),
                    number(attribute),
                    bytes.as_ptr().cast(),
                    length(bytes),
                )
            };
        };
        put(c::NFTNL_SET_ELEM_KEY, key);
        if !data.is_empty() {
            put(c::NFTNL_SET_ELEM_DATA, data);
        }
        // SAFETY: both are alive; the set owns the element from here on.
        unsafe { c::nftnl_set_elem_add(self.set.as_ptr(), element.as_ptr()) };
    }

    /// Begins a message about this set in a buffer that is large enough for any.
    ///
    /// # Safety
    /// `buffer` holds `nftnl::nft_nlmsg_maxsize()` bytes.
    unsafe fn header(&self, buffer: *mut c_void, seq: u32, message: i32, flags: i32) -> *mut libc::nlmsghdr {
        let message = u16::try_from(message).unwrap_or_default();
        let flags = u16::try_from(flags | libc::NLM_F_ACK).unwrap_or_default();
        // SAFETY: by this function's own precondition.
        unsafe { c::nftnl_nlmsg_build_hdr(buffer.cast::<c_char>(), message, self.family, flags, seq) }
    }
}

impl Drop for RawSet {
    fn drop(&mut self) {
        // SAFETY: it was allocated by libnftnl and nobody else has it; its elements go with it.
        unsafe { c::nftnl_set_free(self.set.as_ptr()) };
    }
}

/// The message that makes a set.
pub(super) struct SetMessage<'a>(pub(super) &'a RawSet);

// SAFETY: a set's description is some hundred bytes: a name of at most 31 bytes and a dozen numbers.
unsafe impl NlMsg for SetMessage<'_> {
    unsafe fn write(&self, buffer: *mut c_void, seq: u32, message: MsgType) {
        let (message, flags) = match message {
            MsgType::Add => (libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE),
            MsgType::Del => (libc::NFT_MSG_DELSET, 0),
        };
        // SAFETY: by the trait's precondition the buffer is large enough; the set is alive.
        unsafe {
            let header = self.0.header(buffer, seq, message, flags);
            c::nftnl_set_nlmsg_build_payload(header, self.0.set.as_ptr());
        }
    }
}

/// The message that adds or removes elements.
pub(super) struct ElementsMessage<'a>(pub(super) &'a RawSet);

// SAFETY: whoever fills the set keeps to `super::ELEMENTS_PER_MESSAGE` elements of at most 64 bytes with their
// attributes, which is less than the 64 KiB that the largest message has.
unsafe impl NlMsg for ElementsMessage<'_> {
    unsafe fn write(&self, buffer: *mut c_void, seq: u32, message: MsgType) {
        let (message, flags) = match message {
            MsgType::Add => (libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE),
            MsgType::Del => (libc::NFT_MSG_DELSETELEM, 0),
        };
        // SAFETY: by the trait's precondition the buffer is large enough; the set is alive.
        unsafe {
            let header = self.0.header(buffer, seq, message, flags);
            c::nftnl_set_elems_nlmsg_build_payload(header, self.0.set.as_ptr());
        }
    }
}

/// The descriptor of a socket, which the crate mnl lends as a number alone.
pub(super) fn descriptor(socket: &mnl::Socket) -> BorrowedFd<'_> {
    // SAFETY: the socket is open for as long as it is borrowed.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}
