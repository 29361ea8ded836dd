//! Finding a task's files and reading their records.
//!
//! A pattern is a path under one of the data folders, with `*` and `?` as usual. `{subject}` stands for a part of one
//! name and gives the file's records that subject; otherwise a record's own field `subject`, if it has one, is its subject.
//! Where a data folder is called as the pattern's first part, the pattern is looked for beside it too, so that
//! `--data data/mmlu` finds `mmlu/…`.
//!
//! A data folder may be a data set's repository on the hub, `hub:org/name[@revision]`. It is looked through like a folder
//! called `name`; the files that match are downloaded into the hub's cache, or taken from there.

use super::Task;
use crate::EvaluateError;
use model::{
    hub::{DatasetFiles, HubId},
    text::{
        self,
        records::{Layout, Record},
    },
};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DataFile {
    /// Where.
    pub path: PathBuf,
    /// SHA-256 of its bytes.
    pub sha256: String,
}

/// A record with where it belongs.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its subject, if the task has any.
    pub subject: Option<String>,
    /// Its place among the records of its subject, or among all.
    pub place: usize,
    /// Its fields.
    pub record: Record,
}

impl Row {
    /// What records call it.
    pub fn id(&self) -> String {
        match &self.subject {
            Some(subject) => format!("{subject}/{}", self.place),
            None => self.place.to_string(),
        }
    }
}

/// Where data is looked for unless told otherwise: `CALIPER_DATA`, else `data` in the present folder.
pub fn default_folder() -> PathBuf {
    std::env::var_os("CALIPER_DATA").map_or_else(|| Path::new("data").to_path_buf(), PathBuf::from)
}

/// Which of `count` items are taken: all, or `limit` drawn without replacement, in their order.
pub fn draw(count: usize, limit: Option<usize>, seed: u64) -> Vec<usize> {
    let Some(limit) = limit.filter(|limit| *limit < count) else { return (0..count).collect() };
    let mut chosen = rand::seq::index::sample(&mut ChaCha8Rng::seed_from_u64(seed), count, limit).into_vec();
    chosen.sort_unstable();
    chosen
}

/// A task's data.
#[derive(Clone, Debug, Default)]
pub struct TaskData {
    /// The items.
    pub rows: Vec<Row>,
    /// The solved examples of each subject.
    pub shots: HashMap<Option<String>, Vec<Row>>,
    /// The files read.
    pub files: Vec<DataFile>,
}

impl TaskData {
    /// Reads the items of `task` from `folders`, and where `shots` the solved examples.
    pub fn read(task: &Task, folders: &[PathBuf], shots: bool) -> Result<Self, EvaluateError> {
        let mut data = Self::default();
        // A task's own file may have its data beside it.
        let folders: Vec<PathBuf> = folders.iter().chain(&task.folder).cloned().collect();
        let places = folders.iter().map(|folder| Place::new(task, folder)).collect::<Result<Vec<_>, _>>()?;
        data.rows = data.read_patterns(task, &places, &task.data.test, "items")?;
        if let Some(labels) = &task.data.labels {
            data.add_labels(task, &places, labels)?;
        }
        if shots && !task.data.examples.is_empty() {
            data.shots.insert(None, examples(task)?);
        } else if shots {
            for row in data.read_patterns(task, &places, &task.data.shots, "solved examples")? {
                data.shots.entry(row.subject.clone()).or_default().push(row);
            }
        }
        if data.rows.is_empty() {
            return Err(wrong(task, "its files hold no items".to_owned()));
        }
        Ok(data)
    }

    fn read_patterns(
        &mut self,
        task: &Task,
        places: &[Place],
        patterns: &[String],
        what: &str,
    ) -> Result<Vec<Row>, EvaluateError> {
        let mut found = Vec::new();
        for pattern in patterns {
            found = locate(pattern, places)?;
            if !found.is_empty() {
                break;
            }
        }
        let found = Some(found).filter(|found| !found.is_empty()).ok_or_else(|| {
            let patterns: Vec<String> = patterns.iter().map(|pattern| format!("`{pattern}`")).collect();
            let folders: Vec<String> = places.iter().map(Place::name).collect();
            if patterns.is_empty() {
                return wrong(task, format!("its file names none for {what} (`data.shots`)"));
            }
            let (patterns, folders) = (patterns.join(", "), folders.join(", "));
            wrong(task, format!("no {what}: none of {patterns} is in {folders}; name the folder with `--data`"))
        })?;
        let layout = Layout { columns: &task.data.columns, lines: &task.data.lines };
        let (mut rows, mut counts) = (Vec::new(), HashMap::new());
        for Found { path, subject } in found {
            for record in text::records::records(&path, layout)? {
                let subject = subject.clone().or_else(|| record.get("subject")?.as_str().map(str::to_owned));
                let count: &mut usize = counts.entry(subject.clone()).or_default();
                rows.push(Row { subject, place: *count, record });
                *count += 1;
            }
            self.files.push(DataFile { sha256: text::sha256_of_file(&path)?, path });
        }
        Ok(rows)
    }

