//! Texts of guests, cut to size.

/// The beginning of a text, at most `max` bytes, cut between two characters.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// The longest beginning of these bytes that does not end inside a UTF-8 character; bytes that are no UTF-8 anyway are
/// left as they are.
pub(super) fn whole_characters(bytes: &[u8]) -> &[u8] {
    // The last byte that begins a character, if that needs more than the bytes that are left.
    for back in 1..=bytes.len().min(3) {
        let at = bytes.len() - back;
        let length = match bytes[at] {
            0x80..=0xbf => continue,
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xff => 4,
            _ => 1,
        };
        return if length > back { &bytes[..at] } else { bytes };
    }
    bytes
}

/// The last lines of a text.
pub(super) fn last_lines(text: &str, lines: usize) -> &str {
    if lines == 0 {
        return "";
    }
    let body = text.strip_suffix('\n').unwrap_or(text);
    match body.rmatch_indices('\n').nth(lines - 1) {
        Some((index, _)) => &text[index + 1..],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cut_keeps_characters_whole() {
        assert_eq!(cut("äöü", 3), "ä");
        assert_eq!(cut("äöü", 4), "äö");
        assert_eq!(cut("abc", 9), "abc");
        assert_eq!(cut("€", 2), "");
    }

    #[test]
    fn half_a_character_is_left_out_and_garbage_is_not() {
        assert_eq!(whole_characters(b"a\xe2\x82"), b"a");
        assert_eq!(whole_characters("a€".as_bytes()), "a€".as_bytes());
        assert_eq!(whole_characters(b"a\xff\xe2\x82"), b"a\xff");
        assert_eq!(whole_characters(b"\x80\x80\x80\x80"), b"\x80\x80\x80\x80");
    }

    #[test]
    fn last_lines_counts_from_the_end() {
        for (text, lines, expected) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 1, "c"),
            ("a\nb\nc\n", 3, "a\nb\nc\n"),
            ("a\n", 9, "a\n"),
            ("a\n", 0, ""),
            ("", 1, ""),
        ] {
            assert_eq!(last_lines(text, lines), expected, "{text:?} {lines}");
        }
    }

    proptest! {
        #[test]
        fn cut_is_the_longest_whole_prefix(text in ".*", max in 0_usize..64) {
            let shown = cut(&text, max);
            prop_assert!(text.starts_with(shown) && shown.len() <= max.max(shown.len().min(max)));
            prop_assert!(shown.len() == text.len() || max - shown.len() < 4);
        }

        #[test]
        fn whole_characters_of_text_are_text(text in ".*", end in 0_usize..64) {
            let bytes = &text.as_bytes()[..end.min(text.len())];
            prop_assert!(std::str::from_utf8(whole_characters(bytes)).is_ok());
        }
    }
}
