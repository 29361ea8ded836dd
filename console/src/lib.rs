//! What the binaries share towards people: exit codes, logging, progress, tables, pages, figures, machine figures,
//! atomic files.
//!
//! Results go to stdout, progress and logs to stderr. Knows none of the crates beside it.

pub mod doctor;
pub mod exit;
pub mod files;
pub mod generated;
mod live;
pub mod machine;
pub mod page;
pub mod plot;
pub mod progress;
pub mod table;

pub use exit::{Exit, run};
pub use live::Live;
pub use progress::{Progress, Silence};
pub use table::Table;
