use std::{fs, sync::Mutex, time::Duration};

use super::*;
use crate::image::assets;
use crate::storage::DiskOrigin;
use crate::testkit::{FakeHost, Fault};
use crate::types::DiskId;

/// A pretended host and a state folder with everything but images.
struct Scene {
    folder: tempfile::TempDir,
    state: PathBuf,
    host: FakeHost,
    images: Images,
}

impl Scene {
    fn new() -> Self {
        let (folder, state) = assets::tests::install_fakes(tempfile::tempdir().unwrap());
        let host = FakeHost::new();
        let (hypervisor, storage) = (Arc::new(host.hypervisor()), Arc::new(host.storage()));
        let mut images = Images::new(&state, hypervisor, storage, Arc::new(host.channel()));
        // The disks of a pretended host are no files.
        images.site.format = |_| Ok(());
        Self { folder, state, host, images }
    }

    async fn import(&self, name: &str, tar: &[u8]) -> Result<Image, ImageError> {
        let path = self.folder.path().join("root.tar");
        fs::write(&path, tar).unwrap();
        self.images.import(spec(name, ImportInput::File(path)), Arc::new(|_| ())).await
    }

    /// Asserts that no trace of an image is there.
    async fn assert_empty(&self, when: &str) {
        let inventory = self.host.storage().inventory().await.unwrap();
        assert!(inventory.bases.is_empty(), "{when}: {:?}", inventory.bases);
        assert!(self.host.hypervisor().processes().await.unwrap().is_empty(), "{when}: a machine runs");
        assert!(self.images.list().await.unwrap().is_empty(), "{when}: it is in the catalogue");
        self.assert_no_leftovers(when);
    }

