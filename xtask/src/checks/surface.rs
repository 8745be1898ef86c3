use super::{read, rust_files};

/// What ships; the lines of tests inside of it are left out.
const FOLDERS: [&str; 4] =
    ["agentiso-core/src", "agentiso-guest/src", "agentiso-mcp/src", "agentiso-cli/src"];

/// Lines of code with this in them, as `file: line`. Tests have files of their own, or are the end of one.
fn lines_with(text: &str) -> Vec<String> {
    let is_test =
        |path: &String| path.contains("/tests/") || path.ends_with("tests.rs") || path.contains("/testkit/");
    let files = rust_files(&FOLDERS).into_iter().filter(|path| !is_test(path));
    files
        .flat_map(|path| {
            let source = read(&path);
            let code = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned();
            let hits: Vec<String> = code
                .lines()
                .map(str::trim)
                .filter(|line| !line.starts_with("//") && line.contains(text))
                .map(|line| format!("{path}: {line}"))
                .collect();
            hits
        })
        .collect()
}

/// Messages between machines of a team are to come on port 5001 one day. Until then nothing listens there, or anywhere
/// on vsock but on the agent's port.
#[test]
fn nothing_listens_on_vsock_but_the_agent_on_its_port() {
    assert_eq!(lines_with("5001"), Vec::<String>::new());
    for listening in ["VsockListener", "vsock::listen("] {
        for line in lines_with(listening) {
            let is_the_agents =
                line.starts_with("agentiso-guest/src/init/channels.rs") && line.contains("VSOCK_PORT");
            assert!(is_the_agents, "{line}");
        }
    }
    assert_eq!(lines_with("vsock::listen(").len(), 1, "the agent's own listening was not found");
    assert!(read("agentiso-guest/src/lib.rs").contains("pub const VSOCK_PORT: u32 = 5000;"));
}

/// Only what the host opened can configure a machine: the agent connects to nothing and asks nobody for its settings.
#[test]
fn agent_connects_to_nothing() {
    for connecting in ["UnixStream::connect", "TcpStream", "UdpSocket", "libc::connect", "net::connect"] {
        let lines = lines_with(connecting);
        let agents: Vec<&String> = lines.iter().filter(|line| line.starts_with("agentiso-guest/")).collect();
        assert!(agents.is_empty(), "{agents:?}");
    }
}
