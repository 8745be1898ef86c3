//! Which system calls a companion process may still make, as a seccomp filter.

use std::io;

use super::sys;

/// What the console process needs once its descriptors are open.
const CONSOLE: &[libc::c_long] = &[libc::SYS_pwrite64, libc::SYS_ftruncate];

/// What the network process needs on top: sockets, of the two internet families only (see [`program`]).
const NETWORK: &[libc::c_long] = &[
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
];

/// What the language's own runtime needs: memory, locks, time, randomness, a panic's message, the end.
const RUNTIME: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_ppoll,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mprotect,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Calls that other architectures no longer have.
#[cfg(target_arch = "x86_64")]
const OLD: &[libc::c_long] = &[libc::SYS_poll, libc::SYS_epoll_wait];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[libc::c_long] = &[];

/// AUDIT_ARCH_* of <linux/audit.h>: the machine's ELF number, with the bits for 64 bits and little endian.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: Option<u32> = Some(62 | 0x8000_0000 | 0x4000_0000);
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: Option<u32> = Some(183 | 0x8000_0000 | 0x4000_0000);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCHITECTURE: Option<u32> = None;

/// Numbers from here on are x86-64's x32 calls, which the list below does not mean.
const X32_FIRST: u32 = 0x4000_0000;

// Places in `struct seccomp_data`. The first argument's lower half comes first on the architectures above.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const FIRST_ARGUMENT_AT: u32 = 16;

/// Lets this thread, and what it starts, make only the calls that the process needs from now on. Every other call
/// fails with EPERM.
///
/// # Errors
/// The kernel refuses the filter. Does nothing on an architecture whose numbers are not known here.
pub(super) fn restrict(network: bool) -> io::Result<()> {
    match ARCHITECTURE {
        Some(architecture) => sys::load_seccomp(&program(architecture, network)?),
        None => Ok(()),
    }
}

fn program(architecture: u32, network: bool) -> io::Result<Vec<libc::sock_filter>> {
    let mut program = vec![
        load(ARCHITECTURE_AT),
        skip_unless_equal(architecture, 1, 0),
        give(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER_AT),
        skip(libc::BPF_JGE, X32_FIRST, 0, 1),
        refuse(),
    ];
    let lists = [RUNTIME, OLD, if network { NETWORK } else { CONSOLE }];
    for call in lists.into_iter().flatten() {
        program.extend([skip_unless_equal(number(*call)?, 0, 1), give(libc::SECCOMP_RET_ALLOW)]);
    }
    if network {
        // socket(): only the internet families. The netlink socket is open by now.
        program.push(skip_unless_equal(number(libc::SYS_socket)?, 1, 0));
        program.push(refuse());
        program.push(load(FIRST_ARGUMENT_AT));
        for family in [libc::AF_INET, libc::AF_INET6] {
            program.extend([skip_unless_equal(number(family.into())?, 0, 1), give(libc::SECCOMP_RET_ALLOW)]);
        }
    }
    program.push(refuse());
    Ok(program)
}

fn number(value: libc::c_long) -> io::Result<u32> {
    u32::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    // Every code of classic BPF fits 16 bits.
    libc::sock_filter { code: u16::try_from(code).unwrap_or_default(), jt, jf, k }
}

fn load(place: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, place, 0, 0)
}

/// Skips `equal` instructions if what is loaded equals the value, else `different`.
fn skip_unless_equal(value: u32, equal: u8, different: u8) -> libc::sock_filter {
    skip(libc::BPF_JEQ, value, equal, different)
}

fn skip(comparison: u32, value: u32, holds: u8, fails: u8) -> libc::sock_filter {
    instruction(libc::BPF_JMP | comparison | libc::BPF_K, value, holds, fails)
}

fn give(verdict: u32) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, verdict, 0, 0)
}

fn refuse() -> libc::sock_filter {
    give(libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use std::{net, os::unix::net::UnixDatagram, thread};

    use super::*;

    /// A filter holds for the thread that loads it, so each test confines one of its own.
    fn restricted<T: Send + 'static>(network: bool, act: impl FnOnce() -> T + Send + 'static) -> T {
        thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            restrict(network).unwrap();
            act()
        })
        .join()
        .unwrap()
    }

    fn denied<T>(outcome: io::Result<T>) -> bool {
        outcome.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    }

    #[test]
    fn network_filter_leaves_only_internet_sockets() {
        let (internet, local, file, process) = restricted(true, || {
            (
                net::UdpSocket::bind("127.0.0.1:0").is_ok() && net::TcpListener::bind("127.0.0.1:0").is_ok(),
                denied(UnixDatagram::unbound()),
                denied(std::fs::File::open("/proc/self/status")),
                denied(
                    rustix::process::kill_process_group(
                        rustix::process::getpid(),
                        rustix::process::Signal::CONT,
                    )
                    .map_err(io::Error::from),
                ),
            )
        });
        assert!(internet && local && file && process, "{internet} {local} {file} {process}");
    }

    #[test]
    fn console_filter_leaves_no_sockets() {
        assert!(restricted(false, || denied(net::UdpSocket::bind("127.0.0.1:0"))));
    }
}
