//! libzfs_core and libnvpair, loaded at run time.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    io, ptr,
    sync::OnceLock,
};

use super::nvlist::{List, Map};

/// The names have been the same since OpenZFS 0.8, and so have the functions used here.
const NVPAIR: &CStr = c"libnvpair.so.3";
const CORE: &CStr = c"libzfs_core.so.3";

/// `LZC_DATSET_TYPE_ZFS` and `LZC_DATSET_TYPE_ZVOL`.
const FILE_SYSTEM: c_int = 2;
const VOLUME: c_int = 3;

/// Instructions and bytes that one program in the kernel may use: the kernel's own limits for both are ten times this.
const PROGRAM_INSTRUCTIONS: u64 = 10_000_000;
const PROGRAM_BYTES: u64 = 64 << 20;

/// An `nvlist_t`.
pub(super) type RawList = c_void;
/// An `nvpair_t`.
pub(super) type RawPair = c_void;

/// Why the libraries cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum LoadError {
    /// This one is not there, or lacks a function; the loader's own words.
    Library { name: String, reason: String },
    /// /dev/zfs could not be opened; an error number.
    Device(i32),
}

macro_rules! functions {
    ($($library:ident { $($name:ident: fn($($argument:ty),* $(,)?) $(-> $result:ty)?;)* })*) => {
        /// The functions in use, each with the signature that the libraries' headers give it.
        #[derive(Debug)]
        pub(super) struct Functions {
            $($(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*)*
        }

        impl Functions {
            fn load() -> Result<Self, LoadError> {
                Ok(Self {
                    $($($name: {
                        let symbol = symbol($library, concat!(stringify!($name), "\0"))?;
                        // SAFETY: a pointer that is not null becomes the function that the library's header declares
                        // under this name; soname 3 promises that it is this one. Libraries are never unloaded.
                        unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) $(-> $result)?>(
                                symbol,
                            )
                        }
                    },)*)*
                })
            }
        }
    };
}

functions! {
    NVPAIR {
        nvlist_alloc: fn(*mut *mut RawList, c_uint, c_int) -> c_int;
        nvlist_free: fn(*mut RawList);
        nvlist_add_boolean: fn(*mut RawList, *const c_char) -> c_int;
        nvlist_add_boolean_value: fn(*mut RawList, *const c_char, c_int) -> c_int;
        nvlist_add_int64: fn(*mut RawList, *const c_char, i64) -> c_int;
        nvlist_add_uint64: fn(*mut RawList, *const c_char, u64) -> c_int;
        nvlist_add_string: fn(*mut RawList, *const c_char, *const c_char) -> c_int;
        nvlist_add_nvlist: fn(*mut RawList, *const c_char, *mut RawList) -> c_int;
        nvlist_next_nvpair: fn(*mut RawList, *mut RawPair) -> *mut RawPair;
        nvpair_name: fn(*mut RawPair) -> *const c_char;
        nvpair_type: fn(*mut RawPair) -> c_int;
        nvpair_value_boolean_value: fn(*mut RawPair, *mut c_int) -> c_int;
        nvpair_value_int64: fn(*mut RawPair, *mut i64) -> c_int;
        nvpair_value_uint64: fn(*mut RawPair, *mut u64) -> c_int;
        nvpair_value_string: fn(*mut RawPair, *mut *const c_char) -> c_int;
        nvpair_value_nvlist: fn(*mut RawPair, *mut *mut RawList) -> c_int;
    }
    CORE {
        libzfs_core_init: fn() -> c_int;
        lzc_create: fn(*const c_char, c_int, *mut RawList, *mut u8, c_uint) -> c_int;
        lzc_clone: fn(*const c_char, *const c_char, *mut RawList) -> c_int;
        lzc_snapshot: fn(*mut RawList, *mut RawList, *mut *mut RawList) -> c_int;
        lzc_channel_program: fn(*const c_char, *const c_char, u64, u64, *mut RawList, *mut *mut RawList) -> c_int;
        lzc_channel_program_nosync: fn(*const c_char, *const c_char, u64, u64, *mut RawList, *mut *mut RawList) -> c_int;
    }
}

/// Finds a function of a library, which is loaded if it is not yet.
fn symbol(library: &CStr, name: &'static str) -> Result<*mut c_void, LoadError> {
    let failed = |reason: String| LoadError::Library { name: library.to_string_lossy().into_owned(), reason };
    let name = CStr::from_bytes_with_nul(name.as_bytes()).map_err(|error| failed(error.to_string()))?;
    // SAFETY: the name is a C string; loading these libraries runs no code but their constructors, which only set up
    // their own state. Loading one again only counts it.
    let handle = unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        return Err(failed(loader_error()));
    }
    // SAFETY: the handle is valid and never closed, the name is a C string.
    let symbol = unsafe { libc::dlsym(handle, name.as_ptr()) };
    if symbol.is_null() { Err(failed(loader_error())) } else { Ok(symbol) }
}

/// What the loader last complained about in this thread.
fn loader_error() -> String {
    // SAFETY: takes nothing; what it returns is a C string that stays until this thread's next call, or null.
    let message = unsafe { libc::dlerror() };
    if message.is_null() {
        return "the loader does not say why".to_owned();
    }
    // SAFETY: not null, so a C string, and copied before anything else is called.
    unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
}

/// The libraries, loaded, with /dev/zfs open. Any number of threads may use it at once.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Zfs {
    functions: &'static Functions,
}

