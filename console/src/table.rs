//! Tables for people.

use comfy_table::{Cell, CellAlignment, presets::UTF8_FULL_CONDENSED};

/// A table with a heading; numbers are aligned right.
pub struct Table(comfy_table::Table);

impl Table {
    /// A table with these headings.
    pub fn new<T: Into<String>>(headings: impl IntoIterator<Item = T>) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        table.set_header(headings.into_iter().map(Into::into).collect::<Vec<String>>());
        Self(table)
    }

    /// Adds a row.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.0.add_row(cells.into_iter().map(|text| {
            let text: String = text.into();
            let number = text.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '+');
            Cell::new(text).set_alignment(if number { CellAlignment::Right } else { CellAlignment::Left })
        }));
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
