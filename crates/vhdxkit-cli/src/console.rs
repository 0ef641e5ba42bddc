//! What a person sees: sizes, offsets, progress; and how a person stops it.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use vhdxkit::ops::Progress;

/// `VHDX_LOG=debug` shows what the library does; nothing otherwise.
pub(crate) fn start_logging() {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("VHDX_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    }
}

/// Prints a JSON value, indented, with a newline.
pub(crate) fn print_json(value: &Value) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

/// Bytes for people: `64 MiB`, `1.5 GiB`, `512 bytes`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let (mut unit, mut scale) = (UNITS[0], 1024u64);
    for name in &UNITS[1..] {
        if bytes < scale * 1024 {
            break;
        }
        (unit, scale) = (name, scale * 1024);
    }
    match (bytes / scale, bytes % scale) {
        (whole, 0) => format!("{whole} {unit}"),
        (whole, rest) => {
            let tenths = u128::from(rest) * 10 / u128::from(scale);
            format!("{whole}.{tenths} {unit}")
        }
    }
}

/// Writes the count with its noun: `1 entry`, `3 entries`.
pub(crate) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// What no reader sees, what a terminal obeys, or what turns the text around it about.
pub(crate) fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{200B}'..='\u{200F}'
                | '\u{2028}'..='\u{202E}'
                | '\u{2060}'..='\u{206F}'
                | '\u{FEFF}'
                | '\u{FFFE}'
                | '\u{FFFF}'
                | '\u{E0000}'..='\u{E007F}'
        )
}

/// A text that others have chosen, with what is hidden in it made visible.
pub(crate) fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match is_hidden(character) {
            true => shown.extend(character.escape_unicode()),
            false => shown.push(character),
        }
    }
    shown
}

/// The name of a file, for the eye; a command that is printed takes it quoted.
pub(crate) fn named(path: &Path) -> String {
    shown(&path.display().to_string())
}

/// A path as a shell takes it, and the command behind it: one that begins with a dash is no option.
pub(crate) fn quoted(path: &Path) -> String {
    let name = path.as_os_str().as_encoded_bytes();
    match name.starts_with(b"-") {
        true => quoted_bytes(&[b"./", name].concat()),
        false => quoted_bytes(name),
    }
}

/// Any text as a shell takes it.
pub(crate) fn quoted_word(text: &str) -> String {
    quoted_bytes(text.as_bytes())
}

/// The same of a name that need be no text: a name with U+FFFD in it would be another file's.
fn quoted_bytes(name: &[u8]) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+:@%,".contains(c);
    if let Ok(text) = std::str::from_utf8(name)
        && !text.contains(is_hidden)
    {
        return match text.chars().all(plain) && !text.is_empty() {
            true => text.to_owned(),
            false => format!("'{}'", text.replace('\'', "'\\''")),
        };
    }
    // As bash, zsh and ksh spell what is not to be seen by a terminal.
    let mut word = "$'".to_owned();
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\'' | '\\' => word.extend(['\\', character]),
                hidden if is_hidden(hidden) => {
                    word.extend([format!("\\U{:08x}", u32::from(hidden))]);
                }
                other => word.push(other),
            }
        }
        // Three digits are all that an octal number takes: a digit that follows stands for itself.
        word.extend(chunk.invalid().iter().map(|byte| format!("\\{byte:03o}")));
    }
    word.push('\'');
    word
}

/// Columns of a terminal that nobody has widened.
const COLUMNS: usize = 79;

