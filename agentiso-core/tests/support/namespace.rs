//! Network namespaces that a test has for itself. They need root.

use std::process::Command;

use rustix::thread::UnshareFlags;

/// Runs a command of the shell, which must succeed.
pub(crate) fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Puts this thread into a network namespace of its own, where only the loopback device is.
pub(crate) fn enter() {
    // SAFETY: this flag concerns this thread's network alone; no memory or descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
    sh("ip link set lo up");
}

/// Runs a test in a network namespace of its own, on threads that are all in there.
pub(crate) fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    let run = || {
        enter();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(test());
    };
    let result = std::thread::scope(|scope| scope.spawn(run).join());
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}
