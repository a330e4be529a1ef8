//! libpcap's compiler, loaded when a filter is asked for: no build and no run without a filter needs it.

#![allow(unsafe_code)] // a C library

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    ptr::{self, NonNull},
    sync::{Mutex, OnceLock, PoisonError},
};

use super::program::Instruction;

// The library's names: Debian's and its derivatives', and everybody else's.
const NAMES: [&CStr; 2] = [c"libpcap.so.0.8", c"libpcap.so.1"];
// PCAP_NETMASK_UNKNOWN.
const NO_NETMASK: u32 = u32::MAX;
// PCAP_ERRBUF_SIZE.
const ERROR: usize = 256;

#[repr(C)]
struct Code {
    length: c_uint,
    instructions: *mut Instruction,
}

// A handle of libpcap's.
type Handle = NonNull<c_void>;

struct Library {
    open_dead: unsafe extern "C" fn(c_int, c_int) -> *mut c_void,
    create: unsafe extern "C" fn(*const c_char, *mut c_char) -> *mut c_void,
    set_snaplen: unsafe extern "C" fn(*mut c_void, c_int) -> c_int,
    set_buffer_size: unsafe extern "C" fn(*mut c_void, c_int) -> c_int,
    activate: unsafe extern "C" fn(*mut c_void) -> c_int,
    compile: unsafe extern "C" fn(*mut c_void, *mut Code, *const c_char, c_int, u32) -> c_int,
    error: unsafe extern "C" fn(*mut c_void) -> *mut c_char,
    free: unsafe extern "C" fn(*mut Code),
    close: unsafe extern "C" fn(*mut c_void),
}

/// What an expression is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target<'a> {
    /// Frames of a link type, as files have them.
    Link(c_int),
    /// Frames as the kernel shows them on an interface: VLAN tags are beside the frame.
    Interface(&'a str),
}

/// Why there is no program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// There is no libpcap.
    Missing(String),
    /// It says this.
    Refused(String),
}

fn library() -> Result<&'static Library, Failure> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    let loaded = LIBRARY.get_or_init(Library::load);
    loaded.as_ref().map_err(|problem| Failure::Missing(problem.clone()))
}

// What the loader said last.
fn loader_error() -> String {
    // SAFETY: dlerror gives a string that ends with NUL and stays until this thread's next call of the loader, or null.
    let text = unsafe { libc::dlerror() };
    match text.is_null() {
        true => "the loader does not say why".to_owned(),
        // SAFETY: it was just checked, and nothing calls the loader before it is copied.
        false => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
    }
}

impl Library {
    fn load() -> Result<Self, String> {
        let mut problem = None;
        for name in NAMES {
            // SAFETY: the name ends with NUL. Loading runs the library's constructors; libpcap has none that touch this
            // process. It is never unloaded, so its functions stay.
            let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
            if let Some(library) = NonNull::new(library) {
                return Self::of(library);
            }
            problem.get_or_insert_with(loader_error);
        }
        Err(problem.unwrap_or_default())
    }

    #[allow(clippy::missing_transmute_annotations)] // each field says its type
    fn of(library: NonNull<c_void>) -> Result<Self, String> {
        let find = |name: &CStr| {
            // SAFETY: the handle is the loader's, the name ends with NUL.
            let symbol = unsafe { libc::dlsym(library.as_ptr(), name.as_ptr()) };
            NonNull::new(symbol).ok_or_else(loader_error)
        };
        // SAFETY: each symbol is the function of this name in libpcap's interface (pcap(3PCAP)), whose type is the field's,
        // and which has not changed since version 1.0.
        unsafe {
            Ok(Self {
                open_dead: std::mem::transmute::<NonNull<c_void>, _>(find(c"pcap_open_dead")?),
                create: std::mem::transmute::<NonNull<c_void>, _>(find(c"pcap_create")?),
                set_snaplen: std::mem::transmute::<NonNull<c_void>, _>(find(c"pcap_set_snaplen")?),
                set_buffer_size: std::mem::transmute::<NonNull<c_void>, _>(find(c"pcap_set_buffer_size")?),
                activate: std::mem::transmute::<NonNull<c_void>, _>(find(c"pcap_activate")?),
                compile: std::mem::transmute::<NonNull<c_void>, _>(find(c"pcap_compile")?),
                error: std::mem::transmute::<NonNull<c_void>, _>(find(c"pcap_geterr")?),
                free: std::mem::transmute::<NonNull<c_void>, _>(find(c"pcap_freecode")?),
                close: std::mem::transmute::<NonNull<c_void>, _>(find(c"pcap_close")?),
            })
        }
    }

