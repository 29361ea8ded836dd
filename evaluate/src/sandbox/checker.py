"""Runs the tests of a problem against a program in another process: the trusted half of a test.

argv: code that the tests may use, names that are the program's whoever else defines them (separated by commas), the
tests. A name that nobody else defines is the program's. The verdict is the last line on stderr: `passed`, or `failed: ` and why.
"""
import builtins
import json
import os
import sys

LONGEST = 1 << 24
sys.set_int_max_str_digits(0)
answers, requests = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
verdicts = os.fdopen(os.dup(2), "w")
nothing = os.open(os.devnull, os.O_RDWR)
for descriptor in (0, 1, 2):
    os.dup2(nothing, descriptor)


class Remote:
    """Something of the program's that is not plain data."""

    def __init__(self, number):
        object.__setattr__(self, "number", number)

    def __call__(self, *arguments, **named):
        return ask("call", self, *arguments, **named)

    def __getattr__(self, name):
        return ask("attribute", self, name)

    def __setattr__(self, name, value):
        ask("set", self, name, value)

    def __iter__(self):
        return iter(ask("items", self))

    def __eq__(self, other):
        # Only two things of the program's may be compared by the program: against a value that a test expects, its own
        # `__eq__` could say anything.
        return type(other) is Remote and ask("equal", self, other) is True

    __hash__ = object.__hash__


def encode(value):
    kind = type(value)
    if kind is Remote:
        return {"o": value.number}
    if kind in (bool, str):
        return {"b" if kind is bool else "s": value}
    if value is None:
        return {"n": 0}
    if kind is int:
        return {"i": hex(value)}
    if kind is float:
        return {"f": value.hex()}
    if kind is complex:
        return {"c": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, (bytes, bytearray)):
        return {"y": bytes(value).hex()}
    for known, name in ((list, "l"), (tuple, "t"), (set, "e"), (frozenset, "z")):
        if isinstance(value, known):
            return {name: [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"d": [[encode(key), encode(item)] for key, item in value.items()]}
    raise TypeError(f"the tests pass a {kind.__name__}, which can't be handed over")


def decode(value):
    (name, value), = value.items()
    plain = {"b": bool, "i": lambda x: int(x, 16), "f": float.fromhex, "s": str, "n": lambda _: None,
             "y": bytes.fromhex, "o": Remote,
             "c": lambda parts: complex(*map(float.fromhex, parts)),
             "d": lambda pairs: {decode(key): decode(item) for key, item in pairs}}
    if name in plain:
        return plain[name](value)
    return {"l": list, "t": tuple, "e": set, "z": frozenset}[name](decode(item) for item in value)


def receive():
    line = answers.readline(LONGEST)
    if not line.endswith("\n"):
        raise EOFError("the program ended or said too much")
    answer = json.loads(line)
    if "error" in answer:
        name, text = answer["error"]
        kind = getattr(builtins, str(name), None)
        raises = kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError
        raise raises(f"{name}: {text}" if raises is RuntimeError else str(text))
    return decode(answer["value"])


def ask(what, *arguments, **named):
    request = {"do": what, "arguments": [encode(argument) for argument in arguments],
               "named": {name: encode(item) for name, item in named.items()}}
    requests.write(json.dumps(request) + "\n")
    requests.flush()
    return receive()


class Names(dict):
    def __missing__(self, name):
        if hasattr(builtins, name):
            raise KeyError(name)
        return ask("name", name)


def verdict():
    given, theirs, tests = sys.argv[1:]
    receive()
    names = Names(__name__="tests")
    exec(compile(given, "given", "exec"), names)
    for name in filter(None, theirs.split(",")):
        try:
            names[name] = ask("name", name)
        except KeyError:
            names.pop(name, None)
    exec(compile(tests, "tests", "exec"), names)


try:
    verdict()
    outcome = "passed"
except BaseException as error:
    outcome = f"failed: {type(error).__name__}: {error}".replace("\n", " ")[:300]
verdicts.write(outcome + "\n")
verdicts.flush()
