//! Any frames from a machine into the process that is its network: Ethernet, ARP, IPv4, ICMP, DHCP, UDP, TCP.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| agentiso_core::fuzzing::network(data));
