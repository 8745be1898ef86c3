//! Lineage, differences and promotion, on real machines.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod common;

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use common::vm::{self, Machine};
use serde_json::{Value, json};

/// What the parent has before it is forked.
const BEFORE: &str = "\
    mkdir -p /root/t/sub && cd /root/t && echo same > same && echo old > changed && echo old > touched \
    && echo short > longer && echo gone > sub/gone && ln -s same link && echo mode > mode && echo kind > kind \
    && touch -d '2020-01-01' same changed touched longer mode";

/// What the child does then: the same size and times with another content, the same content at another time, and all
/// that can happen to a path besides.
const AFTER: &str = "\
    cd /root/t && echo new > changed && touch -d '2020-01-01' changed && touch touched && echo longer >> longer \
    && rm -r sub && ln -sfn changed link && chmod 600 mode && chown 5:7 mode && rm kind && mkdir kind \
    && printf x > \"$(printf 'odd\\nname\\\\\\377')\" && head -c 5000000 /dev/zero > zeros";

fn changes(diff: &Value) -> Vec<(String, String, Value)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let all = diff["differences"].as_array().unwrap();
    all.iter().map(|one| (text(&one["change"]), text(&one["path"]), one["what"].clone())).collect()
}

#[test]
fn fork_is_compared_drawn_and_promoted() {
    let Some(cli) = vm::cli() else { return };
    let parent = Machine::create(&cli, "tree", &["-p", "8000"]);
    let port = parent.info()["port_forwards"][0]["host_port"].as_u64().unwrap();
    parent.sh(BEFORE);
    cli.ok(&["stop", &parent.name]);
    let child = Machine::named(&cli, &format!("{}-child", parent.name));
    cli.ok(&["fork", &parent.name, "--name", &child.name]);
    child.sh(AFTER);

    // The parent does not run: a helper reads it.
    let part = cli.run(&["diff", "--json", &parent.name, &child.name, "/root/t"]);
    let lines = cli.run(&["diff", &parent.name, &child.name]);
    let same = cli.run(&["diff", &child.name, &child.name]);
    let nowhere = cli.run(&["diff", &child.name, &child.name, "/nowhere"]);

    assert_eq!(part.status, 1, "{part:?}");
    let part: Value = serde_json::from_str(&part.stdout).unwrap();
    let expected = [
        ("modified", "/root/t/changed", json!(["content"])),
        ("modified", "/root/t/kind", json!(["kind"])),
        ("modified", "/root/t/link", json!(["target"])),
        ("modified", "/root/t/longer", json!(["content"])),
        ("modified", "/root/t/mode", json!(["mode", "owner"])),
        ("added", "/root/t/odd\\x0aname\\\\\\xff", json!([])),
        ("deleted", "/root/t/sub", json!([])),
        ("deleted", "/root/t/sub/gone", json!([])),
        ("added", "/root/t/zeros", json!([])),
    ];
    let expected = expected.map(|(change, path, what)| (change.to_owned(), path.to_owned(), what));
    assert_eq!(changes(&part), expected);
    assert_eq!((&part["added"], &part["modified"], &part["deleted"]), (&json!(2), &json!(5), &json!(2)));
    assert_eq!(part["differences"][3]["old"]["size"], json!(6));

    // Of all other files only those differ that tell one machine from the other.
    assert_eq!(lines.status, 1, "{lines:?}");
    let elsewhere: Vec<&str> = lines.stdout.lines().filter(|line| !line.contains(" /root/t/")).collect();
    assert!(elsewhere.iter().all(|line| line.starts_with("M /etc/")), "{elsewhere:?}");
    let names: Vec<&str> = elsewhere.iter().filter_map(|line| line.split(' ').nth(1)).collect();
    assert_eq!(names, ["/etc/hostname", "/etc/hosts", "/etc/machine-id"]);
    assert!(lines.stdout.contains("M /root/t/mode (mode 0644 -> 0600, owner 0:0 -> 5:7)\n"), "{lines:?}");
    assert!(lines.stdout.contains("A /root/t/zeros (4.77 MiB)\n"), "{lines:?}");
    assert_eq!((same.status, same.stdout.as_str()), (0, ""), "{same:?}");
    assert_eq!(nowhere.status, 125, "{nowhere:?}");
    let helpers: Vec<Value> = serde_json::from_str(&cli.ok(&["ls", "--json"])).unwrap();
    assert!(!helpers.iter().any(|one| one["name"].as_str().unwrap().starts_with("diff-")), "{helpers:?}");

    let tree: Value = serde_json::from_str(&cli.ok(&["tree", &parent.name, "--json"])).unwrap();
    let drawn = cli.ok(&["tree", &parent.name]);
    assert_eq!(
        (&tree[0]["name"], &tree[0]["memory_unique_bytes"]),
        (&json!(parent.name), &Value::Null),
        "{tree}"
    );
    let fork = &tree[0]["forks"][0];
    assert_eq!((&fork["name"], &fork["state"]), (&json!(child.name), &json!("running")), "{tree}");
    let memory = fork["memory_unique_bytes"].as_u64().unwrap();
    assert!((1 << 20..1 << 30).contains(&memory), "{tree}");
    assert!(fork["disk_used_bytes"].as_u64().unwrap() > 4_000_000, "{tree}");
    assert!(drawn.lines().count() == 3 && drawn.contains(&child.name), "{drawn}");

    child.sh("mkdir /srv/w; echo served > /srv/w/index.html; cd /srv/w; python3 -m http.server 8000 >/dev/null 2>&1 &");
    let old = Machine::named(&cli, &format!("{}-old", parent.name));
    let promoted: Value = serde_json::from_str(&cli.ok(&["promote", &child.name, "--json"])).unwrap();

    assert_eq!(promoted["warnings"], json!([]), "{promoted}");
    assert_eq!(
        (&promoted["promoted"]["name"], &promoted["parent"]["name"]),
        (&json!(parent.name), &json!(old.name))
    );
    assert_eq!(parent.sh("hostname; cat /root/t/changed"), format!("{}\nnew\n", parent.name));
    let answer = vm::wait_for("an answer of the promoted machine's server", || {
        let mut stream = TcpStream::connect(("127.0.0.1", u16::try_from(port).unwrap())).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.contains("served").then_some(answer)
    });
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    assert_eq!(old.info()["state"], "stopped");
}