    fn add_labels(&mut self, task: &Task, places: &[Place], pattern: &str) -> Result<(), EvaluateError> {
        // Where the records bring their labels, as the hub's files do, the published extra file is not needed.
        if self.rows.iter().all(|row| row.record.contains_key("label")) {
            return Ok(());
        }
        let mut found = locate(pattern, places)?;
        let Some(Found { path, .. }) = found.pop().filter(|_| found.is_empty()) else {
            return Err(wrong(task, format!("its labels `{pattern}` are not there: name their folder with `--data`")));
        };
        let labels = fs::read_to_string(&path).map_err(model::ModelError::io(&path))?;
        let labels: Vec<&str> = labels.lines().collect();
        if labels.len() != self.rows.len() {
            let what = format!("{} labels in {} for {} items", labels.len(), path.display(), self.rows.len());
            return Err(wrong(task, what));
        }
        for (row, label) in self.rows.iter_mut().zip(labels) {
            row.record.insert("label".to_owned(), Value::from(label.trim()));
        }
        self.files.push(DataFile { sha256: text::sha256_of_file(&path)?, path });
        Ok(())
    }
}

/// The solved examples in a task's own file.
fn examples(task: &Task) -> Result<Vec<Row>, EvaluateError> {
    let record = |(place, example)| match serde_json::to_value(example) {
        Ok(Value::Object(record)) => Ok(Row { subject: None, place, record }),
        _ => Err(wrong(task, format!("`data.examples` number {place} is no record"))),
    };
    task.data.examples.iter().enumerate().map(record).collect()
}

fn wrong(task: &Task, what: String) -> EvaluateError {
    EvaluateError::Task { task: task.name.clone(), what }
}

/// Where a data folder is a repository on the hub: its id.
pub fn hub_id(folder: &Path) -> Option<HubId> {
    HubId::parse(folder.to_str()?.strip_prefix("hub:")?)
}

/// Where data is looked for.
enum Place {
    Folder(PathBuf),
    Hub(DatasetFiles),
}

impl Place {
    fn new(task: &Task, folder: &Path) -> Result<Self, EvaluateError> {
        match (hub_id(folder), folder.to_string_lossy().starts_with("hub:")) {
            (Some(id), _) => Ok(Self::Hub(model::hub::dataset_files(&id)?)),
            (None, true) => {
                let what = format!("`{}` is no data set's repository: `hub:org/name[@revision]` is", folder.display());
                Err(wrong(task, what))
            }
            (None, false) => Ok(Self::Folder(folder.to_path_buf())),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Folder(folder) => folder.display().to_string(),
            Self::Hub(files) => format!("hub:{}@{}", files.id.name, files.id.revision),
        }
    }
}

/// The files that `pattern` names in the first place that has any, sorted; those of the hub are brought along.
fn locate(pattern: &str, places: &[Place]) -> Result<Vec<Found>, EvaluateError> {
    for place in places {
        let found = match place {
            Place::Folder(folder) => find(pattern, std::slice::from_ref(folder)),
            Place::Hub(files) => {
                let listed = listed(pattern, files).into_iter();
                let bring = |(path, subject): (&String, _)| {
                    model::hub::dataset_file(&files.id, path).map(|path| Found { path, subject })
                };
                listed.map(bring).collect::<Result<_, _>>()?
            }
        };
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

/// The paths in a repository that fit `pattern`, or what is left of it behind the repository's own name.
fn listed<'a>(pattern: &str, files: &'a DatasetFiles) -> Vec<(&'a String, Option<String>)> {
    let own = files.id.name.rsplit('/').next().unwrap_or_default();
    let inside = pattern.split_once('/').filter(|(first, _)| *first == own).map(|(_, rest)| rest);
    for pattern in [inside, Some(pattern)].into_iter().flatten() {
        let fit = |path: &'a String| match path_matches(pattern, path) {
            Match::No => None,
            Match::Plain => Some((path, None)),
            Match::Subject(subject) => Some((path, Some(subject))),
        };
        let found: Vec<_> = files.paths.iter().filter_map(fit).collect();
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

fn path_matches(pattern: &str, path: &str) -> Match {
    if pattern.split('/').count() != path.split('/').count() {
        return Match::No;
    }
    let mut whole = Match::Plain;
    for (part, name) in pattern.split('/').zip(path.split('/')) {
        match matches(part, name) {
            Match::No => return Match::No,
            Match::Plain => {}
            subject @ Match::Subject(_) => whole = subject,
        }
    }
    whole
}

/// A file with the subject that its name gives.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// Where.
    pub path: PathBuf,
    /// What stood for `{subject}`.
    pub subject: Option<String>,
}

/// The files that `pattern` names in the first folder that has any, sorted.
pub fn find(pattern: &str, folders: &[PathBuf]) -> Vec<Found> {
    let first = pattern.split('/').next().unwrap_or_default();
    for folder in folders {
        let own = folder.file_name().is_some_and(|name| name == first).then(|| folder.parent()).flatten();
        for root in [Some(folder.as_path()), own].into_iter().flatten() {
            let found = find_in(pattern, root);
            if !found.is_empty() {
                return found;
            }
        }
    }
    Vec::new()
}

fn find_in(pattern: &str, root: &Path) -> Vec<Found> {
    let root = if root.as_os_str().is_empty() { Path::new(".") } else { root };
    let mut folders = vec![(root.to_path_buf(), None)];
    for part in pattern.split('/') {
        let mut next = Vec::new();
        for (folder, subject) in folders {
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                match name.to_str().map_or(Match::No, |name| matches(part, name)) {
                    Match::No => {}
                    Match::Plain => next.push((entry.path(), subject.clone())),
                    Match::Subject(captured) => next.push((entry.path(), Some(captured))),
                }
            }
        }
        folders = next;
    }
    let files = folders.into_iter().filter(|(path, _)| path.is_file());
    let mut found: Vec<Found> = files.map(|(path, subject)| Found { path, subject }).collect();
    found.sort();
    found
}

