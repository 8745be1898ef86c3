//! Starts a process the cheapest way Linux has: `clone3` with `CLONE_VFORK | CLONE_VM` (no page table is copied), born
//! inside its cgroup (moving it there later waits for an RCU grace period, milliseconds), with a pidfd.

use std::ffi::{CStr, CString, c_char};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;
use rustix::process::Pid;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the agent runs in x86_64 machines only: its clone3 call is written for x86_64");

/// Everything a new process needs, prepared by the parent: the child must not allocate.
#[derive(Debug)]
pub(crate) struct Plan<'fd> {
    /// Paths to try, in this order, until one can be executed.
    pub(crate) programs: Vec<CString>,
    /// Arguments; the first is the program's name.
    pub(crate) argv: Vec<CString>,
    /// `NAME=value`.
    pub(crate) environment: Vec<CString>,
    /// Folders to try to start in, in this order; it is an error if none can be entered.
    pub(crate) folders: Vec<CString>,
    /// Standard input, output and error.
    pub(crate) stdio: [BorrowedFd<'fd>; 3],
    /// Whether `stdio` is a terminal that becomes the controlling terminal of a new session. Otherwise the process
    /// leads a new process group of the agent's session.
    pub(crate) terminal: bool,
    /// Folder of the cgroup to be born in.
    pub(crate) cgroup: Option<BorrowedFd<'fd>>,
    /// Whether to set the out-of-memory score back to 0.
    pub(crate) reset_oom_score: bool,
    /// Soft and hard limit of open files, if not the agent's own.
    pub(crate) open_files: Option<(u64, u64)>,
}

/// A process that runs the program.
#[derive(Debug)]
pub(crate) struct Spawned {
    /// Also the id of its process group.
    pub(crate) pid: Pid,
    /// Readable once it has ended.
    pub(crate) pidfd: OwnedFd,
}

/// The step that failed. Nothing runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpawnError {
    /// No process could be made.
    Clone(Errno),
    /// None of the folders could be entered.
    Folder(Errno),
    /// Standard streams or terminal could not be set up.
    Streams(Errno),
    /// None of the programs could be executed.
    Execute(Errno),
}

const CHILD_STACK_BYTES: usize = 32 * 1024;
const STEP_FOLDER: i32 = 1;
const STEP_STREAMS: i32 = 2;
const STEP_EXECUTE: i32 = 3;

/// What the child reads, and the one place it writes. Pointers stay valid because the parent does not continue
/// until the child has executed or ended.
struct Errand {
    programs: *const *const c_char,
    argv: *const *const c_char,
    script_argv: *mut *const c_char,
    environment: *const *const c_char,
    folders: *const *const c_char,
    stdio: [RawFd; 3],
    terminal: bool,
    reset_oom_score: bool,
    open_files: Option<libc::rlimit>,
    failed_step: i32,
    errno: i32,
}

#[repr(C, align(8))]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Starts the process and returns once it runs its program.
///
/// The calling thread stands still meanwhile, other threads do not. The child is the calling thread's: it must live
/// as long as someone waits for the child.
///
/// # Errors
/// The step that failed. There is no child then.
pub(crate) fn spawn(plan: &Plan<'_>) -> Result<Spawned, SpawnError> {
    let programs = pointers(&plan.programs);
    let argv = pointers(&plan.argv);
    let environment = pointers(&plan.environment);
    let folders = pointers(&plan.folders);
    // A script without an interpreter line runs as `/bin/sh SCRIPT ARGUMENTS`, as execvp does it.
    let mut script_argv = vec![c"/bin/sh".as_ptr(), ptr::null()];
    script_argv.extend_from_slice(argv.get(1..).unwrap_or_default());
    let mut errand = Errand {
        programs: programs.as_ptr(),
        argv: argv.as_ptr(),
        script_argv: script_argv.as_mut_ptr(),
        environment: environment.as_ptr(),
        folders: folders.as_ptr(),
        stdio: plan.stdio.map(|fd| fd.as_raw_fd()),
        terminal: plan.terminal,
        reset_oom_score: plan.reset_oom_score,
        open_files: plan.open_files.map(|(soft, hard)| libc::rlimit { rlim_cur: soft, rlim_max: hard }),
        failed_step: 0,
        errno: 0,
    };
    let mut stack = Vec::<u128>::with_capacity(CHILD_STACK_BYTES / size_of::<u128>());
    let mut pidfd: RawFd = -1;
    let mut arguments = CloneArguments {
        flags: u64::from((libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD).unsigned_abs()),
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        stack: stack.as_mut_ptr() as u64,
        stack_size: CHILD_STACK_BYTES as u64,
        ..CloneArguments::default()
    };
    if let Some(cgroup) = plan.cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    let result: i64;
    // SAFETY: the kernel reads `arguments` and writes a descriptor to `pidfd`; both outlive the call. The child
    // shares this memory (CLONE_VM) while this thread is suspended (CLONE_VFORK), runs on the fresh stack, 16-byte
    // aligned as the ABI wants it before a call, and never returns from `in_child`, so this frame is never
    // re-entered. `rcx` and `r11` are what the syscall instruction clobbers; all else is preserved in the parent.
    unsafe {
        core::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") &raw const arguments,
            in("rsi") size_of::<CloneArguments>(),
            in("r12") &raw mut errand,
            in("r13") in_child as extern "C" fn(*mut Errand) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    drop(stack);
    if result < 0 {
        let code = i32::try_from(-result).unwrap_or(libc::EIO);
        return Err(SpawnError::Clone(Errno::from_raw_os_error(code)));
    }
    // SAFETY: clone3 succeeded, so the descriptor is new and owned by nobody else.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    if errand.failed_step != 0 {
        let options = rustix::process::WaitIdOptions::EXITED;
        // The child has called _exit; nothing but this collects it.
        let _ = rustix::process::waitid(
            rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd)),
            options,
        );
        let errno = Errno::from_raw_os_error(errand.errno);
        return Err(match errand.failed_step {
            STEP_FOLDER => SpawnError::Folder(errno),
            STEP_STREAMS => SpawnError::Streams(errno),
            _ => SpawnError::Execute(errno),
        });
    }
    let pid = i32::try_from(result).ok().and_then(Pid::from_raw).ok_or(SpawnError::Clone(Errno::SRCH))?;
    Ok(Spawned { pid, pidfd })
}

