"""Reads an AWQ checkpoint (version gemm) with numpy and safetensors alone, and dequantizes every linear.

    read_awq.py CHECKPOINT OUT    writes OUT/<module>.f32 (float32, [out, in] row-major), prints the modules' names

Independent of the Rust code: written from the layout table. A word holds eight outputs of one input column.
"""

import json
import pathlib
import sys

import numpy as np
from safetensors import safe_open

# Output 8c + ORDER[s] of a word lies in its bits 4s .. 4s + 4.
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def unpack(words):
    """[rows, out / 8] words to [rows, out] values."""
    words = words.view(np.uint32)
    values = np.zeros((words.shape[0], words.shape[1], 8), dtype=np.int64)
    for slot, output in enumerate(ORDER):
        values[:, :, output] = (words >> np.uint32(4 * slot)) & np.uint32(15)
    return values.reshape(words.shape[0], -1)


def dequantize(module, load, config):
    codes, zeros = unpack(load(f"{module}.qweight")), unpack(load(f"{module}.qzeros"))
    scales = load(f"{module}.scales")
    inputs, outputs = codes.shape
    size = config["group_size"] if config["group_size"] > 0 else inputs
    assert inputs % size == 0 and scales.dtype == np.float16
    assert scales.shape == zeros.shape == (inputs // size, outputs)
    group = np.arange(inputs) // size
    return (scales.astype(np.float32)[group] * (codes - zeros[group]).astype(np.float32)).T


def main(folder, out):
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["version"], config["bits"]) == ("awq", "gemm", 4)
    assert config["zero_point"] is True
    files = [safe_open(file, "np") for file in sorted(folder.glob("*.safetensors"))]
    place = {name: file for file in files for name in file.keys()}
    modules = [name.removesuffix(".qweight") for name in place if name.endswith(".qweight")]
    kept = config["modules_to_not_convert"] or []
    for module in modules:
        assert not any(part in module for part in kept), f"{module} should not be quantized"
        assert f"{module}.g_idx" not in place
        weight = dequantize(module, lambda name: place[name].get_tensor(name), config)
        np.ascontiguousarray(weight, dtype="<f4").tofile(out / f"{module}.f32")
    print("\n".join(modules))


main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
