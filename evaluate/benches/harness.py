#!/usr/bin/env python3
"""Items/s of MMLU with five shots by lm-evaluation-harness and by Caliper: the same model, items, threads and machine.

    target/peers/bin/pip install torch transformers lm_eval
    target/release/quantize convert MODEL --format dequantized:float32 --out FOLDER
    target/peers/bin/python evaluate/benches/harness.py FOLDER DATA [ITEMS]

FOLDER is a checkpoint that both read, DATA holds mmlu/SUBJECT_{test,dev}.csv. ITEMS (25) of each of four subjects are answered.
lm-evaluation-harness is timed without start-up and loading, in float32, with the best of several batch sizes; Caliper's time
is that of its whole command, start-up and loading included. Two threads each. Both accuracies are printed: they must agree.
"""

import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM

SUBJECTS = ["anatomy", "econometrics", "formal_logic", "high_school_geography"]
TASK = """
task: mmlu_{subject}
dataset_path: csv
dataset_kwargs:
  data_files: {{test: "{folder}/{subject}_test.csv", dev: "{folder}/{subject}_dev.csv"}}
test_split: test
fewshot_split: dev
fewshot_config: {{sampler: first_n}}
num_fewshot: 5
output_type: multiple_choice
description: "The following are multiple choice questions (with answers) about {name}.\\n\\n"
doc_to_text: "{{{{question.strip()}}}}\\nA. {{{{choice0}}}}\\nB. {{{{choice1}}}}\\nC. {{{{choice2}}}}\\nD. {{{{choice3}}}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list:
  - metric: acc
"""


def prepare(data, folder, items):
    """The first items of each subject, as files for both."""
    (folder / "mmlu").mkdir()
    for subject in SUBJECTS:
        for part, most in (("test", items), ("dev", 5)):
            with open(data / "mmlu" / f"{subject}_{part}.csv", newline="") as file:
                rows = list(csv.reader(file))[: most + 1]
            with open(folder / "mmlu" / f"{subject}_{part}.csv", "w", newline="") as file:
                csv.writer(file).writerows(rows)
        text = TASK.format(subject=subject, folder=folder / "mmlu", name=subject.replace("_", " "))
        (folder / f"{subject}.yaml").write_text(text)


def harness(model, folder, batch):
    """Accuracy and seconds."""
    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    started = time.perf_counter()
    results = evaluator.simple_evaluate(
        model=HFLM(pretrained=model, batch_size=batch), tasks=[f"mmlu_{s}" for s in SUBJECTS], task_manager=tasks,
        bootstrap_iters=0,
    )["results"]
    return sum(r["acc,none"] for r in results.values()) / len(results), time.perf_counter() - started


def caliper(checkpoint, folder, compute):
    """Accuracy and seconds."""
    evaluate = Path(__file__).parents[2] / "target" / "release" / "evaluate"
    report = folder / "report.json"
    started = time.perf_counter()
    command = [evaluate, checkpoint, "--tasks", "mmlu", "--data", folder, "--threads", "2", "--compute", compute]
    subprocess.run([*command, f"--json={report}"], check=True, capture_output=True)
    seconds = time.perf_counter() - started
    metrics = json.loads(report.read_text())["tasks"][0]["model"]["metrics"]
    return next(m["value"] for m in metrics if m["metric"] == "acc"), seconds


def main():
    checkpoint, data = sys.argv[1], Path(sys.argv[2])
    items = int(sys.argv[3]) if len(sys.argv) > 3 else 25
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        prepare(data, folder, items)
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        runs = [(f"lm-evaluation-harness, batch {batch}", *harness(model, folder, batch)) for batch in (1, 4)]
        runs += [(f"Caliper {compute}", *caliper(checkpoint, folder, compute)) for compute in ("f32", "bf16x3")]
    count, best = items * len(SUBJECTS), min(seconds for _, _, seconds in runs[:2])
    for name, accuracy, seconds in runs:
        print(f"{name:34} acc {accuracy:.4f}  {count / seconds:6.2f} items/s  {best / seconds:5.2f} of the harness's best")


if __name__ == "__main__":
    main()
