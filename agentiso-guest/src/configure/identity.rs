//! Host name and machine id.

use std::fs;
use std::io::Read;
use std::path::Path;

use rustix::system::sethostname;

use crate::failure::Failure;
use crate::files::write_whole;

/// Most bytes of an /etc/hosts that is kept.
const MAX_HOSTS_BYTES: u64 = 1024 * 1024;
/// The address that Debian gives a host's own name.
const OWN_ADDRESS: &str = "127.0.1.1";
const PLAIN_HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

pub(super) fn check_host_name(name: &str) -> Result<&str, Failure> {
    if is_host_name(name) {
        return Ok(name);
    }
    Err(Failure::invalid(format!(
        "setting the host name: {name:?} is not 1 to 63 characters of A-Z, a-z, 0-9 and -"
    )))
}

fn is_host_name(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

pub(super) fn check_machine_id(id: &str) -> Result<String, Failure> {
    if id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(id.to_ascii_lowercase());
    }
    Err(Failure::invalid("setting the machine id: it is not 32 hexadecimal digits"))
}

pub(super) fn set_host_name(name: &str) -> Result<(), Failure> {
    sethostname(name.as_bytes()).map_err(|error| Failure::system("setting the host name", error))?;
    write_whole(Path::new("/etc/hostname"), &format!("{name}\n"))?;
    let hosts = match fs::File::open("/etc/hosts") {
        Ok(file) => {
            let mut text = String::new();
            file.take(MAX_HOSTS_BYTES)
                .read_to_string(&mut text)
                .map_err(|error| Failure::io("reading /etc/hosts", &error))?;
            text
        }
        Err(_) => PLAIN_HOSTS.to_owned(),
    };
    write_whole(Path::new("/etc/hosts"), &with_own_name(&hosts, name))
}

/// The hosts file with `name` as the machine's own, in place of the one before.
fn with_own_name(hosts: &str, name: &str) -> String {
    let mut new: String = hosts
        .lines()
        .filter(|line| line.split_whitespace().next() != Some(OWN_ADDRESS))
        .flat_map(|line| [line, "\n"])
        .collect();
    new.push_str(&format!("{OWN_ADDRESS}\t{name}\n"));
    new
}

pub(super) fn set_machine_id(id: &str) -> Result<(), Failure> {
    let content = format!("{id}\n");
    write_whole(Path::new("/etc/machine-id"), &content)?;
    // Most systems link this one to the other.
    let bus = Path::new("/var/lib/dbus/machine-id");
    if fs::symlink_metadata(bus).is_ok_and(|metadata| metadata.is_file()) {
        write_whole(bus, &content)?;
    }
    Ok(())
}

/// At boot: takes the host name that the root file system has.
pub(crate) fn adopt_host_name() {
    if let Ok(name) = fs::read_to_string("/etc/hostname")
        && is_host_name(name.trim())
    {
        // The kernel's own name stays if this fails.
        let _ = sethostname(name.trim().as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_name_in_hosts_replaces_the_old_one_and_keeps_the_rest() {
        let hosts = "127.0.0.1 localhost\n127.0.1.1\told\n10.0.0.1 127.0.1.1.example\n";

        let new = with_own_name(hosts, "new");

        assert_eq!(new, "127.0.0.1 localhost\n10.0.0.1 127.0.1.1.example\n127.0.1.1\tnew\n");
    }

    #[test]
    fn host_name_outside_the_alphabet_or_length_is_refused() {
        for name in ["", "a_b", "a.b", "a b", "é", &"a".repeat(64), "a\nb"] {
            assert!(check_host_name(name).is_err(), "{name:?}");
        }
        assert!(check_host_name(&"a".repeat(63)).is_ok());
    }

    #[test]
    fn machine_id_of_the_wrong_form_is_refused() {
        assert!(check_machine_id("0123456789abcdef0123456789abcde").is_err());
        assert!(check_machine_id("0123456789abcdef0123456789abcdeg").is_err());
        assert_eq!(
            check_machine_id("0123456789ABCDEF0123456789abcdef"),
            Ok("0123456789abcdef0123456789abcdef".to_owned())
        );
    }
}
