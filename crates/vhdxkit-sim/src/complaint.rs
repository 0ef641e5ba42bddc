//! What does not hold of a crash state, and whether a user would be told.

use std::fmt;

/// What does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Complaint {
    /// The image cannot be opened or read, or a check finds something: its owner is told.
    Told(String),
    /// The guest is shown what it wrote before, not what a flush has made durable since.
    Older(String),
    /// Anything else: the guest is shown bytes that it never wrote there.
    Wrong(String),
    /// The code under test has panicked.
    Panicked,
}

impl Complaint {
    /// The same, with what was being done in front.
    #[must_use]
    pub fn during(self, what: &str) -> Self {
        let with = |text: String| format!("{what}: {text}");
        match self {
            Self::Told(text) => Self::Told(with(text)),
            Self::Older(text) => Self::Older(with(text)),
            Self::Wrong(text) => Self::Wrong(with(text)),
            Self::Panicked => Self::Panicked,
        }
    }

    /// For errors of the library.
    pub fn told(what: &'static str) -> impl FnOnce(vhdxkit::Error) -> Self {
        move |error| Self::Told(format!("{what}: {error}"))
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Told(text) | Self::Older(text) | Self::Wrong(text) => f.write_str(text),
            Self::Panicked => f.write_str("it panicked"),
        }
    }
}
