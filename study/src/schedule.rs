//! Running a study in several processes: what each is to do, and the seam to whatever starts them.
//!
//! ```text
//! open cells ─tasks─▶ chunks ─RESULTS/jobs/STAMP/chunks.json─▶ workers: study run STUDY --chunk chunks.json:I
//! ```
//!
//! A worker is this program on a chunk of configurations. It appends to a file of its own in the store, so that workers
//! on any number of machines need nothing in common but the results folder, and no lock. Run again, a chunk computes only
//! what is still open in it: a worker that was killed or preempted is simply started once more. A scheduler is one file:
//! [`crate::local`] starts processes, [`crate::slurm`] hands an array of jobs to Slurm.

use crate::{
    StudyError,
    opened::Opened,
    run::{open, tasks},
    store::{Contents, now_nanoseconds},
};
use console::files::write_atomically;
use std::{
    collections::HashSet,
    env, fs,
    path::{Path, PathBuf},
};

/// Work for workers.
pub struct Batch {
    /// Where chunks, scripts and logs of this batch are.
    pub folder: PathBuf,
    /// Configurations of each worker.
    pub chunks: Vec<Vec<String>>,
    /// This program.
    pub program: PathBuf,
    /// What every worker is started with, but for its chunk.
    pub arguments: Vec<String>,
}

/// How a batch is started.
pub trait Scheduler {
    /// Starts every chunk; `wait` is called now and then while this waits for them, if it does. Returns what to tell.
    fn run(&self, batch: &Batch, wait: &mut dyn FnMut() -> Result<(), StudyError>) -> Result<String, StudyError>;
}

impl Batch {
    /// The open cells of `opened`, `size` configurations to a chunk (or into `chunks` equal ones); none if nothing is open.
    /// Configurations that share statistics stay together.
    pub fn new(
        opened: &Opened,
        contents: &Contents,
        retry: bool,
        results: &Path,
        chunking: Chunking,
    ) -> Result<Option<Self>, StudyError> {
        let tasks: Vec<Vec<String>> = tasks(opened)
            .iter()
            .map(|units| open(units, contents, retry).iter().map(|(unit, _)| unit.configuration.clone()).collect())
            .filter(|task: &Vec<String>| !task.is_empty())
            .collect();
        if tasks.is_empty() {
            return Ok(None);
        }
        let chunks = cut(tasks, chunking);
        let folder = results.join("jobs").join(format!("{:x}", now_nanoseconds()));
        let path = folder.join("chunks.json");
        let text = serde_json::to_vec_pretty(&chunks).expect("chunks are plain data");
        write_atomically(&path, &text).map_err(StudyError::io(&path))?;
        let program = env::current_exe().map_err(StudyError::io("this program"))?;
        Ok(Some(Self { folder, chunks, program, arguments: Vec::new() }))
    }

    /// What the worker of chunk `index` is started with; a scheduler may give the index as text for the shell.
    pub fn chunk_argument(&self, index: &str) -> String {
        format!("{}:{index}", self.folder.join("chunks.json").display())
    }

    /// Where the worker of chunk `index` writes what it tells.
    pub fn log(&self, index: usize) -> PathBuf {
        self.folder.join(format!("{index}.log"))
    }
}

/// How open configurations are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunking {
    /// At least so many configurations in each chunk but the last.
    Of(usize),
    /// Into at most so many chunks.
    Into(usize),
}

fn cut(tasks: Vec<Vec<String>>, chunking: Chunking) -> Vec<Vec<String>> {
    let mut chunks: Vec<Vec<String>> = Vec::new();
    match chunking {
        Chunking::Of(size) => {
            for task in tasks {
                match chunks.last_mut().filter(|chunk| chunk.len() < size) {
                    Some(chunk) => chunk.extend(task),
                    None => chunks.push(task),
                }
            }
        }
        Chunking::Into(count) => {
            chunks.resize_with(count.min(tasks.len()), Vec::new);
            for task in tasks {
                let smallest = chunks.iter_mut().min_by_key(|chunk| chunk.len());
                smallest.expect("there is at least one chunk").extend(task);
            }
        }
    }
    chunks
}

/// The configurations of `FILE:INDEX`.
pub fn read_chunk(chunk: &str) -> Result<HashSet<String>, StudyError> {
    let wrong = |what: &str| StudyError::Settings(format!("--chunk {chunk}: {what}"));
    let (file, index) = chunk.rsplit_once(':').ok_or_else(|| wrong("is written FILE:INDEX"))?;
    let index: usize = index.parse().map_err(|_| wrong("is written FILE:INDEX"))?;
    let text = fs::read(file).map_err(StudyError::io(file))?;
    let chunks: Vec<Vec<String>> = serde_json::from_slice(&text).map_err(|error| wrong(&error.to_string()))?;
    let count = chunks.len();
    let chunk = chunks.into_iter().nth(index);
    Ok(chunk.ok_or_else(|| wrong(&format!("the file holds {count} chunks")))?.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks(sizes: &[usize]) -> Vec<Vec<String>> {
        let task = |(index, size): (usize, &usize)| (0..*size).map(|unit| format!("{index}.{unit}")).collect();
        sizes.iter().enumerate().map(task).collect()
    }

    #[test]
    fn tasks_are_never_torn_apart_and_none_is_lost() {
        let of = cut(tasks(&[1, 1, 1, 4, 1]), Chunking::Of(2));
        assert_eq!(of.iter().map(Vec::len).collect::<Vec<_>>(), [2, 5, 1]);
        let into = cut(tasks(&[4, 1, 1, 1, 1]), Chunking::Into(2));
        assert_eq!(into.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4]);
        assert_eq!(cut(tasks(&[1, 1]), Chunking::Into(5)).len(), 2);
    }

    #[test]
    fn a_chunk_is_found_by_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chunks.json");
        fs::write(&path, r#"[["a", "b"], ["c"]]"#).unwrap();
        let read = |index: &str| read_chunk(&format!("{}:{index}", path.display()));
        assert_eq!(read("1").unwrap(), HashSet::from(["c".to_owned()]));
        assert!(read("2").unwrap_err().to_string().contains("2 chunks"));
        assert!(read("x").is_err() && read_chunk("nothing").is_err());
    }
}
