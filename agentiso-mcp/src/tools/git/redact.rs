//! Credentials taken out of what git says.

/// What stands in a secret's place.
const REDACTED: &str = "***";

/// Shortest secret that is replaced wherever it occurs: shorter ones are parts of ordinary words.
const MIN_SECRET_BYTES: usize = 4;

/// Beginnings of access tokens of common forges.
const TOKEN_PREFIXES: [&str; 10] =
    ["ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "gldt-", "ATBB", "xoxb-"];

/// Characters that such tokens need at least behind their beginning.
const MIN_TOKEN_BYTES: usize = 8;

/// Parameters of URLs and configuration whose values are secrets.
const SECRET_KEYS: [&str; 8] = [
    "access_token",
    "private_token",
    "oauth_token",
    "password",
    "passwd",
    "api_key",
    "client_secret",
    "token",
];

/// Headers whose values are secrets.
const SECRET_HEADERS: [&str; 4] = ["authorization:", "proxy-authorization:", "private-token:", "cookie:"];

/// Secrets that are known, besides those that show by their form.
#[derive(Default)]
pub(super) struct Secrets {
    known: Vec<String>,
}

impl Secrets {
    /// The secrets in a URL that a caller gave.
    pub(super) fn of_url(url: &str) -> Self {
        let mut known = Vec::new();
        if let Some(userinfo) = userinfo(url) {
            for part in userinfo.splitn(2, ':') {
                known.push(part.to_owned());
                known.push(percent_decoded(part));
            }
            known.push(userinfo.to_owned());
        }
        // A user name as in ssh's git@host is no secret.
        known.retain(|secret| secret.len() >= MIN_SECRET_BYTES);
        known.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        known.dedup();
        Self { known }
    }

    /// The text with every secret replaced.
    pub(super) fn redact(&self, text: &str) -> String {
        let mut clean = redact_userinfo(text);
        for secret in &self.known {
            clean = clean.replace(secret.as_str(), REDACTED);
        }
        let clean = redact_headers(&clean);
        let clean = redact_values(&clean);
        let clean = redact_tokens(&clean);
        // Again: with a value the end of an authority may have gone, and more stands before an `@` now.
        redact_userinfo(&clean)
    }
}

/// What stands between `://` and the last `@` of the authority.
fn userinfo(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = &rest[..rest.find(is_end_of_authority).unwrap_or(rest.len())];
    authority.rsplit_once('@').map(|(userinfo, _)| userinfo)
}

/// White space, quotes, and what begins a path or what follows it.
fn is_end_of_authority(c: char) -> bool {
    c.is_whitespace() || matches!(c, '/' | '?' | '#' | '\'' | '"' | '<' | '>' | '\\')
}

/// Every `scheme://userinfo@host` becomes `scheme://***@host`.
fn redact_userinfo(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        clean.push_str(before);
        let end = after.find(is_end_of_authority).unwrap_or(after.len());
        match after[..end].rfind('@') {
            Some(host) => {
                clean.push_str(REDACTED);
                rest = &after[host..];
            }
            None => rest = after,
        }
    }
    clean.push_str(rest);
    clean
}

/// Everything behind the name of a secret header, to the end of its line.
fn redact_headers(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let lower = line.to_ascii_lowercase();
        match SECRET_HEADERS.iter().filter_map(|name| lower.find(name).map(|at| at + name.len())).min() {
            Some(end) => {
                clean.push_str(&line[..end]);
                clean.push(' ');
                clean.push_str(REDACTED);
                if line.ends_with('\n') {
                    clean.push('\n');
                }
            }
            None => clean.push_str(line),
        }
    }
    clean
}

/// The values of `key=value` with a secret key.
fn redact_values(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let mut clean = String::with_capacity(text.len());
    let mut done = 0;
    let mut at = 0;
    while let Some(found) = lower[at..].find('=') {
        let equals = at + found;
        at = equals + 1;
        if !SECRET_KEYS.iter().any(|key| lower[..equals].ends_with(key)) {
            continue;
        }
        let value = &text[at..];
        let length = value.find(|c: char| c.is_whitespace() || matches!(c, '&' | '\'' | '"' | ';' | '#'));
        let length = length.unwrap_or(value.len());
        if length > 0 {
            clean.push_str(&text[done..at]);
            clean.push_str(REDACTED);
            at += length;
            done = at;
        }
    }
    clean.push_str(&text[done..]);
    clean
}

