/// Longest text of a guest's error that is shown, in characters.
const MAX_TEXT_CHARS: usize = 1024;

/// A guest's text, made fit to be shown: one line, no control characters or others that rearrange a terminal's text,
/// and cut to 1024 characters. A guest chooses its texts freely and must not be able to forge a log line or drive the
/// reader's terminal.
pub fn clean_text(text: &str) -> String {
    let mut shown = text.chars().map(|c| if is_unfit(c) { ' ' } else { c });
    let mut clean: String = shown.by_ref().take(MAX_TEXT_CHARS).collect();
    if shown.next().is_some() {
        clean.push('…');
    }
    clean
}

fn is_unfit(c: char) -> bool {
    // Besides control characters: line separators, and marks that change the direction of the text around them.
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_become_spaces() {
        assert_eq!(clean_text("a\n\x1b[31mb\0c\u{202e}d\u{9b}e"), "a  [31mb c d e");
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(clean_text(&"ä".repeat(1024)), "ä".repeat(1024));
        assert_eq!(clean_text(&"ä".repeat(1025)), format!("{}…", "ä".repeat(1024)));
    }
}
