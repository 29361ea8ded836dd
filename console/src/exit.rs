//! Exit codes, the one place where an error becomes a sentence on stderr, and logging.

use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// How a run ended, other than by an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Everything was done.
    Done,
    /// Everything was done, but a measurement lies outside a bound the user demanded.
    OutsideBound,
}

/// Sets up logging (warnings and above, or what `CALIPER_LOG` says), runs `body` and turns its end into an exit code:
/// 0 done, 1 failed, 3 outside a demanded bound. Usage errors (2) are clap's; an interrupt (130) the signal's.
pub fn run(body: impl FnOnce() -> anyhow::Result<Exit>) -> ExitCode {
    let filter = EnvFilter::try_from_env("CALIPER_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .init();
    match body() {
        Ok(Exit::Done) => ExitCode::SUCCESS,
        Ok(Exit::OutsideBound) => ExitCode::from(3),
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

#[allow(clippy::print_stderr)]
fn report(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}
