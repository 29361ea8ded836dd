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
    eprintln!("error: {}", sentence(error));
}

/// The error and its causes in one sentence; a cause that the text before it already ends with is not repeated.
fn sentence(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| match said.as_str() {
        "" => cause,
        before if before.ends_with(&cause) => said,
        before => format!("{before}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{error::Error, fmt, io};

    /// Tells its cause itself, and hands it on as well.
    #[derive(Debug)]
    struct Telling(io::Error);

    impl fmt::Display for Telling {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "config.json: {}", self.0)
        }
    }

    impl Error for Telling {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn every_cause_is_said_once() {
        let error = anyhow::Error::new(Telling(io::Error::other("disk on fire"))).context("opening the model");
        assert_eq!(sentence(&error), "opening the model: config.json: disk on fire");
    }
}
