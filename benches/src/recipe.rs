//! How a running machine was started, so that another one can be started the same way without agentiso.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{
            fs::MetadataExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use rustix::io::{FdFlags, fcntl_setfd};

use crate::Done;

/// A command line, and what its descriptors lead to.
pub(crate) struct Recipe {
    pub(crate) program: PathBuf,
    words: Vec<String>,
    sources: BTreeMap<RawFd, Source>,
    /// An empty top layer, which each machine gets a copy of.
    empty_layer: PathBuf,
}

/// What a process cannot be asked: QEMU closes what it has opened through its sets of descriptors.
pub(crate) struct Files {
    /// A disk layer into which nothing was written.
    pub(crate) empty_layer: PathBuf,
    /// The disk's layers by their ids.
    pub(crate) layers: BTreeMap<String, PathBuf>,
    /// The folder of memory images, one of which the machine was started from.
    pub(crate) images: PathBuf,
}

/// What a descriptor leads to.
enum Source {
    /// A file that nobody changes; opened anew for each machine.
    File(File),
    /// A device, by its path.
    Device(PathBuf),
    /// The machine's own disk layer.
    Layer { write: bool },
    /// A listening socket of this name.
    Listener(String),
    /// One end of a connected pair.
    Pair,
}

/// Everything a machine needs to be started, in a folder of its own that goes with it.
pub(crate) struct Prepared {
    pub(crate) words: Vec<String>,
    folder: tempfile::TempDir,
    /// Inherited by the machine under their present numbers.
    pub(crate) passed: Vec<OwnedFd>,
    /// The far ends of what the machine is connected to.
    pub(crate) far: Vec<UnixStream>,
}

impl Recipe {
    /// Reads it from a running machine's process.
    ///
    /// # Errors
    /// The process is gone, or uses something that is not known here.
    pub(crate) fn of(pid: u32, files: Files) -> Done<Self> {
        let process = Path::new("/proc").join(pid.to_string());
        let program = fs::read_link(process.join("exe"))?;
        let line = fs::read(process.join("cmdline"))?;
        let mut words = line.split(|byte| *byte == 0).skip(1).map(<[u8]>::to_vec).map(String::from_utf8);
        let words: Vec<String> = words.by_ref().collect::<Result<_, _>>()?;
        let words = without(words.strip_suffix(&[String::new()]).unwrap_or(&words), "-sandbox");
        let layer = words.iter().find_map(|word| word.split_once(",opaque=write-")).map(|(_, layer)| layer);
        let layer = layer.ok_or("its command line names no disk that is written to")?.to_owned();
        let mut sources = BTreeMap::new();
        let ram = words.iter().find_map(|word| word.split_once("mem-path=/proc/self/fd/"));
        let (_, ram) = ram.ok_or("its command line names no file that its memory is mapped from")?;
        let devices = devices(&process.join("fd").join(ram), &files.images)?;
        for word in &words {
            // QEMU has closed it since.
            if let Some(fd) = word.strip_prefix("fd=").and_then(|rest| rest.strip_suffix(",set=2")) {
                sources.insert(fd.parse()?, Source::File(File::open(&devices)?));
                continue;
            }
            for fd in descriptors(word) {
                sources.insert(fd, source(&process, fd, word, &layer, &files)?);
            }
        }
        Ok(Self { program, words, sources, empty_layer: files.empty_layer })
    }

    /// Opens everything anew for one machine.
    pub(crate) fn prepare(&self) -> Done<Prepared> {
        let folder = tempfile::Builder::new().prefix("agentiso-floor-").tempdir()?;
        let layer = folder.path().join("layer");
        fs::copy(&self.empty_layer, &layer)?;
        let mut numbers = BTreeMap::new();
        let (mut passed, mut far) = (Vec::new(), Vec::new());
        for (number, source) in &self.sources {
            let fd: OwnedFd = match source {
                Source::File(file) => File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?.into(),
                Source::Device(path) => File::options().read(true).write(true).open(path)?.into(),
                Source::Layer { write } => File::options().read(true).write(*write).open(&layer)?.into(),
                Source::Listener(name) => UnixListener::bind(folder.path().join(name))?.into(),
                Source::Pair => {
                    let (near, other) = UnixStream::pair()?;
                    far.push(other);
                    near.into()
                }
            };
            fcntl_setfd(&fd, FdFlags::empty()).map_err(io::Error::from)?;
            numbers.insert(*number, fd.as_raw_fd());
            passed.push(fd);
        }
        let words = self.words.iter().map(|word| renumber(word, &numbers)).collect();
        Ok(Prepared { words, folder, passed, far })
    }
}

