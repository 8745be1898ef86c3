//! Fork, the way to `exec` in the child, and the kernel calls that no safe crate offers.

use std::{
    convert::Infallible,
    ffi::{CString, c_char, c_int, c_long, c_uint, c_ulong},
    fmt, io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
    ptr,
};

use tokio::io::{Interest, unix::AsyncFd};

/// Highest number of a signal, plus one (`_NSIG` of asm/signal.h).
const SIGNALS: c_int = 65;

/// Capabilities are numbered from 0; no kernel has as many as this. The kernel refuses those it does not know.
const CAPABILITIES: c_ulong = 64;

/// `PR_CAP_AMBIENT_CLEAR_ALL` of linux/prctl.h, in the width that prctl reads its arguments in.
const AMBIENT_CLEAR_ALL: c_ulong = 4;
const YES: c_ulong = 1;
const NONE: c_ulong = 0;

/// What the child does between fork and exec, made in the parent so that the child neither allocates nor locks.
pub(super) struct ChildPlan<'a> {
    /// The program (O_PATH).
    pub(super) executable: RawFd,
    /// Its arguments, its name first.
    pub(super) words: &'a [CString],
    /// Its environment.
    pub(super) environment: &'a [CString],
    /// Where its group is entered (`cgroup.procs`).
    pub(super) cgroup: Option<RawFd>,
    /// What becomes descriptor 0, 1, 2 and so on. All of them, and every other descriptor in the plan, are numbers
    /// above these.
    pub(super) sources: &'a [RawFd],
    /// Resource limits.
    pub(super) limits: &'a [Limit],
    /// User and group id to change to; the process is root's then.
    pub(super) uid: Option<u32>,
    /// Landlock's rules.
    pub(super) ruleset: Option<RawFd>,
    /// The system call filter.
    pub(super) filter: Option<&'a Filter>,
    /// Whether it lets other processes of its user read its memory, where the kernel (Yama) asks it.
    pub(super) any_reader: bool,
    /// Content for /proc/self/oom_score_adj.
    pub(super) oom_score: &'a [u8],
    /// Where a failure is reported.
    pub(super) report: RawFd,
}

/// A resource limit, soft and hard.
pub(super) struct Limit {
    resource: libc::__rlimit_resource_t,
    value: libc::rlimit,
}

/// What is limited.
pub(super) enum Resource {
    Core,
    OpenFiles,
    FileBytes,
    Threads,
}

/// A limit of that many, or of what this process itself may have if that is less.
pub(super) fn limit(resource: Resource, most: u64) -> Limit {
    let (own, resource) = match resource {
        Resource::Core => (rustix::process::Resource::Core, libc::RLIMIT_CORE),
        Resource::OpenFiles => (rustix::process::Resource::Nofile, libc::RLIMIT_NOFILE),
        Resource::FileBytes => (rustix::process::Resource::Fsize, libc::RLIMIT_FSIZE),
        Resource::Threads => (rustix::process::Resource::Nproc, libc::RLIMIT_NPROC),
    };
    let most = rustix::process::getrlimit(own).maximum.map_or(most, |own| own.min(most));
    Limit { resource, value: libc::rlimit { rlim_cur: most, rlim_max: most } }
}

/// A system call filter in the kernel's form.
pub(super) struct Filter {
    program: Vec<libc::sock_filter>,
}

impl Filter {
    /// At most 4,096 instructions (`BPF_MAXINSNS`); more are refused by the kernel.
    pub(super) fn new(program: Vec<libc::sock_filter>) -> Self {
        Self { program }
    }
}

macro_rules! steps {
    ($($name:ident $number:literal $text:literal,)*) => {
        /// A step of the child towards its program.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum Step {
            $(#[doc = $text] $name = $number,)*
        }

        impl Step {
            fn from_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }

        impl fmt::Display for Step {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$name => $text,)* })
            }
        }
    };
}

steps! {
    Session 1 "start a session",
    Folder 2 "change to /",
    Limits 3 "set its resource limits",
    Descriptors 4 "take its descriptors",
    CloseOthers 5 "close all other descriptors",
    NoNewPrivileges 6 "give up gaining privileges",
    BoundingSet 7 "empty its capability bounding set",
    AmbientSet 8 "empty its ambient capabilities",
    Groups 9 "leave its groups",
    GroupId 10 "change its group id",
    UserId 11 "change its user id",
    Capabilities 12 "give up its capabilities",
    Landlock 13 "confine itself to its files (Landlock)",
    Filter 14 "install its system call filter (seccomp)",
    Execute 15 "execute it",
    Group 16 "enter its group (cgroup)",
}

/// What a child that did not reach its program says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) step: Step,
    pub(super) errno: i32,
}

impl Report {
    fn bytes(self) -> [u8; 5] {
        let [a, b, c, d] = self.errno.to_ne_bytes();
        [self.step as u8, a, b, c, d]
    }

    /// `None` for nothing: the program runs, and with it the pipe was closed.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let &[step, a, b, c, d] = bytes else { return None };
        Some(Self { step: Step::from_number(step)?, errno: i32::from_ne_bytes([a, b, c, d]) })
    }
}