    /// Asserts that nothing is left of a build but the image.
    fn assert_no_leftovers(&self, when: &str) {
        let names = |folder: &str| -> Vec<String> {
            let entries = fs::read_dir(self.state.join(folder)).into_iter().flatten();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        assert!(names("run").is_empty(), "{when}: {:?}", names("run"));
        let locks: Vec<_> =
            names("locks").into_iter().filter(|name| name.len() > "images.lock".len()).collect();
        assert!(locks.is_empty(), "{when}: {locks:?}");
    }
}

fn spec(name: &str, input: ImportInput) -> ImportSpec {
    ImportSpec { name: ImageName::new(name).unwrap(), input, disk: None }
}

#[tokio::test]
async fn imported_tar_becomes_an_image_that_disks_can_be_made_from() {
    let scene = Scene::new();
    let image = scene.import("mine", b"a root file system").await.unwrap();

    assert_eq!(scene.images.list().await.unwrap(), std::slice::from_ref(&image));
    assert_eq!(scene.images.find(&image.name).await.unwrap(), image);
    assert_eq!((image.bytes, image.tar_bytes, image.kernel_release.as_str()), (GIB, 18, "6.1-test"));
    assert!(image.has_shell && image.fits(&Assets::load(&scene.state).unwrap()));
    assert!(scene.images.bases().await.unwrap().contains(&image.base));
    scene.host.storage().create_disk(DiskId::random(), DiskOrigin::Base(image.base), GIB).await.unwrap();
    scene.assert_no_leftovers("after success");
}

#[tokio::test]
async fn failure_of_any_step_leaves_nothing() {
    for step in [
        "storage.begin_base",
        "channel.prepare",
        "hypervisor.launch",
        "agent.ping",
        "agent.archive_write",
        "agent.exec",
        "agent.sync",
        "agent.shutdown",
        "storage.seal_base",
    ] {
        let scene = Scene::new();
        scene.host.faults().arm(step, 1, Fault::Fail);
        assert!(scene.import("mine", b"tar").await.is_err(), "{step}");
        scene.assert_empty(step).await;
    }
}

#[tokio::test]
async fn dropped_build_is_undone() {
    for step in ["storage.begin_base", "hypervisor.launch", "agent.archive_write", "agent.sync"] {
        let scene = Scene::new();
        // Ends once it is not waited for any more; in its effect it is not.
        scene.host.faults().arm(step, 1, Fault::Hang);
        let waited = tokio::time::timeout(Duration::from_millis(300), scene.import("mine", b"tar")).await;
        assert!(waited.is_err(), "{step}");
        scene.images.idle().await;
        scene.assert_empty(step).await;
    }
}

#[tokio::test]
async fn machine_that_ends_by_itself_is_an_error_at_once() {
    let scene = Scene::new();
    scene.host.faults().arm("agent.archive_write", 1, Fault::Hang);
    let crash = async {
        while scene.host.faults().count("agent.archive_write") == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let (id, _) = scene.host.hypervisor().processes().await.unwrap()[0];
        scene.host.guest(id).unwrap().power_off();
    };
    let (made, ()) = tokio::join!(scene.import("mine", b"tar"), crash);
    let error = made.unwrap_err();
    assert!(matches!(error, ImageError::Crashed { .. } | ImageError::Guest { .. }), "{error}");
    scene.assert_empty("after a crash").await;
}

#[tokio::test]
async fn image_in_use_is_not_removed_and_names_its_disks() {
    let scene = Scene::new();
    let image = scene.import("mine", b"tar").await.unwrap();
    let disk = DiskId::random();
    scene.host.storage().create_disk(disk, DiskOrigin::Base(image.base), GIB).await.unwrap();

    let refused = scene.images.remove("mine").await.unwrap_err();

    assert!(matches!(&refused, ImageError::InUse { dependents, .. } if *dependents == [disk]), "{refused}");
    assert!(scene.images.find(&image.name).await.is_ok());
    scene.host.storage().destroy_disk(disk).await.unwrap();
    scene.images.remove("mine").await.unwrap();
    scene.assert_empty("after removal").await;
    let gone = scene.images.remove("mine").await.unwrap_err();
    assert_eq!(gone.to_string(), "there is no image mine");
}

#[tokio::test]
async fn image_of_a_taken_name_replaces_the_old_one_unless_that_is_in_use() {
    let scene = Scene::new();
    let first = scene.import("mine", b"one").await.unwrap();
    let second = scene.import("mine", b"two").await.unwrap();
    assert_eq!(scene.host.storage().inventory().await.unwrap().bases, [second.base]);
    scene.host.storage().create_disk(DiskId::random(), DiskOrigin::Base(second.base), GIB).await.unwrap();

    let third = scene.import("mine", b"three").await.unwrap();

    assert_ne!(first.content_digest(), second.content_digest());
    assert_eq!(scene.images.list().await.unwrap(), [third]);
    assert_eq!(scene.host.storage().inventory().await.unwrap().bases.len(), 2);
}

#[tokio::test]
async fn unusable_input_is_refused_before_anything_is_made() {
    let scene = Scene::new();
    let empty = scene.import("mine", b"").await.unwrap_err();
    assert!(empty.to_string().ends_with("root.tar is empty"), "{empty}");
    for path in ["/nonexistent.tar", "/"] {
        let input = ImportInput::File(path.into());
        let refused = scene.images.import(spec("mine", input), Arc::new(|_| ())).await.unwrap_err();
        assert!(refused.to_string().contains(path), "{refused}");
    }
    assert_eq!(scene.host.faults().count("storage.begin_base"), 0);
    scene.assert_empty("after refusals").await;
}

#[tokio::test]
async fn missing_assets_are_an_error_that_names_the_command() {
    let scene = Scene::new();
    fs::remove_file(scene.state.join("lib/vmlinux")).unwrap();
    let error = scene.import("mine", b"tar").await.unwrap_err();
    assert!(error.to_string().contains("agentiso init"), "{error}");
}

#[tokio::test]
async fn stream_is_passed_on_whole_and_its_progress_told() {
    let scene = Scene::new();
    let stages = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&stages);
    let stream = ImportInput::Stream(Box::pin(tokio::io::repeat(7).take(3_000_000)));
    let image = scene
        .images
        .import(spec("mine", stream), Arc::new(move |progress| seen.lock().unwrap().push(progress)))
        .await
        .unwrap();

    let told = stages.lock().unwrap();
    let order: Vec<Stage> = told.iter().map(|progress| progress.stage).collect();
    let mut once = order.clone();
    once.dedup();
    let expected =
        [Stage::Unpack, Stage::Boot, Stage::Unpack, Stage::InstallModules, Stage::Check, Stage::Seal];
    assert_eq!(once, expected);
    let most =
        told.iter().filter(|progress| progress.stage == Stage::Unpack).map(|progress| progress.done).max();
    assert_eq!((image.tar_bytes, most, image.bytes), (3_000_000, Some(3_000_000), STREAM_DISK_BYTES));
}

#[test]
fn disk_is_guessed_from_the_size_of_the_tar() {
    let guess = |bytes, first: &[u8]| {
        let stream = Box::pin(tokio::io::empty());
        guessed_disk_bytes(&Root { stream, name: String::new(), bytes, bootstrap: None }, first) / GIB
    };
    assert_eq!(guess(Some(1000), b"bin/"), 1);
    assert_eq!(guess(Some(GIB), b"bin/"), 3);
    assert_eq!(guess(Some(GIB / 2), &[0x1f, 0x8b]), 6);
    assert_eq!(guess(Some(u64::MAX), &[0x28, 0xb5, 0x2f, 0xfd]), 100);
    assert_eq!(guess(None, b""), 4);
}