/// How a name fits one part of a pattern.
#[derive(Debug, PartialEq, Eq)]
enum Match {
    No,
    Plain,
    /// With this in place of `{subject}`.
    Subject(String),
}

fn matches(part: &str, name: &str) -> Match {
    let Some((before, after)) = part.split_once("{subject}") else {
        return if wildcard(part.as_bytes(), name.as_bytes()) { Match::Plain } else { Match::No };
    };
    match name.strip_prefix(before).and_then(|rest| rest.strip_suffix(after)) {
        Some(subject) if !subject.is_empty() => Match::Subject(subject.to_owned()),
        _ => Match::No,
    }
}

fn wildcard(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) if wildcard(rest, name) => true,
        (Some((b'*', _)), Some((_, left))) => wildcard(pattern, left),
        (Some((b'?', rest)), Some((_, left))) => wildcard(rest, left),
        (Some((wanted, rest)), Some((is, left))) => wanted == is && wildcard(rest, left),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names_and_capture_subjects() {
        let subject = Match::Subject("high_school_physics".into());
        assert_eq!(matches("{subject}_test.csv", "high_school_physics_test.csv"), subject);
        assert_eq!(matches("{subject}_test.csv", "_test.csv"), Match::No);
        assert_eq!(matches("test-*.parquet", "test-00000-of-00001.parquet"), Match::Plain);
        assert_eq!(matches("t?st*", "test"), Match::Plain);
        assert_eq!(matches("test.csv", "Test.csv"), Match::No);
        assert_eq!(matches("*a*b", "xxaxxb"), Match::Plain);
        assert_eq!(matches("*a*b", "xxaxx"), Match::No);
    }

    #[test]
    fn a_repository_s_files_match_with_and_without_its_own_name() {
        let paths = ["all/test-0.parquet", "README.md", "law/test-0.parquet", "mmlu/x.csv", "virology/test-0.parquet"];
        let id = HubId::parse("org/mmlu").unwrap();
        let files = DatasetFiles { id, paths: paths.map(str::to_owned).to_vec() };
        let found = |pattern: &str| {
            let found = listed(pattern, &files).into_iter();
            found.map(|(path, subject)| (path.as_str(), subject)).collect::<Vec<_>>()
        };
        assert_eq!(found("mmlu/all/test-*.parquet"), [("all/test-0.parquet", None)]);
        let subjects = found("mmlu/{subject}/test-*.parquet");
        assert_eq!(subjects.len(), 3);
        assert_eq!(subjects[1], ("law/test-0.parquet", Some("law".to_owned())));
        assert_eq!(found("mmlu/x.csv"), [("mmlu/x.csv", None)]);
        assert_eq!(found("mmlu/{subject}_test.csv"), []);
        assert_eq!(found("other/all/test-*.parquet"), []);
    }

    #[test]
    fn a_folder_called_as_the_pattern_begins_is_the_patterns_own() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("mmlu");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("b_test.csv"), "").unwrap();
        fs::write(folder.join("a_test.csv"), "").unwrap();
        let expected: Vec<String> = vec!["a".into(), "b".into()];
        for data in [root.path().to_path_buf(), folder] {
            let found = find("mmlu/{subject}_test.csv", &[root.path().join("nowhere"), data]);
            assert_eq!(found.into_iter().map(|found| found.subject.unwrap()).collect::<Vec<_>>(), expected);
        }
    }
}
