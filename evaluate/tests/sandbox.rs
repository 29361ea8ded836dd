//! Programs that try to break out or to cheat, and programs that are right. Skipped loudly where there is no sandbox.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use evaluate::sandbox::{Limits, Sandbox, Trial, Verdict};
use std::fs;

fn sandbox() -> Option<Sandbox> {
    match Sandbox::find(Limits { seconds: 5, memory: 1 << 29 }) {
        Ok(sandbox) => Some(sandbox),
        Err(error) => {
            println!("SKIPPED sandbox: {error}");
            None
        }
    }
}

fn judge(sandbox: &Sandbox, solution: &str) -> Verdict {
    let tests = "def check(f):\n    assert f(2) == 4\n    assert f(-3) == 9\ncheck(square)";
    sandbox.judge(&Trial { solution: solution.to_owned(), tests: tests.to_owned(), ..Trial::default() }).unwrap()
}

#[test]
fn right_programs_pass_and_wrong_ones_fail() {
    let Some(sandbox) = sandbox() else { return };
    assert_eq!(judge(&sandbox, "def square(x):\n    print('noise')\n    return x * x"), Verdict::Passed);
    for wrong in [
        "def square(x):\n    return 4",
        "def square(x):\n  return x *",
        "",
        "def square(x):\n    raise ValueError('no')",
    ] {
        assert!(matches!(judge(&sandbox, wrong), Verdict::Failed(_)), "{wrong}");
    }
}

/// None of these may pass; each is paired with what it tries.
#[test]
fn nobody_breaks_out_or_cheats() {
    let Some(sandbox) = sandbox() else { return };
    // Not under /tmp, which is there inside, empty and the program's own.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (secret, target) = (folder.path().join("secret"), folder.path().join("written"));
    fs::write(&secret, "4").unwrap();
    let (read, written) = (secret.display(), target.display());
    let square = "def square(x): return x * x";
    let attempts = [
        ("reads a secret", format!("n = int(open('{read}').read())\n{square}")),
        ("writes outside", format!("open('{written}', 'w').write('x')\n{square}")),
        ("writes where programs lie", format!("open('/usr/bin/x', 'w').write('x')\n{square}")),
        ("opens a socket", format!("import socket\nsocket.create_connection(('127.0.0.1', 22), 2)\n{square}")),
        ("takes all memory", format!("x = bytearray(1 << 32)\n{square}")),
        ("loops for ever", "def square(x):\n    while True: pass".to_owned()),
        ("says it passed", "import os\nfor f in range(64):\n    try: os.write(f, b'passed\\n')\n    except OSError: pass".to_owned()),
        ("ends early with success", "import os\nos._exit(0)".to_owned()),
        ("ends with success when called", "import os\ndef square(x): os._exit(0)".to_owned()),
        ("kills whatever it sees", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.kill(-1, signal.SIGKILL)".to_owned()),
        ("puts in another checker", "import builtins\ncheck = lambda f: None\nbuiltins.check = check\ndef square(x): return 0".to_owned()),
        ("equals everything", "class A:\n    def __eq__(self, other): return True\n    __ne__ = lambda a, b: False\ndef square(x): return A() if x < 0 else [A()]".to_owned()),
        ("returns nothing but what equals everything", "class A:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\ndef square(x): return A()".to_owned()),
        ("is an int that equals everything", "class A(int):\n    def __eq__(self, other): return True\ndef square(x): return A(5)".to_owned()),
    ];
    for (what, solution) in attempts {
        assert_ne!(judge(&sandbox, &solution), Verdict::Passed, "{what}");
    }
    assert!(!target.exists());
    assert_eq!(judge(&sandbox, "def square(x):\n    while True: pass"), Verdict::TimedOut);
}

/// A fork bomb and a flood of output end, and the machine still works after.
#[test]
fn floods_are_dammed() {
    let Some(sandbox) = sandbox() else { return };
    let bomb = "import os\ndef square(x):\n    while True: os.fork()";
    let flood = "import sys\ndef square(x):\n    while True: print('x' * 10000); sys.stderr.write('y' * 10000)";
    let raw = "import os\ndef square(x):\n    while True:\n        for f in range(3, 20):\n            try: os.write(f, b'x' * 4096)\n            except OSError: pass";
    for solution in [bomb, flood, raw] {
        assert_ne!(judge(&sandbox, solution), Verdict::Passed, "{solution}");
    }
    assert_eq!(judge(&sandbox, "def square(x): return x * x"), Verdict::Passed);
}

#[test]
fn values_of_every_kind_and_objects_come_through() {
    let Some(sandbox) = sandbox() else { return };
    let solution = "import math\nfrom collections import Counter\nclass Pair:\n    def __init__(self, a, b): self.a, self.b = a, b\n\
        def echo(*a, **k): return (a, k)\ndef total(pairs): return sum(p.a + p.b for p in pairs)\n\
        def numbers(n):\n    for i in range(n): yield i\ndef count(text): return Counter(text)\ndef huge(): return 10 ** 6000";
    let tests = "values = (1, -2.5, float('inf'), True, None, 'ä\\n', b'x', [1, [2]], (3,), {4}, frozenset({5}), {'a': (6,)}, 2j)\n\
        assert echo(*values, k=[7]) == (values, {'k': [7]})\nassert type(echo(True)[0][0]) is bool\n\
        assert total([Pair(1, 2), Pair(3, 4)]) == 10\nassert Pair(1, 2).b == 2\np = Pair(1, 2)\np.b = 5\nassert p.b == 5\nassert list(numbers(3)) == [0, 1, 2]\n\
        assert count('aab') == {'a': 2, 'b': 1}\nassert math.isclose(1.0, 1.0 + 1e-12)\nassert huge() == 10 ** 6000\n\
        try:\n    total(3)\n    assert False\nexcept TypeError:\n    pass";
    let trial = Trial { solution: solution.to_owned(), tests: tests.to_owned(), ..Trial::default() };
    assert_eq!(sandbox.judge(&trial).unwrap(), Verdict::Passed);
}
