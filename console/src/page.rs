//! A report as data: sections of paragraphs, figures and tables, which become one HTML file or Markdown.
//!
//! The HTML needs no network, follows the reader's light or dark setting, and says in tables all that figures show. Its
//! tables can be sorted, and long ones searched.

use crate::plot;
use minijinja::{Environment, Value, context};
use serde::Serialize;

/// A page or a figure could not be made.
#[derive(Debug, thiserror::Error)]
#[error("the report could not be made: {0}")]
pub struct PageError(pub(crate) String);

/// A report.
#[derive(Serialize)]
pub struct Page {
    /// Its name.
    pub title: String,
    /// What it is about.
    pub question: String,
    /// The answer, a sentence each.
    pub answer: Vec<String>,
    /// The rest.
    pub sections: Vec<Section>,
}

/// A part of a report.
#[derive(Default, Serialize)]
pub struct Section {
    /// Its heading.
    pub title: String,
    /// Paragraphs.
    pub text: Vec<String>,
    /// Items of a list.
    pub items: Vec<String>,
    /// Figures.
    pub figures: Vec<Figure>,
    /// Tables.
    pub tables: Vec<Table>,
    /// Text shown as it is.
    pub verbatim: Option<String>,
}

/// A figure.
#[derive(Serialize)]
pub struct Figure {
    /// File name without ending.
    pub name: String,
    /// What stands under it, which also says to those who don't see it what it shows.
    pub caption: String,
    /// The SVG text.
    pub svg: String,
}

/// A table.
#[derive(Serialize)]
pub struct Table {
    /// What it holds.
    pub caption: String,
    /// The headings of its columns.
    pub headings: Vec<String>,
    /// Its rows; the first cell heads the row.
    pub rows: Vec<Vec<Cell>>,
}

/// A cell of a table.
#[derive(Serialize)]
pub struct Cell {
    /// What is shown.
    pub text: String,
    /// What it is sorted by, where that is a number.
    pub number: Option<f64>,
    /// Whether it stands out.
    pub strong: bool,
    /// A longer text that can be opened; only HTML has it.
    pub detail: Option<String>,
}

impl Cell {
    /// Text.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), number: None, strong: false, detail: None }
    }

    /// A number and how it is shown.
    pub fn number(number: f64, text: impl Into<String>) -> Self {
        Self { text: text.into(), number: Some(number), strong: false, detail: None }
    }

    /// Nothing.
    pub fn empty() -> Self {
        Self::text("")
    }
}

/// `page` as one HTML file that needs nothing else.
pub fn html(page: &Page) -> Result<String, PageError> {
    let mut environment = Environment::new();
    // The caption says what a figure shows and a table what it holds: its marks one by one would be noise.
    let themed = |svg: String| svg.replace(plot::INK, "currentColor").replacen("<svg", "<svg aria-hidden=\"true\"", 1);
    environment.add_filter("themed", themed);
    // What the `.html` at its end makes minijinja escape.
    environment.add_template("page.html", include_str!("../templates/page.html")).map_err(failed)?;
    let template = environment.get_template("page.html").map_err(failed)?;
    template.render(context! { page => value(page) }).map_err(failed)
}

/// `page` as Markdown; its figures are files in `figures/`.
pub fn markdown(page: &Page) -> Result<String, PageError> {
    let mut environment = Environment::new();
    environment.add_filter("cell", |text: String| text.replace('|', "\\|").replace('\n', " "));
    environment.add_template("page.md", include_str!("../templates/page.md")).map_err(failed)?;
    let template = environment.get_template("page.md").map_err(failed)?;
    template.render(context! { page => value(page) }).map_err(failed)
}

/// `page` for a template.
fn value(page: &Page) -> Value {
    from_json(serde_json::to_value(page).expect("a page is plain data"))
}

fn from_json(json: serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => Value::from(value),
        serde_json::Value::Number(number) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        serde_json::Value::String(text) => Value::from(text),
        serde_json::Value::Array(values) => values.into_iter().map(from_json).collect(),
        serde_json::Value::Object(fields) => {
            Value::from_pairs(fields.into_iter().map(|(name, value)| (name, from_json(value))))
        }
    }
}

#[allow(clippy::needless_pass_by_value)] // the shape that `map_err` wants
fn failed(error: minijinja::Error) -> PageError {
    PageError(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Page {
        let rows = vec![vec![Cell::text("a|b"), Cell::number(0.5, "+0.50 %")], vec![Cell::text("<c>"), Cell::empty()]];
        let table = Table { caption: "Losses".to_owned(), headings: vec!["set".to_owned(), "loss".to_owned()], rows };
        let svg = format!("<svg width=\"1\"><text fill=\"{}\">x</text></svg>", plot::INK);
        let figure = Figure { name: "heat".to_owned(), caption: "A \"map\"".to_owned(), svg };
        let section = Section {
            title: "Loss & more".to_owned(),
            text: vec!["Said.".to_owned()],
            items: vec!["One.".to_owned()],
            figures: vec![figure],
            tables: vec![table],
            verbatim: Some("[settings]\nbits = 4".to_owned()),
        };
        Page {
            title: "t".to_owned(),
            question: "q?".to_owned(),
            answer: vec!["Yes.".to_owned()],
            sections: vec![section],
        }
    }

    #[test]
    fn html_escapes_text_but_not_figures_and_needs_no_network() {
        let html = html(&page()).unwrap();
        assert!(html.contains("&lt;c&gt;") && html.contains("Loss &amp; more"), "{html}");
        assert!(
            html.contains("<text fill=\"currentColor\">x</text>")
                && html.contains("<caption><span>Losses</span></caption>")
        );
        assert!(!html.contains("http://") && !html.contains("https://") && !html.contains("src="), "{html}");
    }

    #[test]
    fn markdown_is_made_of_the_same_parts() {
        insta::assert_snapshot!(markdown(&page()).unwrap());
    }
}
