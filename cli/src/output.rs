//! How answers are shown: tables for people, JSON and YAML for programs.

use anyhow::Result;
use comfy_table::{Table, presets};
use osier_core::{say, stdout};
use serde::Serialize;

/// Output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[value(alias = "short")]
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// An empty table with a header and no lines, as kubectl's.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    // Columns are apart by what the left one has on its right; the first stands at the edge.
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 2));
    });
    table
}

/// A table as text, without blanks at the ends of lines.
pub fn text(table: &Table) -> String {
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// Prints a value for programs; a table is the caller's.
pub fn print(value: &impl Serialize, format: Output) -> Result<()> {
    match format {
        Output::Yaml => stdout::print(format_args!("{}", serde_saphyr::to_string(value)?)),
        Output::Json | Output::Table => say!("{}", serde_json::to_string_pretty(value)?),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_stand_at_the_edge_and_end_where_their_text_ends() {
        let mut shown = table(&["NAME", "STATE"]);
        shown.add_row(["a-long-name", "x"]).add_row(["b", ""]);
        assert_eq!(text(&shown), "NAME         STATE\na-long-name  x\nb");
    }
}
