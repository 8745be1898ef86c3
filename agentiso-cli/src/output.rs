//! Results as JSON or as text for people.

use serde::Serialize;

use crate::{error::CliError, stdio};

/// How results are printed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// As JSON, one value on one line.
    pub(crate) json: bool,
}

impl Output {
    /// Prints the value as JSON, or else the text made of it (which ends with a newline or is empty).
    pub(crate) fn print<T: Serialize + ?Sized>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        let text = if self.json {
            let mut json = serde_json::to_string(value)
                .map_err(|source| CliError::local("could not write the result as JSON", source.into()))?;
            json.push('\n');
            json
        } else {
            text(value)
        };
        stdio::write_out(text.as_bytes()).map_err(CliError::stdout)
    }

    /// Prints the value as JSON, and nothing for people: that it was done is said by the exit status.
    pub(crate) fn print_json_only<T: Serialize + ?Sized>(self, value: &T) -> Result<(), CliError> {
        self.print(value, |_| String::new())
    }

    /// Says something to people on standard error; not with `--json`.
    pub(crate) fn say(self, line: &str) {
        if !self.json {
            stdio::say(line);
        }
    }
}

/// Rows under a heading, in columns two spaces apart.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = heading
        .iter()
        .enumerate()
        .map(|(column, title)| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .chain([title.chars().count()])
                .max()
                .unwrap_or(0)
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, width) in cells.zip(&widths) {
            text.push_str(&format!("{cell:<width$}  "));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    };
    let mut text = line(&mut heading.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// `name:  value` lines, the values below each other. A line break in a value continues below the value.
pub(crate) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.chars().count() + 1).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in fields {
        let mut label = format!("{name}:");
        for line in value.split('\n') {
            text.push_str(format!("{label:<width$}  {line}").trim_end());
            text.push('\n');
            label.clear();
        }
    }
    text
}

/// A number of bytes with three significant digits and a binary unit: `999 B`, `1.50 KiB`, `10.0 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut unit = 0;
    // Up to 2^53 exact, beyond that to 16 digits: more than is shown.
    #[allow(clippy::cast_precision_loss)]
    let mut value = count as f64 / 1024.0;
    // 1023.5 and up would be shown as 1024 of the unit.
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// How long ago that was, coarsely: `12 s`, `5 min`, `3 h`, `4 d`. Something in the future is `0 s` ago.
pub(crate) fn age(seconds_since_1970: u64) -> String {
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    duration(now.saturating_sub(seconds_since_1970))
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A time as `2026-01-31 23:59:59 UTC`.
pub(crate) fn utc(seconds_since_1970: u64) -> String {
    let (days, rest) = (seconds_since_1970 / 86_400, seconds_since_1970 % 86_400);
    // Howard Hinnant's civil_from_days, for dates from 1970 on.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", rest / 3_600, rest / 60 % 60, rest % 60)
}

/// `yes` or `no`.
pub(crate) fn yes_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

/// Text that a guest wrote, safe to show on a terminal: control characters but newline and tab become `U+FFFD`, and
/// so does what is not UTF-8.
pub(crate) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .replace("\r\n", "\n")
        .chars()
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits_and_a_unit() {
        for (count, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (10 * 1024 * 1024, "10.0 MiB"),
            (1024 * 1024 - 1, "1.00 MiB"),
            (300 * 1024 * 1024, "300 MiB"),
            (100 * 1024 * 1024 * 1024, "100 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), expected, "{count}");
        }
    }

    #[test]
    fn durations_are_coarse() {
        for (seconds, expected) in
            [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7_199, "119 min"), (7_200, "2 h"), (172_800, "2 d")]
        {
            assert_eq!(duration(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn utc_knows_leap_years() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn table_columns_are_as_wide_as_their_widest_cell() {
        let text =
            table(&["NAME", "X"], &[vec!["a".into(), "1".into()], vec!["longer".into(), String::new()]]);

        assert_eq!(text, "NAME    X\na       1\nlonger\n");
    }

    #[test]
    fn fields_continue_below_their_value() {
        assert_eq!(fields(&[("a", "1\n2".into()), ("long", "3".into())]), "a:     1\n       2\nlong:  3\n");
    }

    #[test]
    fn printable_defuses_terminal_escapes() {
        assert_eq!(printable(b"a\x1b[31m\tb\r\n\xff\x07\r"), "a\u{fffd}[31m\tb\n\u{fffd}\u{fffd}\u{fffd}");
    }
}