/// Forks; the child follows the plan and becomes the program. Returns the child's number and a descriptor for it.
pub(super) fn fork_and_exec(plan: &ChildPlan<'_>) -> io::Result<(u32, OwnedFd)> {
    let words = pointers(plan.words);
    let environment = pointers(plan.environment);
    // SAFETY: `run_child` makes plain system calls on what is there already: it neither allocates nor locks nor unwinds.
    unsafe { fork(0, || run_child(plan, &words, &environment)) }
}

/// Forks, with further flags of clone(2) that share no memory; the child runs `child`. Returns its number and a
/// descriptor for it.
///
/// # Safety
/// `child` runs in the state that other threads may have left behind: it must neither allocate nor lock nor unwind.
pub(super) unsafe fn fork(flags: c_int, child: impl FnOnce() -> Infallible) -> io::Result<(u32, OwnedFd)> {
    // SAFETY: sigset_t is plain bits, for which all zero is valid; sigfillset and pthread_sigmask get valid pointers
    // to locals.
    let before = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        // No handler of ours may run in the child: it could write to descriptors that both share.
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        before
    };
    let mut pidfd: c_int = -1;
    let flags = c_long::from(flags | libc::CLONE_PIDFD | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and with a null stack this is fork(): the child has a copy of this thread's memory and
    // goes on on its copy of this stack. With CLONE_PIDFD the kernel writes the descriptor to the third argument,
    // which points to a local. The child calls only `child`, of which the caller promises that it may run here, and
    // which never returns.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            flags,
            ptr::null::<u8>(),
            &raw mut pidfd,
            ptr::null::<u8>(),
            0 as c_ulong,
        )
    };
    let failure = io::Error::last_os_error();
    if pid == 0 {
        child();
    }
    // SAFETY: `before` was filled in above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut()) };
    let Ok(pid) = u32::try_from(pid) else { return Err(failure) };
    // SAFETY: the kernel has just opened this descriptor for us; nobody else knows of it.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

fn pointers(words: &[CString]) -> Vec<*const c_char> {
    words.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect()
}

/// In the child: follows the plan, reports the step that fails, and ends.
fn run_child(plan: &ChildPlan<'_>, words: &[*const c_char], environment: &[*const c_char]) -> ! {
    let step = follow(plan, words, environment);
    // SAFETY: __errno_location returns this thread's own errno. write gets a local buffer and its length. _exit does
    // not run handlers that were meant for the parent.
    unsafe {
        let report = Report { step, errno: *libc::__errno_location() }.bytes();
        libc::write(plan.report, report.as_ptr().cast(), report.len());
        libc::_exit(127)
    }
}

/// Returns the step that failed, with errno set; does not return if none did.
///
/// Every call in here is a plain system call (also those through libc's wrappers, but for the `syscall`s, whose
/// wrappers would involve other threads), and so allowed between fork and exec.
fn follow(plan: &ChildPlan<'_>, words: &[*const c_char], environment: &[*const c_char]) -> Step {
    // SAFETY: no pointers.
    if unsafe { libc::setsid() } < 0 {
        return Step::Session;
    }
    // SAFETY: no pointers.
    unsafe { libc::umask(0o077) };
    // SAFETY: a string with its NUL.
    if unsafe { libc::chdir(c"/".as_ptr()) } < 0 {
        return Step::Folder;
    }
    if let Some(entrance) = plan.cgroup {
        // SAFETY: a buffer with its length. 0 stands for the process that writes it.
        if unsafe { libc::write(entrance, c"0".as_ptr().cast(), 1) } < 0 {
            return Step::Group;
        }
    }
    write_oom_score(plan.oom_score);
    use_small_pages();
    if plan.any_reader {
        let_any_process_of_this_user_read();
    }
    for limit in plan.limits {
        // SAFETY: the pointer is to a limit that outlives the call.
        if unsafe { libc::setrlimit(limit.resource, &raw const limit.value) } < 0 {
            return Step::Limits;
        }
    }
    if let Err(step) = arrange_descriptors(plan.sources) {
        return step;
    }
    if let Err(step) = drop_privileges(plan.uid) {
        return step;
    }
    if let Some(ruleset) = plan.ruleset {
        // SAFETY: no pointers.
        if unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0 as c_ulong) } < 0 {
            return Step::Landlock;
        }
    }
    restore_signals();
    if let Some(filter) = plan.filter {
        let Ok(len) = u16::try_from(filter.program.len()) else { return Step::Filter };
        let program = libc::sock_fprog { len, filter: filter.program.as_ptr().cast_mut() };
        // SAFETY: the pointer is to a local that points to `len` instructions, which the kernel copies.
        if unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0 as c_ulong, &raw const program)
        } < 0
        {
            return Step::Filter;
        }
    }
    // SAFETY: an empty string with its NUL, and two arrays of pointers to strings that end with a null pointer.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            plan.executable,
            c"".as_ptr(),
            words.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Step::Execute
}

