//! Workers as processes on this machine.

use crate::{
    StudyError,
    schedule::{Batch, Scheduler},
};
use std::{
    fs::File,
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

/// How often workers are looked after.
const POLL: Duration = Duration::from_millis(200);
/// Starts of a chunk whose worker was killed.
const STARTS: usize = 3;

/// So many processes at once.
pub struct Local {
    /// How many.
    pub jobs: usize,
}

/// A worker at work.
struct Worker {
    chunk: usize,
    start: usize,
    process: Child,
}

/// Ends workers that are still there when this one ends.
struct Workers(Vec<Worker>);

impl Drop for Workers {
    fn drop(&mut self) {
        for worker in &mut self.0 {
            let _ = worker.process.kill();
            let _ = worker.process.wait();
        }
    }
}

impl Scheduler for Local {
    fn run(&self, batch: &Batch, wait: &mut dyn FnMut() -> Result<(), StudyError>) -> Result<String, StudyError> {
        let mut open: Vec<(usize, usize)> = (0..batch.chunks.len()).rev().map(|chunk| (chunk, 1)).collect();
        let (mut workers, mut killed) = (Workers(Vec::new()), 0);
        while !(open.is_empty() && workers.0.is_empty()) {
            while workers.0.len() < self.jobs
                && let Some((chunk, start)) = open.pop()
            {
                workers.0.push(Worker { chunk, start, process: started(batch, chunk)? });
            }
            thread::sleep(POLL);
            let mut still = Vec::new();
            for mut worker in std::mem::take(&mut workers.0) {
                match worker.process.try_wait().map_err(StudyError::io(batch.log(worker.chunk)))? {
                    None => still.push(worker),
                    Some(status) if status.signal().is_some() => {
                        killed += 1;
                        if worker.start < STARTS {
                            open.push((worker.chunk, worker.start + 1));
                        }
                    }
                    Some(_) => {}
                }
            }
            workers.0 = still;
            wait()?;
        }
        let again = if killed > 0 { format!("; {killed} were killed and started again") } else { String::new() };
        Ok(format!("{} workers are through{again}; their logs are in {}", batch.chunks.len(), batch.folder.display()))
    }
}

fn started(batch: &Batch, chunk: usize) -> Result<Child, StudyError> {
    let path = batch.log(chunk);
    let log = File::options().create(true).append(true).open(&path).map_err(StudyError::io(&path))?;
    let both = log.try_clone().map_err(StudyError::io(&path))?;
    let mut command = Command::new(&batch.program);
    command.args(&batch.arguments).arg("--chunk").arg(batch.chunk_argument(&chunk.to_string()));
    command.stdin(Stdio::null()).stdout(log).stderr(both);
    command.spawn().map_err(StudyError::io(&batch.program))
}
