"""Runs a generated program (argv[1]) and answers calls to what it defines: the untrusted half of a test.

One JSON object a line: requests on stdin, answers on stdout, both of which the program itself doesn't get to see.
Values go over as plain data by their kind; what is not plain data stays here under a number.
"""
import json
import os
import sys

sys.set_int_max_str_digits(0)
requests, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
nothing = os.open(os.devnull, os.O_RDWR)
for descriptor in (0, 1, 2):
    os.dup2(nothing, descriptor)
kept = []


def encode(value):
    for kind, name in ((bool, "b"), (int, "i"), (float, "f"), (str, "s")):
        if isinstance(value, kind):
            return {name: hex(value) if name == "i" else float(value).hex() if name == "f" else kind(value)}
    if value is None:
        return {"n": 0}
    if isinstance(value, complex):
        return {"c": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, (bytes, bytearray)):
        return {"y": bytes(value).hex()}
    for kind, name in ((list, "l"), (tuple, "t"), (set, "e"), (frozenset, "z")):
        if isinstance(value, kind):
            return {name: [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"d": [[encode(key), encode(item)] for key, item in value.items()]}
    kept.append(value)
    return {"o": len(kept) - 1}


def decode(value):
    (name, value), = value.items()
    plain = {"b": bool, "i": lambda x: int(x, 16), "f": float.fromhex, "s": str, "n": lambda _: None,
             "y": bytes.fromhex, "o": lambda number: kept[number],
             "c": lambda parts: complex(*map(float.fromhex, parts)),
             "d": lambda pairs: {decode(key): decode(item) for key, item in pairs}}
    if name in plain:
        return plain[name](value)
    return {"l": list, "t": tuple, "e": set, "z": frozenset}[name](decode(item) for item in value)


def answer(request):
    what, arguments = request["do"], [decode(argument) for argument in request["arguments"]]
    if what == "name":
        return defined[arguments[0]]
    if what == "call":
        return arguments[0](*arguments[1:], **{name: decode(item) for name, item in request["named"].items()})
    if what == "attribute":
        return getattr(*arguments)
    if what == "set":
        return setattr(*arguments)
    if what == "items":
        return list(arguments[0])
    return arguments[0] == arguments[1]


def send(attempt):
    try:
        reply = json.dumps({"value": encode(attempt())})
    except BaseException as error:
        reply = json.dumps({"error": [type(error).__name__, str(error)]})
    answers.write(reply + "\n")
    answers.flush()


defined = {"__name__": "solution"}
send(lambda: exec(compile(sys.argv[1], "solution", "exec"), defined))
for line in requests:
    send(lambda: answer(json.loads(line)))