    fn open(&self, target: Target<'_>, snaplen: c_int) -> Result<Handle, Failure> {
        let refused = |text: &str| Failure::Refused(text.to_owned());
        let name = match target {
            Target::Link(link) => {
                // SAFETY: it takes numbers and gives a handle or null.
                let handle = unsafe { (self.open_dead)(link, snaplen) };
                return NonNull::new(handle).ok_or_else(|| refused("there is no memory"));
            }
            Target::Interface(name) => CString::new(name).map_err(|_| refused("an interface's name holds a zero"))?,
        };
        let mut problem: [c_char; ERROR] = [0; ERROR];
        // SAFETY: the name ends with NUL; the buffer for an error is as long as the interface says.
        let handle = unsafe { (self.create)(name.as_ptr(), problem.as_mut_ptr()) };
        let Some(handle) = NonNull::new(handle) else {
            // SAFETY: libpcap wrote a string that ends with NUL into the buffer.
            let text = unsafe { CStr::from_ptr(problem.as_ptr()) };
            return Err(Failure::Refused(text.to_string_lossy().into_owned()));
        };
        // SAFETY: the handle was just made and not activated; its ring is never read from and may be as small as can be.
        let activated = unsafe {
            (self.set_snaplen)(handle.as_ptr(), snaplen);
            (self.set_buffer_size)(handle.as_ptr(), 1 << 18);
            (self.activate)(handle.as_ptr())
        };
        // Above zero are warnings.
        match activated {
            0.. => Ok(handle),
            _ => {
                let text = self.problem(handle);
                // SAFETY: the handle is not used any more.
                unsafe { (self.close)(handle.as_ptr()) };
                Err(Failure::Refused(text))
            }
        }
    }

    fn problem(&self, handle: Handle) -> String {
        // SAFETY: the handle is open; libpcap gives a string that ends with NUL and lives as long as the handle.
        let text = unsafe { CStr::from_ptr((self.error)(handle.as_ptr())) };
        text.to_string_lossy().into_owned()
    }
}

/// Compiles an expression of pcap-filter(7). A packet that is wanted is taken with `snaplen` octets.
pub(super) fn compile(expression: &str, target: Target<'_>, snaplen: u32) -> Result<Vec<Instruction>, Failure> {
    // Older releases keep their parser's state for the whole process.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let library = library()?;
    let text = CString::new(expression).map_err(|_| Failure::Refused("it holds a zero".to_owned()))?;
    let snaplen = c_int::try_from(snaplen).unwrap_or(c_int::MAX);
    let handle = library.open(target, snaplen)?;
    let mut code = Code {
        length: 0,
        instructions: ptr::null_mut(),
    };
    // SAFETY: the handle is open, the expression ends with NUL, and the program is libpcap's to fill in.
    let compiled = unsafe { (library.compile)(handle.as_ptr(), &raw mut code, text.as_ptr(), 1, NO_NETMASK) };
    let result = match (compiled, NonNull::new(code.instructions)) {
        (0, Some(instructions)) => {
            // SAFETY: libpcap made an array of so many instructions, which it keeps until it is told to free them.
            let all = unsafe { std::slice::from_raw_parts(instructions.as_ptr(), code.length as usize) }.to_vec();
            // SAFETY: the program was made by libpcap and was copied.
            unsafe { (library.free)(&raw mut code) };
            Ok(all)
        }
        _ => Err(Failure::Refused(library.problem(handle))),
    };
    // SAFETY: the handle is open and not used any more.
    unsafe { (library.close)(handle.as_ptr()) };
    result
}
