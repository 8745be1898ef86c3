//! Yama, a security module of many distributions' kernels: who may read another process's memory.

use std::path::Path;

/// Where Yama says how strict it is. Not there without Yama.
const SCOPE: &str = "/proc/sys/kernel/yama/ptrace_scope";

/// Only a process's ancestors may read its memory, and those it names itself.
const ANCESTORS_OR_NAMED: u8 = 1;

/// Whether a program must name who may read its memory, if others of its user than its ancestors shall. False for a
/// kernel that asks for nothing, and for one that leaves it to root whatever a program says.
pub(crate) fn asks_for_a_reader() -> bool {
    scope_in(Path::new(SCOPE)) == Some(ANCESTORS_OR_NAMED)
}

fn scope_in(path: &Path) -> Option<u8> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scope_is_read_as_the_kernel_writes_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ptrace_scope");
        assert_eq!(scope_in(&path), None);
        for (text, scope) in [("0\n", Some(0)), ("1\n", Some(1)), ("3\n", Some(3)), ("", None), ("x\n", None)]
        {
            std::fs::write(&path, text).unwrap();
            assert_eq!(scope_in(&path), scope, "{text:?}");
        }
    }
}