/// Best effort: without it the kernel still chooses by size, which a machine leads.
fn write_oom_score(score: &[u8]) {
    // SAFETY: a string with its NUL; then a buffer with its length.
    unsafe {
        let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file >= 0 {
            libc::write(file, score.as_ptr().cast(), score.len());
            libc::close(file);
        }
    }
}

/// Best effort: a kernel without Yama refuses it (EINVAL) and has nothing to be asked.
///
/// Yama keeps what is said here with the process until that ends, whatever program it executes: nothing in Yama looks
/// at exec. What it costs: any process of the same user may read and trace this one, as without Yama. Such a process
/// has the state folder, and with it the disks, memory images and sockets of the machine, anyway. The user's other
/// machines are kept away by Landlock, which lets no confined process trace one outside its own domain, and by their
/// system call filters.
fn let_any_process_of_this_user_read() {
    // SAFETY: prctl with numbers only.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, NONE, NONE, NONE) };
}

/// Keeps the kernel from giving the program memory in pieces of 2 MiB for its first byte of each: QEMU's emulator asks for
/// that wherever it keeps translated code, and an idle machine would take up ten megabytes that it does not use. Kept
/// across exec. Not vital, so a kernel that cannot is no failure.
fn use_small_pages() {
    // SAFETY: prctl with numbers only.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1 as libc::c_ulong, NONE, NONE, NONE) };
}

fn arrange_descriptors(sources: &[RawFd]) -> Result<(), Step> {
    let mut target: RawFd = 0;
    for &source in sources {
        // SAFETY: no pointers. What had the target's number in the child is closed; no descriptor of the plan has it.
        if unsafe { libc::dup2(source, target) } < 0 {
            return Err(Step::Descriptors);
        }
        target = target.wrapping_add(1);
    }
    let first = target.cast_unsigned();
    // SAFETY: no pointers. Only marks the descriptors: the plan's are still needed until exec.
    if unsafe { libc::syscall(libc::SYS_close_range, first, c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) } < 0 {
        return Err(Step::CloseOthers);
    }
    Ok(())
}

fn drop_privileges(uid: Option<u32>) -> Result<(), Step> {
    // SAFETY: prctl with numbers only.
    unsafe {
        if let Some(uid) = uid {
            for capability in 0..CAPABILITIES {
                if libc::prctl(libc::PR_CAPBSET_DROP, capability, NONE, NONE, NONE) < 0
                    && *libc::__errno_location() != libc::EINVAL
                {
                    return Err(Step::BoundingSet);
                }
            }
            // The raw calls: libc's wrappers would try to change the ids of threads that are not in this process.
            if libc::syscall(libc::SYS_setgroups, 0 as c_ulong, ptr::null::<libc::gid_t>()) < 0 {
                return Err(Step::Groups);
            }
            if libc::syscall(libc::SYS_setresgid, uid, uid, uid) < 0 {
                return Err(Step::GroupId);
            }
            if libc::syscall(libc::SYS_setresuid, uid, uid, uid) < 0 {
                return Err(Step::UserId);
            }
        }
        if libc::prctl(libc::PR_CAP_AMBIENT, AMBIENT_CLEAR_ALL, NONE, NONE, NONE) < 0 {
            return Err(Step::AmbientSet);
        }
        if !empty_capability_sets() {
            return Err(Step::Capabilities);
        }
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, YES, NONE, NONE, NONE) < 0 {
            return Err(Step::NoNewPrivileges);
        }
    }
    Ok(())
}

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn empty_capability_sets() -> bool {
    let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let none = [CapabilityData { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: version 3 of the interface takes this header and an array of two of these, see capset(2).
    unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) == 0 }
}

/// Puts every signal back to its default and lets all of them through: Rust programs ignore SIGPIPE, and what is
/// ignored or blocked stays so across exec.
fn restore_signals() {
    // The kernel's own form: libc's wrapper refuses the signals that it keeps for itself. All zero is SIG_DFL, no
    // flags, no restorer, an empty mask.
    let default = [0_u64; 4];
    let none = 0_u64;
    let set_bytes: c_ulong = 8;
    // SAFETY: pointers to a `struct kernel_sigaction` and to a set of the given size. Numbers that cannot be changed
    // are refused without effect.
    unsafe {
        for signal in 1..SIGNALS {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const default,
                ptr::null_mut::<u8>(),
                set_bytes,
            );
        }
        let how = libc::SIG_SETMASK;
        libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const none, ptr::null_mut::<u8>(), set_bytes);
    }
}

/// `LANDLOCK_CREATE_RULESET_VERSION` of linux/landlock.h.
const LANDLOCK_VERSION_QUERY: c_ulong = 1;

/// The version of Landlock that the kernel has; 0 for none.
pub(super) fn landlock_version() -> u32 {
    // SAFETY: this form takes no attributes and only answers a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ptr::null::<u8>(),
            0 as c_ulong,
            LANDLOCK_VERSION_QUERY,
        )
    };
    u32::try_from(version).unwrap_or(0)
}

/// Registers a descriptor with the runtime, for becoming readable.
pub(super) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open and names the same file until it is dropped, which the AsyncFd does last.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}
