//! With a pretended device. The real one, and connections, are tested in the lab.

use std::{collections::BTreeSet, fs::File, io, path::Path, sync::Mutex};

use tempfile::TempDir;

use super::*;
use crate::store::Store;

/// Context ids that others on the pretended host have.
const TAKEN: [u32; 2] = [100, 101];

fn claim_what_is_free(_: &File, cid: u32) -> io::Result<()> {
    if TAKEN.contains(&cid) { Err(io::Error::from_raw_os_error(libc::EADDRINUSE)) } else { Ok(()) }
}

fn claim_nothing(_: &File, _: u32) -> io::Result<()> {
    Err(io::Error::from_raw_os_error(libc::EADDRINUSE))
}

fn claim_fails(_: &File, _: u32) -> io::Result<()> {
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

struct Scratch {
    home: TempDir,
    leases: Arc<Store>,
    folders: Mutex<u32>,
}

impl Scratch {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("device"), "").unwrap();
        let leases = Arc::new(Store::open(&home.path().join("agentiso.db")).unwrap());
        Self { home, leases, folders: Mutex::new(0) }
    }

    fn channel(&self, claim: fn(&File, u32) -> io::Result<()>) -> VsockChannel {
        let device = Device::pretended(self.home.path().join("device"), claim);
        VsockChannel { device, leases: self.leases.clone(), cids: 100..=109, state_id: "one".to_owned() }
    }

    fn spec(&self) -> ChannelSpec {
        let mut folders = self.folders.lock().unwrap();
        *folders += 1;
        let run_dir = self.home.path().join(folders.to_string());
        std::fs::create_dir(&run_dir).unwrap();
        ChannelSpec { id: WorkspaceId::random(), run_dir }
    }

    fn held(&self) -> Vec<(u32, WorkspaceId)> {
        self.leases.held(LeaseKind::VsockCid).unwrap()
    }
}

fn cid(prepared: &PreparedChannel) -> u32 {
    let ChannelDevice::Vsock { cid, .. } = prepared.device else { panic!("{:?}", prepared.device) };
    cid
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

#[tokio::test]
async fn context_id_that_others_have_is_passed_over_and_given_back() {
    let scratch = Scratch::new();
    let channel = scratch.channel(claim_what_is_free);
    let spec = scratch.spec();
    let id = spec.id;

    let prepared = channel.prepare(spec).await.unwrap();

    assert_eq!(cid(&prepared), 102);
    assert_eq!(scratch.held(), [(102, id)]);
    channel.release(&prepared.record).await.unwrap();
    assert_eq!(scratch.held(), []);
}

#[tokio::test]
async fn each_machine_has_a_key_of_its_own_that_only_its_folder_and_its_device_hold() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    let channel = scratch.channel(|_, _| Ok(()));
    let spec = scratch.spec();
    let file = spec.run_dir.join("vsock.key");

    let first = channel.prepare(spec.clone()).await.unwrap();
    let kept = std::fs::read(&file).unwrap();
    let shown = format!("{first:?}");
    // What its next start gets.
    let second = channel.prepare(spec).await.unwrap();

    let (ChannelDevice::Vsock { key, .. }, ChannelDevice::Vsock { key: next, .. }) =
        (&first.device, &second.device)
    else {
        panic!("{first:?} {second:?}")
    };
    assert_eq!(kept, key.as_bytes());
    assert_ne!(key, next);
    assert_eq!(std::fs::read(&file).unwrap(), next.as_bytes());
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    let digits: String = kept.iter().map(|byte| format!("{byte:02x}")).collect();
    let numbers = format!("{kept:?}");
    assert!(!shown.contains(&digits) && !shown.contains(numbers.trim_matches(['[', ']'])), "{shown}");
    assert!(!serde_json::to_string(&first.record).unwrap().contains(&digits));
    channel.release(&second.record).await.unwrap();
    assert!(!file.exists());
}

#[tokio::test]
async fn context_id_is_not_handed_out_again_before_it_has_cooled_down() {
    let scratch = Scratch::new();
    let channel = scratch.channel(|_, _| Ok(()));
    let mut seen = BTreeSet::new();

    for _ in 0..10 {
        let prepared = channel.prepare(scratch.spec()).await.unwrap();
        assert!(seen.insert(cid(&prepared)), "{seen:?}");
        channel.release(&prepared.record).await.unwrap();
    }
    let spec = scratch.spec();
    let run_dir = spec.run_dir.clone();
    let none = channel.prepare(spec).await;

    let Err(error @ ChannelError::Address { source: crate::leases::LeaseError::Exhausted { .. }, .. }) = none
    else {
        panic!("{none:?}")
    };
    assert!(error.to_string().contains("context id"), "{error}");
    assert!(is_empty(&run_dir));
}

#[tokio::test]
async fn machine_that_is_prepared_again_has_another_context_id_and_a_late_release_does_not_take_it() {
    let scratch = Scratch::new();
    let channel = scratch.channel(|_, _| Ok(()));
    let spec = scratch.spec();

    let first = channel.prepare(spec.clone()).await.unwrap();
    let second = channel.prepare(spec.clone()).await.unwrap();
    channel.release(&first.record).await.unwrap();

    assert_ne!(cid(&first), cid(&second));
    assert_eq!(scratch.held(), [(cid(&second), spec.id)]);
}

#[tokio::test]
async fn failed_prepare_leaves_nothing() {
    let scratch = Scratch::new();
    for claim in [claim_nothing, claim_fails] {
        let spec = scratch.spec();
        let run_dir = spec.run_dir.clone();

        let result = scratch.channel(claim).prepare(spec).await;

        assert!(result.is_err());
        assert!(is_empty(&run_dir));
        assert_eq!(scratch.held(), []);
    }
}