static FUNCTIONS: OnceLock<Result<Functions, LoadError>> = OnceLock::new();
static INITIALISED: std::sync::Mutex<bool> = std::sync::Mutex::new(false);

/// A list that goes with a request; an argument that a C string cannot hold is the caller's mistake.
type Outcome<T> = Result<T, io::Error>;

impl Zfs {
    /// Loads the libraries and opens /dev/zfs, which loads the kernel's module where the host is set up so.
    pub(in super::super) fn load() -> Result<Self, LoadError> {
        let functions = FUNCTIONS.get_or_init(Functions::load).as_ref().map_err(Clone::clone)?;
        let mut initialised = INITIALISED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !*initialised {
            // SAFETY: takes nothing; opens /dev/zfs for the process. The lock makes this the only call.
            let error = unsafe { (functions.libzfs_core_init)() };
            if error != 0 {
                return Err(LoadError::Device(error));
            }
            *initialised = true;
        }
        Ok(Self { functions })
    }

    /// Makes an empty file system with these properties.
    pub(in super::super) fn create_file_system(self, name: &str, properties: &Map) -> Outcome<()> {
        self.create(name, FILE_SYSTEM, properties)
    }

    /// Makes an empty volume with these properties, `volsize` among them.
    pub(in super::super) fn create_volume(self, name: &str, properties: &Map) -> Outcome<()> {
        self.create(name, VOLUME, properties)
    }

    fn create(self, name: &str, kind: c_int, properties: &Map) -> Outcome<()> {
        let (name, properties) = (c_string(name)?, self.list(properties)?);
        // SAFETY: a C string and a list that live through the call; there is no key for it to read.
        let error =
            unsafe { (self.functions.lzc_create)(name.as_ptr(), kind, properties.raw(), ptr::null_mut(), 0) };
        result(error)
    }

    /// Makes a dataset that begins as a snapshot.
    pub(in super::super) fn clone_snapshot(self, name: &str, origin: &str, properties: &Map) -> Outcome<()> {
        let (name, origin, properties) = (c_string(name)?, c_string(origin)?, self.list(properties)?);
        // SAFETY: two C strings and a list that live through the call.
        result(unsafe { (self.functions.lzc_clone)(name.as_ptr(), origin.as_ptr(), properties.raw()) })
    }

    /// Takes a snapshot with these user properties.
    pub(in super::super) fn snapshot(self, name: &str, properties: &Map) -> Outcome<()> {
        let snapshots = self.list(&Map::from([(name.to_owned(), super::Value::Flag)]))?;
        let properties = self.list(properties)?;
        let mut errors = ptr::null_mut();
        // SAFETY: two lists that live through the call, and a place for a list of errors.
        let error =
            unsafe { (self.functions.lzc_snapshot)(snapshots.raw(), properties.raw(), &raw mut errors) };
        // SAFETY: the library put null there, or a list that is ours now.
        drop(unsafe { List::adopt(self.functions, errors) });
        result(error)
    }

    /// Runs a program in the kernel and returns what it returned, under `return`, or its complaint, under `error`.
    /// Synchronous ones may change the pool; their changes are on stable storage when this returns.
    pub(in super::super) fn program(
        self,
        pool: &str,
        program: &str,
        synchronous: bool,
        arguments: &Map,
    ) -> Result<Map, (io::Error, Map)> {
        let plain = |error| (error, Map::new());
        let pool = c_string(pool).map_err(plain)?;
        let program = c_string(program).map_err(plain)?;
        let arguments = self.list(arguments).map_err(plain)?;
        let run = match synchronous {
            true => self.functions.lzc_channel_program,
            false => self.functions.lzc_channel_program_nosync,
        };
        let mut answer = ptr::null_mut();
        // SAFETY: two C strings and a list that live through the call, and a place for the answer.
        let error = unsafe {
            run(
                pool.as_ptr(),
                program.as_ptr(),
                PROGRAM_INSTRUCTIONS,
                PROGRAM_BYTES,
                arguments.raw(),
                &raw mut answer,
            )
        };
        // SAFETY: the library put null there, or a list that is ours now.
        let answer = unsafe { List::adopt(self.functions, answer) };
        let answer = answer.map(|list| list.read()).unwrap_or_default();
        match result(error) {
            Ok(()) => Ok(answer),
            Err(error) => Err((error, answer)),
        }
    }

    fn list(self, map: &Map) -> Outcome<List> {
        List::write(self.functions, map)
    }
}

/// A C string of a text without NUL.
pub(super) fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// The libraries return error numbers.
pub(super) fn result(error: c_int) -> io::Result<()> {
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_library_and_missing_function_are_errors_that_name_the_library() {
        let library = symbol(c"libagentiso-nothing.so.3", "lzc_clone\0").unwrap_err();
        let function = symbol(c"libc.so.6", "lzc_no_such_function\0").unwrap_err();
        for (error, named) in [(library, "libagentiso-nothing.so.3"), (function, "libc.so.6")] {
            let LoadError::Library { name, reason } = error else { panic!("{error:?}") };
            assert_eq!(name, named);
            assert!(!reason.is_empty());
        }
        assert!(symbol(c"libc.so.6", "getpid\0").is_ok());
    }

    #[test]
    fn text_with_a_nul_is_refused_before_it_gets_to_the_library() {
        assert!(c_string("tank/a\0b").is_err());
        assert!(result(libc::ENOENT).is_err_and(|error| error.kind() == io::ErrorKind::NotFound));
    }
}
