//! Files that results are written to beside what is printed.

use anyhow::Context as _;
use clap::Args;
use console::{
    files::Output,
    page::{self, Page},
};
use evaluate::export::{self, Row};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Further files of results.
#[derive(Args, Debug, Default)]
pub(crate) struct Exports {
    /// Write task results in lm-evaluation-harness's layout to FOLDER/MODEL/results_caliper.json
    ///
    /// For every model, with that tool's names of tasks and metrics. MODEL is the model's name with `__` for `/`.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) lm_eval: Option<PathBuf>,

    /// Write every figure as a row of a CSV file
    ///
    /// Columns: model, on (task or text), part, metric, figure, value, standard_error, low_95, high_95, items.
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,

    /// Write the tables as Markdown
    #[arg(long, value_name = "FILE")]
    pub(crate) markdown: Option<PathBuf>,

    /// Write tables, figures and flips as one HTML page
    ///
    /// Needs no network; for light and dark, wide and narrow screens, and screen readers. Tables can be sorted and searched.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

/// The same, opened.
pub(crate) struct Files {
    lm_eval: Vec<Output>,
    csv: Option<Output>,
    markdown: Option<Output>,
    html: Option<Output>,
}

impl Exports {
    /// Whether a page is wanted.
    pub(crate) fn wants_page(&self) -> bool {
        self.markdown.is_some() || self.html.is_some()
    }

    /// Opens every file, so that one that can't be written is known before any work.
    pub(crate) fn open(&self, models: &[&str]) -> anyhow::Result<Files> {
        let open = |path: &Path| Output::open(path).with_context(|| path.display().to_string());
        let one = |path: &Option<PathBuf>| path.as_deref().map(open).transpose();
        let mut lm_eval = Vec::new();
        if let Some(folder) = &self.lm_eval {
            let mut paths: Vec<PathBuf> = Vec::new();
            for model in models {
                let path = folder.join(export::sanitized(model)).join("results_caliper.json");
                if paths.contains(&path) {
                    anyhow::bail!("two models would be written to {}: give them different names", path.display());
                }
                lm_eval.push(open(&path)?);
                paths.push(path);
            }
        }
        Ok(Files { lm_eval, csv: one(&self.csv)?, markdown: one(&self.markdown)?, html: one(&self.html)? })
    }
}

impl Files {
    /// Writes them: `layouts` for the models that they were opened for, in the same order.
    pub(crate) fn commit(self, layouts: Vec<Value>, rows: &[Row], page: Option<Page>) -> anyhow::Result<()> {
        for (output, layout) in self.lm_eval.into_iter().zip(layouts) {
            output.commit(format!("{}\n", serde_json::to_string_pretty(&layout)?).as_bytes())?;
        }
        if let Some(output) = self.csv {
            output.commit(&export::csv(rows)?)?;
        }
        let Some(mut page) = page else { return Ok(()) };
        if let Some(output) = self.html {
            output.commit(page::html(&page)?.as_bytes())?;
        }
        if let Some(output) = self.markdown {
            // Markdown has its figures in files; here the tables say the same.
            page.sections.iter_mut().for_each(|section| section.figures.clear());
            output.commit(page::markdown(&page)?.as_bytes())?;
        }
        Ok(())
    }
}
