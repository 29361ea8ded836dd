//! Running generated programs against their tests, each half in a sandbox of its own.
//!
//! ```text
//! checker (the problem's tests)  ──calls, as plain data──▶  solution (the generated program)
//!            └─ verdict ─▶ us                 ◀──values──
//! ```
//!
//! The program never shares a process with what judges it: it can't print the verdict, end the tests early, or put
//! something in the place of what compares; values come over as numbers, texts and collections, not as objects with
//! methods of their own. Both halves run under bubblewrap without network, without the user's files (only `/usr`, read
//! only, and an empty `/tmp`), in their own process tree, under another user where we are root, with limits on time,
//! memory, processes and file size. What can't be judged so: tests that look at how an argument was changed in place.
//!
//! The sandbox itself is bubblewrap's and the limits are prlimit's, both maintained elsewhere; nothing here replaces them.

use crate::EvaluateError;
use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

const SOLUTION: &str = include_str!("sandbox/solution.py");
const CHECKER: &str = include_str!("sandbox/checker.py");
/// Linux takes no longer argument; a program longer than this was not written by a model asked for a function.
const LONGEST_ARGUMENT: usize = 120_000;
/// The user and group `nobody`.
const NOBODY: &str = "65534";

/// A generated program with what judges it; all is Python.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trial {
    /// The generated program.
    pub solution: String,
    /// What the tests may use beside it.
    pub given: String,
    /// Names that mean the program's even where `given` or Python defines them.
    pub theirs: Vec<String>,
    /// The tests: they pass if they run to their end.
    pub tests: String,
}

/// What became of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every test passed.
    Passed,
    /// Some test failed or the program did not run; why.
    Failed(String),
    /// It took longer than allowed.
    TimedOut,
}

/// What a program may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Seconds from start to verdict.
    pub seconds: u64,
    /// Bytes of address space of each process.
    pub memory: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { seconds: 10, memory: 1 << 30 }
    }
}

/// The tools of the sandbox, found and tried out.
#[derive(Clone, Debug)]
pub struct Sandbox {
    bubblewrap: PathBuf,
    limiter: PathBuf,
    /// Where we are root: what makes us nobody first.
    unprivileged: Option<PathBuf>,
    python: PathBuf,
    limits: Limits,
}

impl Sandbox {
    /// Finds what is needed and runs a trial; the error says what is missing and how to get it.
    pub fn find(limits: Limits) -> Result<Self, EvaluateError> {
        let root = rustix::process::geteuid().is_root();
        let sandbox = Self {
            bubblewrap: tool("bwrap", "bubblewrap")?,
            limiter: tool("prlimit", "util-linux")?,
            unprivileged: root.then(|| tool("setpriv", "util-linux")).transpose()?,
            python: python()?,
            limits,
        };
        let trial = Trial { solution: "x = 3".to_owned(), tests: "assert x == 3".to_owned(), ..Trial::default() };
        match sandbox.judge(&trial)? {
            Verdict::Passed => Ok(sandbox),
            verdict => Err(refused(format!(
                "bubblewrap does not run here ({verdict:?}): the kernel has to allow unprivileged user namespaces \
                 (`sysctl kernel.unprivileged_userns_clone=1`, or on Ubuntu `kernel.apparmor_restrict_unprivileged_userns=0`)"
            ))),
        }
    }

    /// Runs `trial`.
    pub fn judge(&self, trial: &Trial) -> Result<Verdict, EvaluateError> {
        let Trial { solution, given, theirs, tests } = trial;
        if [solution, given, tests].iter().any(|text| text.len() > LONGEST_ARGUMENT || text.contains('\0')) {
            return Ok(Verdict::Failed("the program is too long or holds a zero byte".to_owned()));
        }
        let started = |error: std::io::Error| refused(format!("starting {}: {error}", self.bubblewrap.display()));
        let mut program = self.command(SOLUTION, &[solution]);
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut program = Killed(program.spawn().map_err(started)?);
        let (Some(to), Some(from)) = (program.0.stdin.take(), program.0.stdout.take()) else {
            return Err(refused("a child process has no pipes".to_owned()));
        };
        let mut checker = self.command(CHECKER, &[given, &theirs.join(","), tests]);
        checker.stdin(from).stdout(to).stderr(Stdio::piped());
        let mut checker = Killed(checker.spawn().map_err(started)?);
        Ok(self.verdict(&mut checker))
    }

    fn verdict(&self, checker: &mut Killed) -> Verdict {
        let Some(stderr) = checker.0.stderr.take() else { return Verdict::Failed("no verdict".to_owned()) };
        let (send, receive) = mpsc::channel();
        thread::spawn(move || {
            let mut text = Vec::new();
            let read = stderr.take(1 << 16).read_to_end(&mut text);
            send.send(read.map(|_| String::from_utf8_lossy(&text).into_owned()))
        });
        let Ok(text) = receive.recv_timeout(Duration::from_secs(self.limits.seconds)) else {
            return Verdict::TimedOut;
        };
        match text.unwrap_or_default().lines().last() {
            Some("passed") => Verdict::Passed,
            Some(line) => Verdict::Failed(line.trim_start_matches("failed: ").to_owned()),
            None => Verdict::Failed("the checker ended without a verdict".to_owned()),
        }
    }

    /// Python running `source` with `arguments`, inside.
    fn command(&self, source: &str, arguments: &[&str]) -> Command {
        let mut command = match &self.unprivileged {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--inh-caps=-all"]);
                command.arg(&self.bubblewrap);
                command
            }
            None => Command::new(&self.bubblewrap),
        };
        command.args(["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]);
        command.args(["--uid", NOBODY, "--gid", NOBODY, "--clearenv", "--proc", "/proc", "--dev", "/dev"]);
        command.args(["--size", "16777216", "--tmpfs", "/tmp", "--chdir", "/tmp", "--ro-bind", "/usr", "/usr"]);
        for folder in ["/lib", "/lib64", "/bin"] {
            command.args(["--ro-bind-try", folder, folder]);
        }
        let limits = self.limits;
        command.arg("--").arg(&self.limiter);
        command.args([format!("--as={}", limits.memory), format!("--cpu={}", limits.seconds + 1)]);
        command.args(["--nproc=32", "--fsize=16777216", "--nofile=64", "--core=0", "--"]);
        command.arg(&self.python).args(["-I", "-B", "-c", source]).args(arguments);
        command
    }
}

/// A child that does not outlive this value.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Both fail only for a child that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn refused(what: String) -> EvaluateError {
    EvaluateError::Sandbox { what }
}

fn tool(name: &str, package: &str) -> Result<PathBuf, EvaluateError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| {
        refused(format!("`{name}` is not installed: install the package {package} (`apt-get install {package}`)"))
    })
}

/// The system's own Python: one under a home folder is not visible inside.
fn python() -> Result<PathBuf, EvaluateError> {
    let found = ["/usr/bin/python3", "/usr/local/bin/python3"].map(Path::new).into_iter().find(|path| path.is_file());
    found.map(Path::to_path_buf).ok_or_else(|| {
        refused("there is no /usr/bin/python3 to run programs with: install the package python3".to_owned())
    })
}
