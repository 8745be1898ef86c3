//! Base images on real machines. `cargo xtask test` prepares the state folder; without one the tests say so.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::{path::PathBuf, sync::Arc};

use agentiso_core::image::{ImageError, ImportInput, ImportSpec, Stage};
use agentiso_core::types::{DiskGib, ImageName};
use agentiso_core::{Config, Host, WorkspaceSpec};

/// The prepared state folder.
async fn host() -> Option<Host> {
    let home = std::env::var_os("AGENTISO_HOME").filter(|_| std::env::var_os("AGENTISO_TEST_SEED").is_some());
    let Some(home) = home else {
        println!("skipped: there is no state folder with an image; `cargo xtask test` makes one");
        return None;
    };
    Some(Host::open(Config::at(PathBuf::from(home))).await.unwrap())
}

/// A tar of the files given; those whose name ends with a slash are folders.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        let is_folder = name.ends_with('/');
        header.set_entry_type(if is_folder { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn spec(name: &str, tar: Vec<u8>) -> ImportSpec {
    let input = ImportInput::Stream(Box::pin(std::io::Cursor::new(tar)));
    ImportSpec { name: ImageName::new(name).unwrap(), input, disk: Some(DiskGib::new(1).unwrap()) }
}

/// Whether an image of that name is there.
async fn is_listed(host: &Host, name: &str) -> bool {
    host.images().list().await.unwrap().iter().any(|image| image.name.as_str() == name)
}

#[tokio::test]
async fn tar_without_a_shell_boots_and_says_so_on_exec() {
    let Some(host) = host().await else { return };
    let name = format!("bare{}", std::process::id());
    let root = tar(&[("etc/", b""), ("etc/motd", b"hello"), ("bin/", b""), ("bin/text", b"no program")]);
    let image = host.images().import(spec(&name, root), Arc::new(|_| ())).await.unwrap();
    assert!(!image.has_shell);

    let workspace = host.create(WorkspaceSpec::new(&name)).await.unwrap();
    let shell = workspace.exec("true").await.unwrap_err().report();
    let guest = workspace.guest().await.unwrap();
    let file = guest.read_file("/etc/motd", 0, 64).await;
    workspace.destroy().await.unwrap();
    host.remove_image(&name).await.unwrap();

    assert!(shell.contains("sh"), "{shell}");
    assert_eq!(file.unwrap(), b"hello");
}

#[tokio::test]
async fn tar_that_is_none_or_too_large_leaves_nothing_and_says_why() {
    let Some(host) = host().await else { return };
    let name = format!("bad{}", std::process::id());

    let junk = host.images().import(spec(&name, vec![0x5a; 100_000]), Arc::new(|_| ())).await.unwrap_err();
    let large = tar(&[("zeros", &vec![1; 1 << 20])]);
    let header = &large[..512];
    // Announces more than the disk holds, and delivers it.
    let mut announced = tar::Header::from_byte_slice(header).clone();
    announced.set_size(2 << 30);
    announced.set_cksum();
    let endless = tokio::io::AsyncReadExt::chain(
        std::io::Cursor::new(announced.as_bytes().to_vec()),
        tokio::io::repeat(1),
    );
    let input = ImportInput::Stream(Box::pin(endless));
    let too_large = ImportSpec { input, ..spec(&name, Vec::new()) };
    let full = host.images().import(too_large, Arc::new(|_| ())).await.unwrap_err();

    assert!(matches!(junk, ImageError::Guest { .. }), "{junk}");
    assert!(matches!(full, ImageError::TooLarge { gib: 1, .. }), "{full}");
    assert!(!is_listed(&host, &name).await);
}

#[tokio::test]
async fn build_whose_future_is_dropped_is_undone() {
    let Some(host) = host().await else { return };
    let name = format!("dropped{}", std::process::id());
    let (unpacking, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let endless = ImportInput::Stream(Box::pin(tokio::io::AsyncReadExt::chain(
        std::io::Cursor::new(tar(&[("file", &[1; 4096])])),
        tokio::io::empty(),
    )));
    let spec = ImportSpec { input: endless, ..spec(&name, Vec::new()) };
    let images = host.images();
    let report = Arc::new(move |step: agentiso_core::image::Progress| {
        let _ = unpacking.send(step.stage);
    });
    let until_modules = async {
        while let Some(stage) = begun.recv().await {
            if stage == Stage::InstallModules {
                return;
            }
        }
    };

    tokio::select! {
        made = images.import(spec, report) => panic!("it ended too early: {made:?}"),
        () = until_modules => {}
    }
    images.idle().await;

    assert!(!is_listed(&host, &name).await);
}

#[tokio::test]
async fn debian_image_has_modules_for_an_overlay_and_a_firewall_rule() {
    let Some(host) = host().await else { return };
    let workspace = host.create(WorkspaceSpec::new("debian")).await.unwrap();
    let script = "set -e
        mkdir /tmp/low /tmp/high /tmp/both && echo below >/tmp/low/file
        mount -t tmpfs none /tmp/high && mkdir /tmp/high/up /tmp/high/work
        mount -t overlay none -o lowerdir=/tmp/low,upperdir=/tmp/high/up,workdir=/tmp/high/work /tmp/both
        echo above >/tmp/both/file && cat /tmp/low/file /tmp/high/up/file
        nft add table inet t && nft add chain inet t c '{ type filter hook input priority 0; }'
        nft add rule inet t c tcp dport 81 drop && nft list ruleset | grep -c 'dport 81'
        for program in bash python3 git curl ps ip; do command -v $program >/dev/null || echo no $program; done
        test -s /etc/ssl/certs/ca-certificates.crt && stat -c %a /usr/bin/passwd";
    let output = workspace.exec(script).await;
    workspace.destroy().await.unwrap();

    let output = output.unwrap();
    assert_eq!(output.stdout_text(), "below\nabove\n1\n4755\n", "{}", output.stderr_text());
}
