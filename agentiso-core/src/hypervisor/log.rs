//! What machines print, which guests write and so cannot be trusted to be text.

/// The text in a log, safe for a terminal: control characters but newline and tab are left out, and so are escape
/// sequences' beginnings; what is not UTF-8 becomes U+FFFD.
pub fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .filter(|c| matches!(c, '\n' | '\t') || !(c.is_control() || is_invisible_direction(*c)))
        .collect()
}

/// Characters that change the order in which a terminal shows others.
fn is_invisible_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_left_out() {
        let hostile = b"a\x1b[2J\x07b\r\nc\td\xff\xc2\x9be\xe2\x80\xaef";

        assert_eq!(printable(hostile), "a[2Jb\nc\td\u{fffd}ef");
    }
}
