//! What git in a workspace printed, or what anything prints that was put in git's place there.

use super::{
    redact::Secrets,
    status_format::{Status, parse},
};

/// Reads bytes as the answer of `git status`, as a whole and as one that was cut off at its end.
///
/// # Panics
/// A path was made up, the lists contradict each other, or an answer that is cut reads otherwise than the whole one.
pub fn git_status(bytes: &[u8]) {
    if let Ok(status) = parse(bytes, true) {
        check(&status, bytes);
        let middle = bytes.len() / 2;
        let cut = parse(&bytes[..middle], false);
        let Ok(cut) = cut else { panic!("the beginning of an answer is refused: {cut:?}") };
        check(&cut, &bytes[..middle]);
        for (beginning, all) in lists(&cut).into_iter().zip(lists(&status)) {
            assert!(all.starts_with(beginning), "{beginning:?} is no beginning of {all:?}");
        }
        assert!(status.renames.starts_with(&cut.renames), "renames of a cut answer are others");
    }
    if let Err(refused) = parse(bytes, false) {
        assert!(refused.entry.len() <= 4 * 80, "an error repeats too much: {refused:?}");
        assert!(!refused.entry.contains(char::is_control), "an error steers a terminal: {refused:?}");
    }
}

/// Shows bytes as git's words to somebody who gave a URL with credentials: the first line is the URL, the rest what git
/// said.
///
/// # Panics
/// Credentials of a URL are in what is shown.
pub fn git_words(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (url, said) = text.split_once('\n').unwrap_or((&text, &text));
    for shown in [Secrets::of_url(url).redact(said), Secrets::default().redact(said)] {
        for rest in shown.split("://").skip(1) {
            let end =
                rest.find(|c: char| c.is_whitespace() || "/?#'\"<>\\".contains(c)).unwrap_or(rest.len());
            let userinfo = rest[..end].rsplit_once('@').map(|(userinfo, _)| userinfo);
            assert!(userinfo.is_none_or(|it| it == "***"), "{userinfo:?} is shown in {shown:?}");
        }
    }
}

fn lists(status: &Status) -> [&Vec<String>; 4] {
    [&status.staged, &status.modified, &status.untracked, &status.conflicted]
}

fn check(status: &Status, bytes: &[u8]) {
    let entries = bytes.split(|byte| *byte == 0).count();
    assert_eq!(status.dirty, lists(status).iter().any(|list| !list.is_empty()));
    assert!(lists(status).iter().all(|list| list.len() <= entries) && status.renames.len() <= entries);
    let renamed = status.renames.iter().flat_map(|rename| [&rename.from, &rename.to]);
    for path in lists(status).into_iter().flatten().chain(renamed) {
        assert!(!path.contains('\0'), "two paths in one: {path:?}");
        // A path that is no text is shown with escapes, and so is not in there as it is.
        let is_given = bytes.windows(path.len().max(1)).any(|window| window == path.as_bytes());
        assert!(is_given || path.is_empty() || path.contains('\\'), "a path that nobody gave: {path:?}");
    }
    assert!(serde_json::to_string(status).is_ok(), "it can be sent");
}
