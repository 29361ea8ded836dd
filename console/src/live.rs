//! A live view of long work made of many pieces: a bar and a line of state on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// How often a terminal's view is redrawn by itself, for the clock.
const TICK: Duration = Duration::from_millis(500);

/// The view. What happened stands above it and stays; the view goes when it is finished.
pub struct Live {
    bar: ProgressBar,
}

impl Live {
    /// `steps` steps of `title`, of which `done` were done before.
    pub fn new(title: &str, steps: u64, done: u64) -> Self {
        let bar = ProgressBar::new(steps);
        bar.set_position(done);
        bar.reset_eta();
        let template = "{prefix} {wide_bar} {pos}/{len}, {elapsed} passed, {eta} left\n{msg}";
        bar.set_style(ProgressStyle::with_template(template).expect("a fixed template"));
        bar.set_prefix(title.to_owned());
        if !bar.is_hidden() {
            bar.enable_steady_tick(TICK);
        }
        Self { bar }
    }

    /// Something happened.
    #[allow(clippy::print_stderr)]
    pub fn line(&self, text: &str) {
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }

    /// How things stand: shown on a terminal only, where it is replaced by the next.
    pub fn state(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }

    /// So many steps are done in all.
    pub fn done(&self, steps: u64) {
        self.bar.set_position(steps);
    }

    /// Removes the view.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}
