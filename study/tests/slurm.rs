//! `--on slurm` against a real Slurm: one node on this machine, started here, without any privilege beyond root's in it.
//!
//! Skipped, loudly, where munge and Slurm (Debian: `slurm-wlm`, `munge`) are not installed or this is not root.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // helpers of tests may panic like the tests; skipping is told

use assert_cmd::Command;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process, thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(400);

const STUDY: &str = r#"
name = "queued"
question = "Does the queue change anything?"

[settings]
model = "demo"
method = "gptq"
bits = [4, 3]
group-size = [64, 32]
symmetric = false

[calibration.prose]
sources = ["demo:prose"]
samples = 64
sequence-length = 256

[evaluation.prose]
text = "demo:prose-heldout"
protocol = "hf-disjoint"
window = 64
"#;

/// A Slurm of one node; ends with the test.
struct Slurm {
    folder: TempDir,
    daemons: Vec<&'static str>,
}

fn run(program: &str, arguments: &[&str], configuration: &Path) -> Option<String> {
    let output = process::Command::new(program).args(arguments).env("SLURM_CONF", configuration).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "waited in vain for: {what}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// Munge may run already; it takes its own folder and user.
fn start_munge() {
    let answers = || {
        let pipe = process::Command::new("sh").args(["-c", "munge -n | unmunge"]).output();
        pipe.is_ok_and(|output| output.status.success())
    };
    if answers() {
        return;
    }
    let script = "mkdir -p /run/munge && chown munge /run/munge && runuser -u munge -- /usr/sbin/munged --force";
    let told = process::Command::new("sh").args(["-c", script]).output().unwrap();
    until(&format!("munged ({})", String::from_utf8_lossy(&told.stderr)), answers);
}

/// A port that nobody has: daemons that a killed test left behind don't get in the way.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Slurm {
    /// None, with the reason told, where there can be none.
    fn start() -> Option<Self> {
        let installed =
            |program: &&str| ["/usr/sbin", "/usr/bin"].iter().any(|at| Path::new(at).join(program).exists());
        let missing: Vec<_> =
            ["munged", "slurmctld", "slurmd", "sbatch"].into_iter().filter(|p| !installed(p)).collect();
        let root = process::Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
        if !missing.is_empty() || !root {
            eprintln!("SKIPPED: no Slurm to test with ({missing:?} not installed, root: {root})");
            return None;
        }
        let slurm = Self { folder: tempfile::tempdir().unwrap(), daemons: vec!["slurmd", "slurmctld"] };
        fs::write(slurm.configuration(), slurm.configured()).unwrap();
        start_munge();
        let conf = slurm.configuration();
        run("slurmctld", &[], &conf).expect("slurmctld starts");
        until("slurmctld", || run("sinfo", &["--noheader"], &conf).is_some());
        slurm.start_node();
        Some(slurm)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn configuration(&self) -> PathBuf {
        self.path("slurm.conf")
    }

    fn configured(&self) -> String {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let (host, folder) = (host.trim().split('.').next().unwrap(), self.folder.path().display());
        for part in ["state", "spool"] {
            fs::create_dir(self.path(part)).unwrap();
        }
        format!(
            "ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nAuthType=auth/munge\nAuthInfo=cred_expire=20\nProctrackType=proctrack/pgid\n\
             TaskPlugin=task/none\nSwitchType=switch/none\nMpiDefault=none\nSlurmUser=root\nReturnToService=2\n\
             SelectType=select/cons_tres\nSelectTypeParameters=CR_Core\nKillWait=2\nSlurmdTimeout=10\n\
             SlurmctldPidFile={folder}/slurmctld.pid\nSlurmdPidFile={folder}/slurmd.pid\n\
             StateSaveLocation={folder}/state\nSlurmdSpoolDir={folder}/spool\n\
             SlurmctldLogFile={folder}/slurmctld.log\nSlurmdLogFile={folder}/slurmd.log\n\
             SlurmctldPort={}\nSlurmdPort={}\n\
             NodeName={host} NodeAddr=127.0.0.1 CPUs={} RealMemory=1000 State=UNKNOWN\n\
             PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n",
            free_port(),
            free_port(),
            thread::available_parallelism().unwrap()
        )
    }

    fn start_node(&self) {
        let conf = self.configuration();
        run("slurmd", &[], &conf).expect("slurmd starts");
        until("an idle node", || {
            run("sinfo", &["--noheader", "--format=%T"], &conf).is_some_and(|states| states.contains("idle"))
        });
    }

    fn pid(&self, daemon: &str) -> Option<String> {
        Some(fs::read_to_string(self.path(&format!("{daemon}.pid"))).ok()?.trim().to_owned())
    }

    /// Kills the node's daemon, what it started the job with, and the job, as a crash of the machine would.
    fn lose_node(&self, worker: &str) {
        let own = self.pid("slurmd").expect("the node runs");
        let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim();
        for pid in [own.as_str(), parent, worker] {
            process::Command::new("kill").args(["-9", pid]).status().unwrap();
        }
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        let conf = self.configuration();
        let _ = run("scancel", &["--user=root"], &conf);
        for daemon in &self.daemons {
            if let Some(pid) = self.pid(daemon) {
                let _ = process::Command::new("kill").arg(pid).status();
            }
        }
    }
}

fn study(folder: &Path, slurm: &Slurm, arguments: &[&str]) -> (String, String) {
    let mut command = Command::cargo_bin("study").unwrap();
    let output = command.current_dir(folder).args(arguments).env("SLURM_CONF", slurm.configuration()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
    (out, err)
}

fn measured(results: &Path) -> Vec<(String, Value)> {
    let files = fs::read_dir(results).unwrap().map(|entry| entry.unwrap().path());
    let lines = files.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    let lines: Vec<Value> = lines
        .flat_map(|path| fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|line| serde_json::from_str(&line).ok())
        .collect();
    let mut cells: Vec<_> =
        lines.into_iter().map(|line| (line["cell"].as_str().unwrap().to_owned(), line["blocks"].clone())).collect();
    cells.sort_by(|a, b| a.0.cmp(&b.0));
    cells
}

/// The id of a worker of the study in `folder` that is quantizing.
fn worker(folder: &Path) -> Option<String> {
    let work = folder.join("study.results/work");
    fs::read_dir(work).ok()?.next()?.ok()?;
    let name = folder.join("study.results").to_string_lossy().into_owned();
    let processes = fs::read_dir("/proc").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_worker = |path: &PathBuf| {
        let words = fs::read(path.join("cmdline")).unwrap_or_default();
        let words: Vec<_> =
            words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        words.iter().any(|word| word == "--chunk") && words.contains(&name)
    };
    processes.filter(is_worker).find_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
}

#[test]
fn an_array_of_jobs_survives_the_loss_of_its_node_and_gives_the_same() {
    let Some(slurm) = Slurm::start() else { return };
    let (queued, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for folder in [&queued, &here] {
        fs::write(folder.path().join("study.toml"), STUDY).unwrap();
    }
    let more = ["--threads", "1", "--partition", "all", "--chunk-size", "2", "--time-limit", "10", "--jobs", "1"];
    let (_, told) = study(queued.path(), &slurm, &[&["run", "--on", "slurm"][..], &more].concat());
    assert!(told.contains("an array of 3, is submitted"), "{told}");
    let (status, _) = study(queued.path(), &slurm, &["status"]);
    assert!(status.contains("Slurm job ") && status.contains("3 chunks"), "{status}");

    // The machine goes down in the middle of a quantization, and comes back.
    let mut at_work = None;
    until("a worker at work", || {
        at_work = worker(queued.path());
        at_work.is_some()
    });
    slurm.lose_node(&at_work.unwrap());
    let before = measured(&queued.path().join("study.results")).len();
    assert!(before < 5, "the node was lost too late");
    slurm.start_node();
    let conf = slurm.configuration();
    until("all jobs through", || run("squeue", &["--noheader"], &conf).is_some_and(|queue| queue.trim().is_empty()));

    let (status, _) = study(queued.path(), &slurm, &["status"]);
    assert!(status.contains("5 of 5 cells measured, 0 failed, 0 open"), "{status}");
    study(here.path(), &slurm, &["run"]);
    assert_eq!(measured(&queued.path().join("study.results")), measured(&here.path().join("study.results")));
    let (again, _) = study(queued.path(), &slurm, &["run", "--on", "slurm"]);
    assert!(again.contains("measured 0 cells, 5 were there already"), "{again}");
}