#[tokio::test]
async fn what_a_killed_process_left_is_found_and_given_back() {
    let scratch = Scratch::new();
    let channel = scratch.channel(|_, _| Ok(()));
    let spec = scratch.spec();
    let id = spec.id;
    drop(channel.prepare(spec).await.unwrap());

    let left = channel.leftovers().await.unwrap();
    assert_eq!(left.iter().map(|record| record.id).collect::<Vec<_>>(), [id]);
    for record in &left {
        channel.release(record).await.unwrap();
    }

    assert_eq!(channel.leftovers().await.unwrap(), []);
    let gone = channel.connect(&left[0], Lane::Work, Duration::ZERO).await;
    assert!(matches!(gone, Err(ChannelError::Gone { .. })));
}

#[tokio::test]
async fn lanes_are_64_and_one_is_kept_for_control() {
    let scratch = Scratch::new();
    let channel = scratch.channel(|_, _| Ok(()));
    let spec = scratch.spec();
    let run_dir = RunDir::open(&spec.run_dir).unwrap();
    let id = spec.id;
    let _prepared = channel.prepare(spec).await.unwrap();
    let take = |lane| lanes::take(&run_dir, id, (lane, LANES), Duration::ZERO, |_| Ok(()));

    let mut held = Vec::new();
    for _ in 0..63 {
        held.push(take(Lane::Work).await.unwrap());
    }
    assert!(matches!(take(Lane::Work).await, Err(ChannelError::Busy { lanes: 63, .. })));
    held.push(take(Lane::Control).await.unwrap());

    assert!(matches!(take(Lane::Control).await, Err(ChannelError::Busy { lanes: 64, .. })));
}

#[test]
fn missing_device_is_an_error_with_the_remedy() {
    let home = tempfile::tempdir().unwrap();
    let device = Device::pretended(home.path().join("missing"), claim_nothing);
    let leases = Store::open(&home.path().join("agentiso.db")).unwrap();

    let error = address::claim(&device, &leases, &[CIDS], WorkspaceId::random()).unwrap_err();

    assert!(error.to_string().contains("modprobe vhost_vsock"), "{error}");
}

/// The context ids that a pretended host has given out.
static GIVEN_OUT: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn claim_like_the_kernel(_: &File, cid: u32) -> io::Result<()> {
    let first = GIVEN_OUT.lock().unwrap().insert(cid);
    if first { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EADDRINUSE)) }
}

#[tokio::test]
async fn state_folders_of_one_host_never_have_the_same_context_id() {
    let (one, other) = (Scratch::new(), Scratch::new());
    // Once with blocks of their own, and once, as can happen, with the same.
    for (range, states) in [(CIDS, ["one", "other"]), (200_000..=200_003, ["one", "one"])] {
        let channel = |scratch: &Scratch, state| VsockChannel {
            cids: range.clone(),
            ..scratch.channel(claim_like_the_kernel).of_state(state)
        };
        let mut seen = BTreeSet::new();
        for _ in 0..2 {
            for (scratch, state) in [&one, &other].into_iter().zip(states) {
                let prepared = channel(scratch, state).prepare(scratch.spec()).await.unwrap();
                let cid = cid(&prepared);
                assert!(range.contains(&cid) && seen.insert(cid), "{cid} {seen:?}");
                assert!(address::in_order(&range, state)[0].contains(&cid), "{cid}");
            }
        }
    }
    let none = other.channel(claim_like_the_kernel).with_cids(200_000..=200_003).prepare(other.spec()).await;
    assert!(matches!(none, Err(ChannelError::Address { .. })), "{none:?}");
}

#[tokio::test]
async fn block_that_others_have_is_left_for_the_rest_of_the_range() {
    let scratch = Scratch::new();
    let channel = scratch.channel(|_, cid| match cid {
        ..10_000 => Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
        _ => Ok(()),
    });
    let device = channel.device.clone();
    let ranges = [9_990..=9_999, 10_000..=10_002, 10_100..=10_102];
    let mut cids = Vec::new();

    for _ in 0..6 {
        cids.push(address::claim(&device, &*scratch.leases, &ranges, WorkspaceId::random()).unwrap().cid);
    }

    assert_eq!(cids, [10_000, 10_001, 10_002, 10_100, 10_101, 10_102]);
    let none = address::claim(&device, &*scratch.leases, &ranges, WorkspaceId::random()).unwrap_err();
    let ChannelError::Address { source: crate::leases::LeaseError::Exhausted { count, .. }, .. } = none
    else {
        panic!("{none:?}")
    };
    assert_eq!(count, 16, "all of them");
}

#[test]
fn state_folders_begin_at_different_blocks_and_use_the_whole_range() {
    let mut begins = BTreeSet::new();
    for range in [CIDS, 3..=u32::MAX - 1, 1000..=4000] {
        for state in 0..200 {
            let parts = address::in_order(&range, &format!("state{state}"));
            assert_eq!(parts[0].clone().count(), 1024);
            assert_eq!(parts.iter().map(|part| part.clone().count()).sum::<usize>(), range.clone().count());
            assert!(parts.iter().all(|part| range.contains(part.start()) && range.contains(part.end())));
            begins.insert(*parts[0].start());
        }
    }
    assert!(begins.len() > 200, "{}", begins.len());
    assert_eq!(address::in_order(&CIDS, "same"), address::in_order(&CIDS, "same"));
    for small in [3..=3, 1000..=1999, 1000..=3046] {
        assert_eq!(address::in_order(&small, "state"), [small], "too small to be divided");
    }
}

#[test]
fn context_ids_of_the_kernel_are_never_used() {
    assert_eq!(address::usable(&(0..=9)), 3..=9);
    assert_eq!(address::usable(&(7..=u32::MAX)), 7..=u32::MAX - 1);
}
