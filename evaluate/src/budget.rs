//! `--capabilities`: as many items of each capability as there is time for.
//!
//! Every capability gets an equal share of the time, and in it every task. Items come in one random order, whose first are
//! timed; then the time is filled in rounds, each of which knows the speed of the round before. What a task with too few items
//! leaves over goes to the others.

use crate::{
    cli::Measure,
    run::say,
    tasks::{self, Done, Prepared},
};
use anyhow::Context as _;
use console::files::Output;
use evaluate::{
    capability::Capability,
    records::{Record, Run},
    task::{Task, data::TaskData},
    task_report::{Circumstances, Summary},
};
use model::Checkpoint;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use std::time::{Duration, Instant};

/// Time unless told otherwise.
const DEFAULT: Duration = Duration::from_mins(20);
/// Items that the first speed is measured with: where the model chooses, and where it writes.
const FIRST: [usize; 2] = [4, 2];
/// The share of the time that is spent after each round.
const ROUNDS: [f64; 3] = [0.3, 0.65, 0.97];

/// A task with as many of its items as there was time for.
pub(crate) struct Timed {
    task: Task,
    data: TaskData,
    /// All its items in the order in which they are taken.
    order: Vec<usize>,
    taken: usize,
    spent: Duration,
    /// Seconds an item, both models together, in the last round.
    speed: f64,
    outputs: [Option<Output>; 2],
    /// The model's records and the baseline's.
    records: [Vec<Record>; 2],
    circumstances: [Circumstances; 2],
}

/// Reads the data of every task that stands for a capability, and says which are left out.
pub(crate) fn prepare(measure: &Measure, baseline: bool) -> anyhow::Result<Vec<Timed>> {
    let mut timed = Vec::new();
    for capability in Capability::ALL {
        let before = timed.len();
        for name in capability.tasks() {
            match open(measure, name, baseline) {
                Ok(task) => timed.push((timed.len() - before, task)),
                Err(error) => say(&format!("left out   {name}: {error:#}")),
            }
        }
        if timed.len() == before {
            say(&format!("left out   the capability {capability}: none of its tasks can be run"));
        }
    }
    if timed.is_empty() {
        anyhow::bail!("no task can be run: `--data FOLDER` says where data lies, `evaluate tasks` what is looked for");
    }
    // One task of each capability before the second of any, for where the time is short.
    timed.sort_by_key(|(rank, _)| *rank);
    Ok(timed.into_iter().map(|(_, task)| task).collect())
}

fn open(measure: &Measure, name: &str, baseline: bool) -> anyhow::Result<Timed> {
    let task = Task::open(name)?;
    if task.generate.as_ref().is_some_and(|generate| generate.program.is_some()) && !measure.allow_code_execution {
        anyhow::bail!("it runs programs that the model writes, which `--allow-code-execution` allows");
    }
    let data = TaskData::read(&task, &measure.data, measure.shots.unwrap_or(task.shots) > 0)?;
    let count = data.rows.len();
    let order = rand::seq::index::sample(&mut ChaCha8Rng::seed_from_u64(measure.seed), count, count).into_vec();
    let outputs = tasks::outputs(measure, &task, baseline)?;
    Ok(Timed {
        task,
        data,
        order,
        taken: 0,
        spent: Duration::ZERO,
        speed: 0.0,
        outputs,
        records: Default::default(),
        circumstances: Default::default(),
    })
}

/// Scores items until the time is over.
pub(crate) fn run(measure: &Measure, models: [Option<&Checkpoint>; 2], mut timed: Vec<Timed>) -> anyhow::Result<Done> {
    let (started, budget) = (Instant::now(), measure.budget.unwrap_or(DEFAULT));
    say(&format!("budget     {} s for {} tasks", budget.as_secs(), timed.len()));
    for task in &mut timed {
        if started.elapsed() >= budget {
            say(&format!("left out   {}: the time was over before its first items", task.task.name));
            continue;
        }
        let first = FIRST[usize::from(task.task.generate.is_some())];
        task.take(measure, models, first)?;
    }
    timed.retain(|task| task.taken > 0);
    for (round, part) in ROUNDS.into_iter().enumerate() {
        let shares = shares(&timed, part * budget.as_secs_f64());
        for (task, share) in timed.iter_mut().zip(shares) {
            let left = (part * budget.as_secs_f64() - started.elapsed().as_secs_f64()).max(0.0);
            let time = (share - task.spent.as_secs_f64()).min(left);
            let count = (time / task.speed.max(1e-9)) as usize;
            if count > 0 {
                task.take(measure, models, count)?;
            }
        }
        say(&format!("round      {} of {}: {} s", round + 1, ROUNDS.len(), started.elapsed().as_secs()));
    }
    finish(measure, timed)
}

