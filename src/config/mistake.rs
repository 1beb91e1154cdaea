//! Mistakes in the configuration, and how they are printed.

use std::fmt;

use serde::Serialize;

/// What a variable of the environment begins with to be ours.
pub(super) const PREFIX: &str = "GATEWAY_";

/// One mistake in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mistake {
    /// Line in the file, from 1; none if it came from the environment.
    pub line: Option<usize>,
    /// The row or key.
    pub place: String,
    /// What is wrong and what to write instead.
    pub text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}: {}", self.place, self.text),
            None => write!(f, "{}: {}", self.place, self.text),
        }
    }
}

/// Every mistake, and where they were made.
#[derive(Debug)]
pub struct Mistakes {
    /// The file, or what stands for it.
    pub source: String,
    /// In the order of lines, those of the environment first.
    pub mistakes: Vec<Mistake>,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mistake in &self.mistakes {
            let of_environment = mistake.line.is_none() && mistake.place.starts_with(PREFIX);
            let source = if of_environment { "environment" } else { &self.source };
            writeln!(f, "{source}: {mistake}")?;
        }
        match self.mistakes.len() {
            1 => write!(f, "1 mistake"),
            count => write!(f, "{count} mistakes"),
        }
    }
}