/// What looks like an access token.
fn redact_tokens(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    loop {
        let next =
            TOKEN_PREFIXES.iter().filter_map(|prefix| rest.find(prefix).map(|at| (at, prefix.len()))).min();
        let Some((at, length)) = next else { break };
        let body = &rest[at + length..];
        let end =
            body.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-').unwrap_or(body.len());
        clean.push_str(&rest[..at]);
        if end >= MIN_TOKEN_BYTES {
            clean.push_str(REDACTED);
        } else {
            clean.push_str(&rest[at..at + length + end]);
        }
        rest = &body[end..];
    }
    clean.push_str(rest);
    clean
}

/// `%40` becomes `@`; what is no escape stays.
fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                decoded.push(byte);
                at += 3;
            }
            _ => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn credentials_of_urls_are_replaced_wherever_they_are() {
        let secrets = Secrets::of_url("https://alice:s3cr%40t-pass@example.com/r.git");
        for (text, expected) in [
            (
                "fatal: Authentication failed for 'https://alice:s3cr%40t-pass@example.com/r.git/'",
                "fatal: Authentication failed for 'https://***@example.com/r.git/'",
            ),
            ("remote said s3cr@t-pass", "remote said ***"),
            ("user alice is unknown", "user *** is unknown"),
            ("To https://x:y@h/p\nTo ssh://git@h/p", "To https://***@h/p\nTo ssh://***@h/p"),
            ("https://a@b:pw@host/x", "https://***@host/x"),
            ("https://example.com/a@b", "https://example.com/a@b"),
            ("https://h_token=a/b;c@d", "https://***@d"),
            ("git@github.com:me/r.git", "git@github.com:me/r.git"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(secrets.redact(text), expected);
        }
    }

    #[test]
    fn headers_parameters_and_tokens_are_replaced() {
        for (text, expected) in [
            ("> Authorization: Basic YWxpY2U6cHc=\r\n> Host: h", "> Authorization: ***\n> Host: h"),
            ("http.extraheader=AUTHORIZATION: bearer abc", "http.extraheader=AUTHORIZATION: ***"),
            ("GET /x?access_token=abc&page=2", "GET /x?access_token=***&page=2"),
            ("PASSWORD=hunter2 next", "PASSWORD=*** next"),
            ("page=2", "page=2"),
            ("token ghp_0123456789abcdefABCDEF0123456789abcd.", "token ***."),
            ("glpat-abcdefgh1234 x", "*** x"),
            ("a branch named ghp_short", "a branch named ghp_short"),
        ] {
            assert_eq!(Secrets::default().redact(text), expected);
        }
    }

    #[test]
    fn short_user_names_are_no_secrets_of_their_own() {
        assert_eq!(Secrets::of_url("ssh://git@host/r").redact("git said no"), "git said no");
    }

    proptest! {
        #[test]
        fn password_is_never_shown(
            user in "[a-z]{1,8}", password in "[A-Za-z0-9!$%._~-]{6,20}", before in ".{0,20}", after in ".{0,20}",
        ) {
            let url = format!("https://{user}:{password}@example.com/r.git");
            let secrets = Secrets::of_url(&url);
            let shown = secrets.redact(&format!("{before}{url} {password} {after}"));
            // What stood around it may hold it by chance only if it was given so.
            prop_assert!(!shown.contains(&password) || before.contains(&password) || after.contains(&password));
            let by_form = Secrets::default().redact(&format!("x {url} y"));
            let with_host = format!("{password}@");
            prop_assert!(!by_form.contains(&with_host));
        }

        #[test]
        fn any_text_is_taken(text in ".*", url in ".*") {
            let _ = Secrets::of_url(&url).redact(&text);
        }
    }
}