/// How much of `time` each task may have spent: equal parts for capabilities and in them for tasks, where a task that has no
/// items left takes what it took.
fn shares(timed: &[Timed], time: f64) -> Vec<f64> {
    let done: Vec<Option<f64>> =
        timed.iter().map(|task| (task.taken == task.order.len()).then_some(task.spent.as_secs_f64())).collect();
    let capabilities: Vec<Option<Capability>> = timed.iter().map(|task| task.task.capability).collect();
    divide(&capabilities, &done, time)
}

fn divide(capabilities: &[Option<Capability>], done: &[Option<f64>], time: f64) -> Vec<f64> {
    let open = |capability| {
        capabilities.iter().zip(done).filter(|(other, done)| **other == capability && done.is_none()).count()
    };
    let mut groups: Vec<Option<Capability>> =
        capabilities.iter().zip(done).filter(|(_, done)| done.is_none()).map(|(capability, _)| *capability).collect();
    groups.sort_unstable();
    groups.dedup();
    let left = (time - done.iter().flatten().sum::<f64>()).max(0.0);
    let share = |(capability, done): (&Option<Capability>, &Option<f64>)| {
        done.unwrap_or_else(|| left / groups.len() as f64 / open(*capability) as f64)
    };
    capabilities.iter().zip(done).map(share).collect()
}

impl Timed {
    /// Scores the next `count` items with both models.
    fn take(&mut self, measure: &Measure, models: [Option<&Checkpoint>; 2], count: usize) -> anyhow::Result<()> {
        let mut chosen: Vec<usize> = self.order.iter().skip(self.taken).take(count).copied().collect();
        chosen.sort_unstable();
        if chosen.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let prepared = Prepared::new(measure, models, &self.task, &self.data, &chosen)?;
        for (side, scored) in prepared.score(measure, models)?.into_iter().enumerate() {
            let Some((records, summary)) = scored else { continue };
            self.records[side].extend(records);
            let sum = &mut self.circumstances[side];
            sum.truncated += summary.truncated;
            sum.spanned += summary.spanned;
            sum.seconds += summary.seconds;
            sum.bos = summary.bos;
        }
        self.taken += chosen.len();
        self.spent += started.elapsed();
        self.speed = started.elapsed().as_secs_f64() / chosen.len() as f64;
        Ok(())
    }
}

/// Writes the records and puts the figures together.
fn finish(measure: &Measure, timed: Vec<Timed>) -> anyhow::Result<Done> {
    let (mut reports, mut runs) = (Vec::new(), [Run::new(), Run::new()]);
    for mut task in timed {
        let mut summaries = [None, None];
        for (side, records) in std::mem::take(&mut task.records).into_iter().enumerate() {
            if records.is_empty() {
                continue;
            }
            tasks::write(task.outputs[side].take(), &records)?;
            let circumstances = task.circumstances[side].clone();
            summaries[side] = Some(Summary::new(&records, circumstances, measure.seed));
            runs[side].insert(task.task.name.clone(), records);
        }
        let [model, baseline] = summaries;
        let shots = measure.shots.unwrap_or(task.task.shots);
        reports.push(tasks::report(
            measure,
            (task.task, task.data.files),
            (shots, task.data.rows.len(), Some(task.taken)),
            (model.context("every task has its first items scored")?, baseline),
        ));
    }
    Done::new(reports, runs, measure.seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_share_the_time_alike_and_what_is_left_goes_on() {
        let [a, b] = [Some(Capability::Reasoning), Some(Capability::Code)];
        assert_eq!(divide(&[a, a, b], &[None, None, None], 120.0), [30.0, 30.0, 60.0]);
        // The first has no items left after 10 seconds.
        assert_eq!(divide(&[a, a, b], &[Some(10.0), None, None], 120.0), [10.0, 55.0, 55.0]);
        assert_eq!(divide(&[a, b], &[Some(10.0), Some(20.0)], 120.0), [10.0, 20.0]);
        assert_eq!(divide(&[a, b], &[Some(200.0), None], 120.0), [200.0, 0.0]);
    }
}
