"""Reads a float checkpoint from the bytes of its safetensors files, and writes every matrix of a linear as float32.

    read_float.py CHECKPOINT OUT    writes OUT/<module>.f32 (float32, [out, in] row-major), prints the modules' names

Independent of the Rust code and of the safetensors package, whose numpy reader has no bfloat16.
"""

import json
import pathlib
import struct
import sys

import numpy as np


def to_float32(data, dtype):
    if dtype == "BF16":
        return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, dtype={"F16": "<f2", "F32": "<f4"}[dtype]).astype(np.float32)


def tensors(file):
    content = file.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            data = content[8 + length + begin : 8 + length + end]
            yield name, to_float32(data, entry["dtype"]).reshape(entry["shape"])


def main(folder, out):
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    for file in sorted(folder.glob("*.safetensors")):
        for name, values in tensors(file):
            module = name.removesuffix(".weight")
            if values.ndim == 2 and module.endswith("_proj"):
                values.astype("<f4").tofile(out / f"{module}.f32")
                print(module)


main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
