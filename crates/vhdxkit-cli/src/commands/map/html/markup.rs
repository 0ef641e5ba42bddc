//! HTML that what it shows cannot break.
//!
//! Labels, names and paths come from a disk that may be hostile. Markup can only be written as
//! `&'static str`, that is by this program's text; everything else goes through [`Escaped`]. Elements are closed
//! by construction. The result is HTML, and XML too.

use std::fmt::{self, Display, Write as _};

use crate::console::is_hidden;

/// A page under construction.
#[derive(Default)]
pub(super) struct Html(String);

/// Attributes: their names are ours, their values anybody's.
pub(super) type Attributes<'a> = &'a [(&'static str, &'a dyn Display)];

impl Html {
    /// Our own markup, as it stands.
    pub(super) fn fixed(&mut self, markup: &'static str) {
        self.0.push_str(markup);
    }

    /// Text of any origin.
    pub(super) fn text(&mut self, text: impl Display) {
        // Writing into a string does not fail.
        let _ = write!(Escaped(&mut self.0), "{text}");
    }

    /// An element and what is in it.
    pub(super) fn element(
        &mut self,
        tag: &'static str,
        attributes: Attributes<'_>,
        inside: impl FnOnce(&mut Self),
    ) {
        self.open(tag, attributes);
        self.0.push('>');
        inside(self);
        self.0.push_str("</");
        self.0.push_str(tag);
        self.0.push('>');
    }

    /// An element with text.
    pub(super) fn line(
        &mut self,
        tag: &'static str,
        attributes: Attributes<'_>,
        text: impl Display,
    ) {
        self.element(tag, attributes, |html| html.text(text));
    }

    /// An element with nothing in it.
    pub(super) fn empty(&mut self, tag: &'static str, attributes: Attributes<'_>) {
        self.open(tag, attributes);
        self.0.push_str("/>");
    }

    /// A table with its head; `rows` writes its body.
    pub(super) fn table(&mut self, heads: &[&'static str], rows: impl FnOnce(&mut Self)) {
        self.element("table", &[], |html| {
            html.element("thead", &[], |html| {
                html.element("tr", &[], |html| {
                    for head in heads {
                        html.line("th", &[("scope", &"col")], head);
                    }
                });
            });
            html.element("tbody", &[], rows);
        });
        self.0.push('\n');
    }

    fn open(&mut self, tag: &'static str, attributes: Attributes<'_>) {
        self.0.push('<');
        self.0.push_str(tag);
        for (name, value) in attributes {
            self.0.push(' ');
            self.0.push_str(name);
            self.0.push_str("=\"");
            self.text(value);
            self.0.push('"');
        }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0.into_bytes()
    }
}

/// Escapes what is written to it, for text and for attributes in quotes.
struct Escaped<'a>(&'a mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                '\n' => self.0.push('\n'),
                // What no reader sees, or what turns the text around it about.
                other if is_hidden(other) => {
                    let _ = write!(self.0, "\\u{{{:x}}}", u32::from(other));
                }
                other => self.0.push(other),
            }
        }
        Ok(())
    }
}

/// A text of bounded length.
pub(super) fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_shown_becomes_markup() {
        let hostile = "</title><script>alert('1')</script>&amp;\" onload=\"x\u{202E}\0\u{1b}";
        let mut html = Html::default();
        html.element("p", &[("title", &hostile)], |html| html.text(hostile));
        let page = String::from_utf8(html.into_bytes()).unwrap();
        let shown = "&lt;/title&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;amp;&quot; onload=&quot;x\\u{202e}\\u{0}\\u{1b}";
        assert_eq!(page, format!("<p title=\"{shown}\">{shown}</p>"));
    }

    #[test]
    fn cut_text_ends_between_characters() {
        assert_eq!(cut("äöü", 3), "äöü");
        assert_eq!(cut("äöü", 2), "äö…");
    }
}
