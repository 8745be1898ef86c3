//! Progress on standard error, on a terminal only.

use std::{borrow::Cow, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a spinner turns, and a bar is drawn at most.
const TICK: Duration = Duration::from_millis(120);

/// Something that takes its time. It disappears from the terminal when it is dropped.
#[derive(Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// A spinner with a text and the time it has taken. Nothing is shown where standard error is no terminal.
    pub(crate) fn spinner(what: impl Into<String>, show: bool) -> Self {
        let bar = ProgressBar::with_draw_target(None, target(show));
        bar.set_style(style("{spinner} {msg} ({elapsed})"));
        bar.set_message(Cow::Owned(what.into()));
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    /// Says what is being done, how many bytes of how many are done, and how fast it goes.
    pub(crate) fn bytes(&self, what: String, done: u64, total: Option<u64>) {
        if self.0.length() != total {
            self.0.set_style(style(match total {
                Some(_) => "{spinner} {msg} {wide_bar} {bytes}/{total_bytes} ({eta})",
                None => "{spinner} {msg} {bytes} ({bytes_per_sec})",
            }));
            match total {
                Some(total) => self.0.set_length(total),
                None => self.0.unset_length(),
            }
        }
        if self.0.message() != what {
            self.0.set_message(what);
        }
        self.0.set_position(done);
    }

    /// Says what is being done, where there are no bytes to count.
    pub(crate) fn stage(&self, what: String) {
        self.0.set_style(style("{spinner} {msg} ({elapsed})"));
        self.0.set_message(what);
    }

    /// Prints a line on standard error without disturbing what is drawn.
    pub(crate) fn say(&self, line: &str) {
        self.0.suspend(|| crate::stdio::say(line));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn target(show: bool) -> ProgressDrawTarget {
    // indicatif draws nothing when standard error is no terminal.
    if show { ProgressDrawTarget::stderr_with_hz(8) } else { ProgressDrawTarget::hidden() }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_valid() {
        for template in [
            "{spinner} {msg} ({elapsed})",
            "{spinner} {msg} {wide_bar} {bytes}/{total_bytes} ({eta})",
            "{spinner} {msg} {bytes} ({bytes_per_sec})",
        ] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
