//! Name-value lists, the form in which ZFS takes arguments and answers.

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_int},
    io, ptr,
};

use super::library::{Functions, RawList, RawPair, c_string, result};

/// Names and values.
pub(in super::super) type Map = BTreeMap<String, Value>;

/// A value in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Value {
    /// Nothing but its name.
    Flag,
    /// Yes or no.
    Bool(bool),
    /// As programs in the kernel count.
    Signed(i64),
    /// As properties are given.
    Number(u64),
    /// Text; what is not UTF-8 in it is replaced.
    Text(String),
    /// A list in the list.
    List(Map),
    /// Of a type that is not used here; its number.
    Other(i32),
}

/// `NV_UNIQUE_NAME`.
const UNIQUE_NAMES: u32 = 1;

// Of enum data_type_t.
const BOOLEAN: c_int = 1;
const INT64: c_int = 7;
const UINT64: c_int = 8;
const STRING: c_int = 9;
const NVLIST: c_int = 19;
const BOOLEAN_VALUE: c_int = 21;

/// A list of the library's, freed when dropped.
#[derive(Debug)]
pub(super) struct List {
    functions: &'static Functions,
    /// Valid, and nobody else's.
    raw: *mut RawList,
}

impl List {
    /// Takes over a list that the library handed out; `None` for null.
    ///
    /// # Safety
    /// It is null, or a valid list that nobody else frees or uses.
    pub(super) unsafe fn adopt(functions: &'static Functions, raw: *mut RawList) -> Option<Self> {
        (!raw.is_null()).then_some(Self { functions, raw })
    }

    /// The pointer, good while this list lives.
    pub(super) fn raw(&self) -> *mut RawList {
        self.raw
    }

    /// Makes a list.
    pub(super) fn write(functions: &'static Functions, map: &Map) -> io::Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: a place for the new list.
        result(unsafe { (functions.nvlist_alloc)(&raw mut raw, UNIQUE_NAMES, 0) })?;
        // SAFETY: just made, for us.
        let Some(list) = (unsafe { Self::adopt(functions, raw) }) else {
            return Err(io::Error::from(io::ErrorKind::OutOfMemory));
        };
        for (name, value) in map {
            list.add(name, value)?;
        }
        Ok(list)
    }

    fn add(&self, name: &str, value: &Value) -> io::Result<()> {
        let Self { functions, raw } = *self;
        let name = c_string(name)?;
        let error = match value {
            // SAFETY: this list is valid, the name a C string; both live through the call.
            Value::Flag => unsafe { (functions.nvlist_add_boolean)(raw, name.as_ptr()) },
            // SAFETY: as above.
            Value::Bool(value) => unsafe {
                (functions.nvlist_add_boolean_value)(raw, name.as_ptr(), c_int::from(*value))
            },
            // SAFETY: as above.
            Value::Signed(value) => unsafe { (functions.nvlist_add_int64)(raw, name.as_ptr(), *value) },
            // SAFETY: as above.
            Value::Number(value) => unsafe { (functions.nvlist_add_uint64)(raw, name.as_ptr(), *value) },
            Value::Text(value) => {
                let value = c_string(value)?;
                // SAFETY: as above; the text is copied.
                unsafe { (functions.nvlist_add_string)(raw, name.as_ptr(), value.as_ptr()) }
            }
            Value::List(map) => {
                let inner = Self::write(functions, map)?;
                // SAFETY: as above; the inner list is valid, and copied.
                unsafe { (functions.nvlist_add_nvlist)(raw, name.as_ptr(), inner.raw) }
            }
            Value::Other(_) => return Err(io::Error::from(io::ErrorKind::InvalidInput)),
        };
        result(error)
    }

    /// Reads everything.
    pub(super) fn read(&self) -> Map {
        // SAFETY: this list is valid and not changed meanwhile.
        unsafe { read(self.functions, self.raw) }
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: valid, ours, and not used afterwards.
        unsafe { (self.functions.nvlist_free)(self.raw) }
    }
}

/// Reads a list.
///
/// # Safety
/// It is valid and nobody changes it meanwhile.
unsafe fn read(functions: &Functions, list: *mut RawList) -> Map {
    let mut map = Map::new();
    let mut pair = ptr::null_mut();
    loop {
        // SAFETY: the list is valid, the pair null or its last one.
        pair = unsafe { (functions.nvlist_next_nvpair)(list, pair) };
        if pair.is_null() {
            return map;
        }
        // SAFETY: a pair of the list has a name, a C string that lives as long as the list.
        let name = unsafe { CStr::from_ptr((functions.nvpair_name)(pair)) };
        // SAFETY: a pair of a valid list that nobody changes.
        let value = unsafe { value(functions, pair) };
        map.insert(name.to_string_lossy().into_owned(), value);
    }
}

/// Reads a pair's value.
///
/// # Safety
/// The pair is of a valid list that nobody changes meanwhile.
unsafe fn value(functions: &Functions, pair: *mut RawPair) -> Value {
    // SAFETY: a valid pair.
    let kind = unsafe { (functions.nvpair_type)(pair) };
    // Each of these calls checks the pair's type again, and writes only if it is the right one.
    let read = match kind {
        BOOLEAN => Some(Value::Flag),
        BOOLEAN_VALUE => {
            let mut value: c_int = 0;
            // SAFETY: a valid pair, and a place for a boolean_t, which is an enum and as large as an int.
            let error = unsafe { (functions.nvpair_value_boolean_value)(pair, &raw mut value) };
            (error == 0).then_some(Value::Bool(value != 0))
        }
        INT64 => {
            let mut value = 0;
            // SAFETY: a valid pair, and a place for an int64_t.
            let error = unsafe { (functions.nvpair_value_int64)(pair, &raw mut value) };
            (error == 0).then_some(Value::Signed(value))
        }
        UINT64 => {
            let mut value = 0;
            // SAFETY: a valid pair, and a place for a uint64_t.
            let error = unsafe { (functions.nvpair_value_uint64)(pair, &raw mut value) };
            (error == 0).then_some(Value::Number(value))
        }
        STRING => {
            let mut text = ptr::null();
            // SAFETY: a valid pair, and a place for a pointer into it.
            let error = unsafe { (functions.nvpair_value_string)(pair, &raw mut text) };
            (error == 0 && !text.is_null()).then(|| {
                // SAFETY: a C string that lives as long as the list, and is copied.
                Value::Text(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
            })
        }
        NVLIST => {
            let mut inner = ptr::null_mut();
            // SAFETY: a valid pair, and a place for a pointer to the list in it.
            let error = unsafe { (functions.nvpair_value_nvlist)(pair, &raw mut inner) };
            // SAFETY: the inner list is part of the outer one, and as valid.
            (error == 0 && !inner.is_null()).then(|| Value::List(unsafe { read(functions, inner) }))
        }
        _ => None,
    };
    read.unwrap_or(Value::Other(kind))
}
