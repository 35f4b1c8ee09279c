//! Where commands write their answers. The only file of the command line that prints.

use std::{
    fmt,
    io::{self, Write},
};

use serde::Serialize;

/// Answers as JSON, or as text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    pub(super) json: bool,
}

impl Output {
    /// The answer: as one line of JSON, or as its text.
    pub(super) fn tell(self, value: &impl Serialize, text: &dyn fmt::Display) {
        let line = match self.json {
            true => serde_json::to_string(value).unwrap_or_default(),
            false => printable(&text.to_string()),
        };
        self.line(&line);
    }

    /// One line, or several. A reader that has gone away (`| head`) is no failure.
    pub(super) fn line(self, line: &str) {
        let mut out = io::stdout().lock();
        writeln!(out, "{}", line.trim_end_matches('\n')).ok();
        out.flush().ok();
    }
}

pub(super) fn to_stderr(text: &str) {
    io::stderr().lock().write_all(text.as_bytes()).ok();
}

/// Text without what a terminal would obey: names come from databases (I36).
pub(super) fn printable(text: &str) -> String {
    let turns = |c| matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
    let show = |c: char| match c {
        '\n' => c,
        c if c.is_control() || turns(c) => '\u{FFFD}',
        c => c,
    };
    text.chars().map(show).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_not_told_to_do_anything() {
        assert_eq!(printable("a\x1b[2J\u{202E}b\nc"), "a\u{FFFD}[2J\u{FFFD}b\nc");
    }
}
