//! Lines of a description, and the warnings that come after them.

use std::fmt;

/// What is printed.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
    warnings: Vec<String>,
}

impl Page {
    /// One line, indented by three blanks a step.
    pub fn line(&mut self, depth: usize, text: impl fmt::Display) {
        self.text.push_str(&"   ".repeat(depth));
        self.text.push_str(&format!("{text}\n"));
    }

    /// A line between two things.
    pub fn rule(&mut self) {
        self.text.push_str("--------------------\n");
    }

    /// Something that is probably not meant; said once, at the end.
    pub fn warn(&mut self, text: impl fmt::Display) {
        let text = text.to_string();
        if !self.warnings.contains(&text) {
            self.warnings.push(text);
        }
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if !self.warnings.is_empty() {
            f.write_str("--------------------\n")?;
        }
        self.warnings.iter().try_for_each(|warning| writeln!(f, "Warning: {warning}"))
    }
}