/// Writes `text` behind `first`, in lines that a terminal shows as they are; those that follow begin with as
/// many spaces as `indent` says.
pub(crate) fn wrapped(
    out: &mut impl Write,
    first: &str,
    indent: usize,
    text: &str,
) -> io::Result<()> {
    let mut line = first.to_owned();
    let mut empty = true;
    for word in text.split(' ') {
        let room = line.chars().count() + usize::from(!empty) + word.chars().count() <= COLUMNS;
        if !room && !empty {
            writeln!(out, "{}", line.trim_end())?;
            line = " ".repeat(indent);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    writeln!(out, "{}", line.trim_end())
}

/// Breaks lines between words where a terminal would break them anywhere. Whoever is no terminal gets them whole, and
/// a command to type stays whole everywhere.
pub(crate) struct Lines<W: Write> {
    out: W,
    line: Vec<u8>,
    breaks: bool,
}

impl<W: Write + IsTerminal> Lines<W> {
    pub(crate) fn to(out: W) -> Self {
        let breaks = out.is_terminal();
        Self { out, line: Vec::new(), breaks }
    }
}

impl<W: Write> Lines<W> {
    fn end_line(&mut self) -> io::Result<()> {
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        let text = line.trim_start();
        let indent = line.len() - text.len();
        match self.breaks && line.chars().count() > COLUMNS && !text.starts_with("vhdx ") {
            true => wrapped(&mut self.out, &line[..indent], indent + 2, text),
            false => writeln!(self.out, "{line}"),
        }
    }
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            match piece.strip_suffix(b"\n") {
                Some(end) => {
                    self.line.extend(end);
                    self.end_line()?;
                }
                None => self.line.extend(piece),
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

static STOP: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C and SIGTERM ask the work to stop and clean up; a second one ends it at once.
pub(crate) fn stop_on_signal() {
    // A handler that cannot be set leaves the system's: then a stop is just less tidy.
    let _ = ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    });
}

/// From now on Ctrl-C and SIGTERM have `end` called, in a thread of its own; a second one ends the process
/// at once, after `hurry`.
#[cfg(target_os = "linux")]
pub(crate) fn end_on_signal(
    mut end: impl FnMut() + Send + 'static,
    mut hurry: impl FnMut() + Send + 'static,
) {
    let mut first = true;
    // A handler that cannot be set leaves the system's: then the end is that of a kill.
    let _ = ctrlc::set_handler(move || {
        if !std::mem::take(&mut first) {
            hurry();
            std::process::exit(130);
        }
        end();
    });
}

/// A progress bar on stderr; nothing when stderr is no terminal or the user wants quiet.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// A bar over `total` bytes.
    pub(crate) fn new(what: &'static str, total: u64, quiet: bool) -> Self {
        let bar = ProgressBar::new(total);
        if quiet || !io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let style = "{msg} [{wide_bar}] {percent:>3}%  {bytes} of {total_bytes}, {eta} left";
        bar.set_style(
            ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_message(what);
        Self(bar)
    }
}

impl Progress for Bar {
    fn advance(&mut self, bytes: u64) -> ControlFlow<()> {
        self.0.inc(bytes);
        if STOP.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_broken_between_words() {
        let mut out = Vec::new();
        let text = format!("{} {} end", "a".repeat(70), "b".repeat(100));
        wrapped(&mut out, "  1. ", 5, &text).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], format!("  1. {}", "a".repeat(70)));
        assert_eq!(lines[1], format!("     {}", "b".repeat(100)));
        assert_eq!(lines[2], "     end");
    }

    /// The plan of a compaction was broken in the middle of words at the edge of a terminal.
    #[test]
    fn lines_for_a_terminal_are_broken_between_words() {
        let long = format!("  one {}", "word ".repeat(20).trim_end());
        let command = format!("    vhdx compact {} x", "a".repeat(90));
        for (breaks, lines) in [(true, 3), (false, 2)] {
            let mut out = Lines { out: Vec::new(), line: Vec::new(), breaks };
            write!(out, "{}", &long[..5]).unwrap();
            writeln!(out, "{}\n{command}", &long[5..]).unwrap();
            let text = String::from_utf8(out.out).unwrap();
            let found: Vec<&str> = text.lines().collect();
            assert_eq!(found.len(), lines, "{text}");
            assert_eq!(found.last(), Some(&command.as_str()));
            assert!(!breaks || found[0].len() <= 79 && found[1].starts_with("    word"), "{text}");
        }
    }

    #[test]
    fn what_a_terminal_obeys_is_made_visible() {
        assert_eq!(named("a\u{1b}[2J\u{202e}ä b".as_ref()), "a\\u{1b}[2J\\u{202e}ä b");
    }

    #[test]
    fn a_printed_path_can_be_typed() {
        assert_eq!(quoted("/a b/it's".as_ref()), r"'/a b/it'\''s'");
    }

    /// A name that is no UTF-8 was printed with U+FFFD, and what was printed named no file.
    #[cfg(unix)]
    #[test]
    fn a_printed_path_that_is_no_text_can_be_typed() {
        use std::os::unix::ffi::OsStrExt;
        let name = b"-bad\xff1 it's.vhdx";
        let word = quoted(Path::new(std::ffi::OsStr::from_bytes(name)));
        assert_eq!(word, r"$'./-bad\3771 it\'s.vhdx'");
        let echo = format!("printf %s {word}");
        let Ok(output) = std::process::Command::new("bash").args(["-c", &echo]).output() else {
            return;
        };
        assert_eq!(output.stdout, b"./-bad\xff1 it's.vhdx");
    }

    #[test]
    fn sizes_read_well() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (64 << 20, "64 MiB"),
            (64 << 40, "64 TiB"),
            (u64::MAX, "16383.9 PiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