/// The strings as a null-terminated array, valid as long as the strings are.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|text| text.as_ptr()).chain(std::iter::once(ptr::null())).collect()
}

/// The child's life before its program. Only system calls: it shares memory, locks included, with the agent.
extern "C" fn in_child(errand: *mut Errand) -> ! {
    // SAFETY: the parent passes a valid pointer and stands still until this process executes or ends, so nobody else
    // reads or writes it. All pointers in it are null-terminated arrays of C strings that the parent keeps alive.
    // The calls are plain system calls; those that fail on purpose (a signal mask cannot) are looked at.
    unsafe {
        let errand = &mut *errand;
        let (step, errno) = become_program(errand);
        errand.failed_step = step;
        errand.errno = errno;
        libc::_exit(127)
    }
}

/// Returns the step that failed and why; does not return otherwise.
///
/// # Safety
/// As in [`in_child`].
unsafe fn become_program(errand: &mut Errand) -> (i32, i32) {
    // SAFETY: as the caller guarantees; every pointer handed to the kernel is one of the errand's or a constant.
    unsafe {
        let grouped = if errand.terminal { libc::setsid() } else { libc::setpgid(0, 0) };
        if grouped < 0 {
            return (STEP_STREAMS, errno());
        }
        for (target, source) in (0..).zip(errand.stdio) {
            // Descriptors of the agent are all above 2 and closed by execve.
            if libc::dup2(source, target) < 0 {
                return (STEP_STREAMS, errno());
            }
        }
        if errand.terminal && libc::ioctl(0, libc::TIOCSCTTY as _, 0) < 0 {
            return (STEP_STREAMS, errno());
        }
        if errand.reset_oom_score {
            reset_oom_score();
        }
        if let Some(limit) = &errand.open_files {
            libc::setrlimit(libc::RLIMIT_NOFILE, limit);
        }
        if !enter_first(errand.folders) {
            return (STEP_FOLDER, errno());
        }
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
        (STEP_EXECUTE, execute_first(errand))
    }
}

/// # Safety
/// `folders` is a null-terminated array of C strings.
unsafe fn enter_first(mut folders: *const *const c_char) -> bool {
    // SAFETY: the loop ends at the terminating null.
    unsafe {
        while !(*folders).is_null() {
            if libc::chdir(*folders) == 0 {
                return true;
            }
            folders = folders.add(1);
        }
    }
    false
}

/// Tries the programs in turn; returns the error to report, which is "access denied" if any was denied.
///
/// # Safety
/// As in [`in_child`].
unsafe fn execute_first(errand: &mut Errand) -> i32 {
    let mut reported = libc::ENOENT;
    // SAFETY: the loop ends at the terminating null; argument arrays are null-terminated. `script_argv` has two
    // elements before the arguments, of which the second is for the script.
    unsafe {
        let mut program = errand.programs;
        while !(*program).is_null() {
            libc::execve(*program, errand.argv, errand.environment);
            match errno() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => reported = libc::EACCES,
                libc::ENOEXEC => {
                    *errand.script_argv.add(1) = *program;
                    libc::execve(c"/bin/sh".as_ptr(), errand.script_argv, errand.environment);
                    return libc::ENOEXEC;
                }
                other => return other,
            }
            program = program.add(1);
        }
    }
    reported
}

/// # Safety
/// Runs in the child: the process that /proc/self names is then the child itself, and the kernel does not spread the
/// score to a parent in vfork.
unsafe fn reset_oom_score() {
    const PATH: &CStr = c"/proc/self/oom_score_adj";
    // SAFETY: a constant path and a constant buffer of the length given.
    unsafe {
        let fd = libc::open(PATH.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd >= 0 {
            libc::write(fd, c"0".as_ptr().cast(), 1);
            libc::close(fd);
        }
    }
}

/// # Safety
/// Runs in the child, which shares the suspended parent thread's `errno`.
unsafe fn errno() -> i32 {
    // SAFETY: the location is this thread's and always valid.
    unsafe { *libc::__errno_location() }
}