impl Prepared {
    /// The path of one of the machine's sockets.
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// The device state that goes with a file of memory: it is kept beside it.
fn devices(ram: &Path, images: &Path) -> Done<PathBuf> {
    let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
    // Through an idmapped mount the same file is on another device.
    let (_, ram) = identity(ram)?;
    for image in fs::read_dir(images)? {
        let image = image?.path();
        if identity(&image.join("base.ram")).is_ok_and(|(_, inode)| inode == ram) {
            return Ok(image.join("devices"));
        }
    }
    Err(format!("no memory image in {} is what it was started from", images.display()).into())
}

/// What a descriptor of a process is, seen from the word that names it.
fn source(process: &Path, fd: RawFd, word: &str, layer: &str, files: &Files) -> Done<Source> {
    let path = process.join("fd").join(fd.to_string());
    if word.ends_with(&format!(",opaque=write-{layer}")) {
        return Ok(Source::Layer { write: true });
    }
    if word.ends_with(&format!(",opaque=read-{layer}")) {
        return Ok(Source::Layer { write: false });
    }
    if let Some((_, layer)) = word.split_once(",opaque=read-") {
        let path = files.layers.get(layer).ok_or_else(|| format!("its disk has no layer {layer}"))?;
        return Ok(Source::File(File::open(path)?));
    }
    if word.ends_with(",set=1") {
        return Ok(Source::Device("/dev/kvm".into()));
    }
    if word.starts_with("socket,") && word.contains(",server=on") {
        let name = word.split(',').find_map(|part| part.strip_prefix("id=")).unwrap_or("socket");
        return Ok(Source::Listener(name.to_owned()));
    }
    if word.starts_with("socket,") || word.starts_with("stream,") {
        return Ok(Source::Pair);
    }
    let link = fs::read_link(&path)?;
    if link.starts_with("/dev") {
        return Ok(Source::Device(link));
    }
    if !fs::metadata(&path)?.is_file() {
        return Err(format!("{} is no file, and {word:?} does not say what it is", link.display()).into());
    }
    Ok(Source::File(File::open(&path)?))
}

/// Marks that a descriptor's number follows.
const MARKS: [&str; 3] = ["/proc/self/fd/", "fd=", "addr.str="];

/// The places of descriptors' numbers in a word.
fn places(word: &str) -> Vec<(usize, usize)> {
    let mut places = Vec::new();
    for mark in MARKS {
        for (at, _) in word.match_indices(mark) {
            let begin = at + mark.len();
            let digits = word[begin..].bytes().take_while(u8::is_ascii_digit).count();
            if digits > 0 {
                places.push((begin, begin + digits));
            }
        }
    }
    places.sort_unstable();
    places
}

fn descriptors(word: &str) -> Vec<RawFd> {
    places(word).into_iter().filter_map(|(begin, end)| word[begin..end].parse().ok()).collect()
}

/// A word with other descriptors' numbers.
fn renumber(word: &str, numbers: &BTreeMap<RawFd, RawFd>) -> String {
    let mut text = String::new();
    let mut copied = 0;
    for (begin, end) in places(word) {
        text.push_str(&word[copied..begin]);
        match word[begin..end].parse().ok().and_then(|number: RawFd| numbers.get(&number)) {
            Some(number) => text.push_str(&number.to_string()),
            None => text.push_str(&word[begin..end]),
        }
        copied = end;
    }
    text.push_str(&word[copied..]);
    text
}

/// The words without an option and its value.
fn without(words: &[String], option: &str) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == option {
            words.next();
        } else {
            kept.push(word.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_word_is_renumbered_and_the_rest_is_kept() {
        let numbers = BTreeMap::from([(3, 30), (4, 40)]);
        let renumbered = [
            "fd=3,set=4,opaque=write-3",
            "memory-backend-file,mem-path=/proc/self/fd/4",
            "stream,id=net,addr.type=fd,addr.str=3",
            "socket,id=slot3,fd=4,server=on",
            r#"{"filename":"/dev/fdset/3"}"#,
        ]
        .map(|word| renumber(word, &numbers));

        assert_eq!(
            renumbered,
            [
                "fd=30,set=4,opaque=write-3",
                "memory-backend-file,mem-path=/proc/self/fd/40",
                "stream,id=net,addr.type=fd,addr.str=30",
                "socket,id=slot3,fd=40,server=on",
                r#"{"filename":"/dev/fdset/3"}"#,
            ]
        );
    }

    #[test]
    fn option_goes_with_its_value() {
        let words = ["-a", "-sandbox", "on", "-b"].map(str::to_owned);

        assert_eq!(without(&words, "-sandbox"), ["-a", "-b"]);
    }
}
