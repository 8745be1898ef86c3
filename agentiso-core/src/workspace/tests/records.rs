//! Records that were damaged: a clear error, and never a state folder that seems to be empty.

use std::{
    fs::OpenOptions,
    io::{Seek, SeekFrom, Write},
};

use super::{Scene, create};
use crate::Host;

/// SQLite's page, in bytes; what new databases have.
const PAGE_BYTES: u64 = 4096;

/// First byte of a page that is a leaf of a table; the number of its rows is two bytes at 3.
const TABLE_LEAF: u8 = 0x0d;

/// Workspaces, so that the table takes up several pages.
const WORKSPACES: usize = 12;

async fn full_scene() -> Scene {
    let scene = Scene::new().await;
    let host = scene.open().await;
    for number in 0..WORKSPACES {
        create(&host, &format!("w{number}")).await;
    }
    drop(host);
    // What is in the write-ahead log goes into the file, and the log is gone: the damage is the file's.
    let database = rusqlite::Connection::open(scene.config().layout().database()).unwrap();
    database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    scene
}

async fn machines(scene: &Scene) -> usize {
    scene.backends().hypervisor.processes().await.unwrap().len()
}

/// Every page in turn is overwritten: what was recorded is all there, or an error says that it is not.
#[tokio::test]
async fn page_that_was_overwritten_is_an_error_and_never_an_empty_list() {
    let scene = full_scene().await;
    let database = scene.config().layout().database();
    let sound = std::fs::read(&database).unwrap();
    let pages = sound.len() as u64 / PAGE_BYTES;
    assert!(pages > 3, "{pages} pages");
    let mut refused = 0;
    for page in 0..pages {
        for garbage in [0x00_u8, 0xa5] {
            std::fs::write(&database, &sound).unwrap();
            let mut file = OpenOptions::new().write(true).open(&database).unwrap();
            file.seek(SeekFrom::Start(page * PAGE_BYTES)).unwrap();
            file.write_all(&vec![garbage; usize::try_from(PAGE_BYTES).unwrap()]).unwrap();
            drop(file);
            for log in ["-wal", "-shm"] {
                let mut path = database.clone().into_os_string();
                path.push(log);
                let _ = std::fs::remove_file(path);
            }

            let opened = Host::open_with(scene.config(), scene.backends()).await;
            let listed = match &opened {
                Ok(host) => host.list().await,
                Err(_) => Ok(Vec::new()),
            };

            match (opened, listed) {
                (Err(error), _) | (Ok(_), Err(error)) => {
                    let text = error.report();
                    assert!(text.contains("agentiso.db"), "page {page}: {text}");
                    refused += 1;
                }
                (Ok(_), Ok(list)) => {
                    assert_eq!(
                        list.len(),
                        WORKSPACES,
                        "page {page} with {garbage:#x}: workspaces are missing"
                    );
                }
            }
            assert_eq!(machines(&scene).await, WORKSPACES, "page {page}: machines were ended");
        }
    }
    assert!(refused > 0, "no page mattered");
}

/// A page that says it has one row hides the others, and SQLite reads on as if nothing were amiss.
#[tokio::test]
async fn page_whose_rows_were_cut_off_is_an_error_and_machines_run_on() {
    let scene = full_scene().await;
    let database = scene.config().layout().database();
    let sound = std::fs::read(&database).unwrap();
    let mut tried = 0;
    for (page, at) in (0..sound.len()).step_by(usize::try_from(PAGE_BYTES).unwrap()).enumerate().skip(1) {
        if sound[at] != TABLE_LEAF {
            continue;
        }
        let rows = u16::from_be_bytes([sound[at + 3], sound[at + 4]]);
        if rows < 2 {
            continue;
        }
        let mut damaged = sound.clone();
        damaged[at + 3..at + 5].copy_from_slice(&1_u16.to_be_bytes());
        std::fs::write(&database, damaged).unwrap();
        tried += 1;

        let opened = Host::open_with(scene.config(), scene.backends()).await;

        let error = opened.unwrap_err().report();
        assert!(error.contains("agentiso.db") && error.contains("operations.md"), "page {page}: {error}");
        assert_eq!(machines(&scene).await, WORKSPACES, "page {page}: machines were ended");
    }
    assert!(tried > 0, "no page holds rows");
}
