//! Workers as an array of jobs under Slurm.
//!
//! The array is submitted with `--requeue`: a job whose node dies or that is preempted comes back, and computes only what
//! is still open in its chunk. Workers find study and results under the paths that the submitting machine has them under.

use crate::{
    StudyError,
    schedule::{Batch, Scheduler},
};
use console::files::write_atomically;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, process::Command, thread, time::Duration};

/// How often the queue is asked.
const POLL: Duration = Duration::from_secs(2);

/// What the jobs ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slurm {
    /// Jobs of the array at once; none for no limit.
    pub jobs: Option<usize>,
    /// Partition.
    pub partition: Option<String>,
    /// Account.
    pub account: Option<String>,
    /// Time limit of a job, as Slurm writes it.
    pub time_limit: Option<String>,
    /// Memory of a job, as Slurm writes it.
    pub memory: Option<String>,
    /// Cores of a job.
    pub cores: usize,
    /// Further options of `sbatch`, as they are.
    pub options: Vec<String>,
    /// Whether to stay until the array is through.
    pub wait: bool,
}

/// What is remembered of a submitted array.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// Slurm's number for it.
    pub job: String,
    /// Its chunks.
    pub chunks: usize,
}

impl Scheduler for Slurm {
    fn run(&self, batch: &Batch, wait: &mut dyn FnMut() -> Result<(), StudyError>) -> Result<String, StudyError> {
        let script = batch.folder.join("job.sh");
        write_atomically(&script, self.script(batch).as_bytes()).map_err(StudyError::io(&script))?;
        let told = told(Command::new("sbatch").arg("--parsable").args(&self.options).arg(&script))?;
        let job = told.trim().split(';').next().unwrap_or_default().to_owned();
        let submitted = Submitted { job: job.clone(), chunks: batch.chunks.len() };
        let path = batch.folder.join("slurm.json");
        let text = serde_json::to_vec_pretty(&submitted).expect("a number and a name are plain data");
        write_atomically(&path, &text).map_err(StudyError::io(&path))?;
        while self.wait && !states(&job)?.is_empty() {
            thread::sleep(POLL);
            wait()?;
        }
        let chunks = batch.chunks.len();
        let what = if self.wait { "is through" } else { "is submitted: `study status` says how it goes" };
        Ok(format!("job {job}, an array of {chunks}, {what}; logs are in {}", batch.folder.display()))
    }
}

impl Slurm {
    fn script(&self, batch: &Batch) -> String {
        let folder = batch.folder.display();
        let limit = self.jobs.map_or_else(String::new, |jobs| format!("%{jobs}"));
        let mut text = format!(
            "#!/bin/sh\n#SBATCH --job-name=study\n#SBATCH --array=0-{}{limit}\n#SBATCH --requeue\n#SBATCH --open-mode=append\n\
             #SBATCH --output={folder}/%a.log\n#SBATCH --cpus-per-task={}\n",
            batch.chunks.len() - 1,
            self.cores
        );
        let asked = [
            ("partition", &self.partition),
            ("account", &self.account),
            ("time", &self.time_limit),
            ("mem", &self.memory),
        ];
        for (name, value) in asked {
            if let Some(value) = value {
                let _ = writeln!(text, "#SBATCH --{name}={value}");
            }
        }
        let command = [batch.program.to_string_lossy().into_owned()].into_iter().chain(batch.arguments.iter().cloned());
        let command: Vec<String> = command.map(|word| quoted(&word)).collect();
        let chunk = format!("{}\"$SLURM_ARRAY_TASK_ID\"", quoted(&batch.chunk_argument("")));
        let _ = writeln!(text, "exec {} --chunk {chunk}", command.join(" "));
        text
    }
}

/// `word` for the shell, whatever it holds.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn told(command: &mut Command) -> Result<String, StudyError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| {
        StudyError::Settings(format!("{name}: {error}; `--on slurm` needs Slurm's commands on this machine"))
    })?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(StudyError::Settings(format!("{name} refused: {}", text(&output.stderr).trim())))
}

/// The jobs of array `job` in the queue, by state; empty once all are gone.
fn states(job: &str) -> Result<BTreeMap<String, usize>, StudyError> {
    let asked = told(Command::new("squeue").args(["--noheader", "--array", "--format=%T", "--jobs", job]));
    let mut states = BTreeMap::new();
    match asked {
        Ok(text) => text.lines().for_each(|state| *states.entry(state.trim().to_lowercase()).or_default() += 1),
        // A job that left the queue long ago is not known any more.
        Err(error) if error.to_string().contains("Invalid job id") => {}
        Err(error) => return Err(error),
    }
    Ok(states)
}

/// A line for each array of `results` that is still in the queue; nothing where there is no Slurm to ask.
pub fn queue(results: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(results.join("jobs")) else { return Vec::new() };
    let mut folders: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.sort();
    let submitted = folders
        .iter()
        .filter_map(|folder| serde_json::from_slice::<Submitted>(&fs::read(folder.join("slurm.json")).ok()?).ok());
    let line = |submitted: Submitted| {
        let states = states(&submitted.job).ok()?;
        let states: Vec<String> = states.iter().map(|(state, count)| format!("{count} {state}")).collect();
        (!states.is_empty())
            .then(|| format!("Slurm job {}, {} chunks: {}", submitted.job, submitted.chunks, states.join(", ")))
    };
    submitted.filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_asks_for_what_was_asked_and_survives_odd_names() {
        let batch = Batch {
            folder: "/r/it's here/jobs/1".into(),
            chunks: vec![vec!["a".to_owned()]; 3],
            program: "/bin/study".into(),
            arguments: vec!["run".to_owned(), "a b.toml".to_owned()],
        };
        let slurm = Slurm { jobs: Some(2), partition: Some("long".to_owned()), cores: 4, ..Slurm::default() };
        let script = slurm.script(&batch);
        for part in [
            "--array=0-2%2",
            "--partition=long",
            "--cpus-per-task=4",
            "--requeue",
            "exec '/bin/study' 'run' 'a b.toml' --chunk '/r/it'\\''s here/jobs/1/chunks.json:'\"$SLURM_ARRAY_TASK_ID\"",
        ] {
            assert!(script.contains(part), "{part} is not in {script}");
        }
        assert!(!script.contains("--account"));
    }
}
