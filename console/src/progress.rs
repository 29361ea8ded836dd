//! Progress of long work on stderr: a bar with time left and peak memory on a terminal, plain lines elsewhere.

use crate::machine;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

/// Seconds between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// How many [`Silence`]s there are.
static SILENCES: AtomicUsize = AtomicUsize::new(0);

/// While it lives, progress that begins is not shown: for work that tells its own, made of pieces that would tell theirs.
pub struct Silence(());

impl Silence {
    /// From now on.
    pub fn begin() -> Self {
        SILENCES.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        SILENCES.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One long piece of work of a known number of steps.
pub struct Progress {
    bar: ProgressBar,
    plain: bool,
    title: String,
    started: Instant,
    last_line: Instant,
    first_step: u64,
}

impl Progress {
    /// `steps` steps of `title`, of which `done` were done in an earlier run (they don't count for the time left).
    pub fn new(title: &str, steps: u64, done: u64) -> Self {
        let silent = SILENCES.load(Ordering::Relaxed) > 0;
        let bar = if silent { ProgressBar::hidden() } else { ProgressBar::new(steps) };
        bar.set_length(steps);
        bar.set_position(done);
        let template = "{prefix} {wide_bar} {pos}/{len} {msg} {eta} left";
        bar.set_style(ProgressStyle::with_template(template).expect("a fixed template"));
        bar.set_prefix(title.to_owned());
        let now = Instant::now();
        Self {
            plain: bar.is_hidden() && !silent,
            bar,
            title: title.to_owned(),
            started: now,
            last_line: now,
            first_step: done,
        }
    }

    /// One step is done; `message` says where the work is.
    pub fn step(&mut self, message: &str) {
        let memory = machine::peak_memory().map_or_else(String::new, |peak| format!(", peak {}", machine::bytes(peak)));
        self.bar.set_message(format!("{message}{memory}"));
        self.bar.inc(1);
        let last = Some(self.bar.position()) == self.bar.length();
        if self.plain && (last || self.last_line.elapsed() >= PLAIN_EVERY) {
            self.last_line = Instant::now();
            self.line(&format!("{message}{memory}"));
        }
    }

    /// Removes the bar.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }

    #[allow(clippy::print_stderr)]
    fn line(&self, message: &str) {
        let (position, length) = (self.bar.position(), self.bar.length().unwrap_or(0));
        let done = (position - self.first_step).max(1) as u32;
        let left = self.started.elapsed() / done * (length - position) as u32;
        eprintln!("{} {position}/{length} {message}, {} left", self.title, HumanDuration(left));
    }
}
