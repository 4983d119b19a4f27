"""
Kills streaming runs at random moments and resumes them: is the result always the same, to the byte?

    python benchmarks/kill_resume.py [--cycles 20] [--method default] [--model FOLDER]

Protocol: SmolLM2-135M-Instruct is streamed once without disturbance, calibrated on a few tokens of `python-docs`.
In every cycle, a run is killed (SIGKILL) at a random moment of a random step and resumed with `--resume`. The SHA-256
of its weight files and its configuration, without the times, is compared. Writes
`benchmarks/results/kill_resume.json`.
"""

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, dense_smollm2, write


METHODS = {"default": [], "shared": ["--no-refit"], "paper": ["--rotation", "per_block", "--no-refit"]}


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        found.update(path.name.encode() + path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    del config["slicegpt"]["seconds"]
    found.update(json.dumps(config, sort_keys=True).encode())
    return found.hexdigest()


def steps_done(output: Path) -> int:
    try:
        return json.loads((output.parent / f".{output.name}.slicegpt" / "state.json").read_text())["done"]
    except FileNotFoundError:
        return 0


def start(args, output: Path, *more: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "optimum.commands.optimum_cli",
        "slicegpt",
        "compress",
        "--stream",
        "--json",
        *more,
    ]
    data = ["--dataset", "python-docs", "--own-tokens", 0, "--nsamples", args.nsamples, "--seqlen", args.seqlen]
    command += ["--model", args.model, "--output", output, *data, *METHODS[args.method]]
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(process: subprocess.Popen, output: Path) -> str:
    if process.wait() != 0:
        raise RuntimeError(f"A run into {output} failed with exit status {process.returncode}.")
    found = digest(output)
    shutil.rmtree(output)
    return found


def cycle(args, output: Path, moments: random.Random, steps: int, took: float) -> dict:
    """Kills one run and resumes it."""
    process, step = start(args, output), moments.randrange(steps)
    while steps_done(output) < step and process.poll() is None:
        time.sleep(0.01)
    time.sleep(moments.uniform(0, 2 * took / steps))
    process.kill()
    process.wait()
    left = sorted(path.name for path in output.parent.iterdir())
    return {"killed_after_steps": steps_done(output), "left": left} | {
        "sha256": finish(start(args, output, "--resume"), output)
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--method", choices=METHODS, default="default")
    parser.add_argument("--nsamples", type=int, default=2)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--model", help="a checkpoint to slice instead of SmolLM2")
    args = parser.parse_args()
    args.model = args.model or dense_smollm2()

    with tempfile.TemporaryDirectory() as folder:
        output, moments = Path(folder) / "sliced", random.Random(args.seed)
        process, begun, steps = start(args, output), time.perf_counter(), 0
        while process.poll() is None:
            steps = max(steps, steps_done(output))
            time.sleep(0.01)
        took, expected = time.perf_counter() - begun, finish(process, output)
        cycles = []
        for number in range(args.cycles):
            cycles.append(cycle(args, output, moments, steps, took))
            print(number + 1, cycles[-1], flush=True)
    about = {"method": args.method, "calibration": f"{args.nsamples} x {args.seqlen} tokens of python-docs"}
    same = sum(each["sha256"] == expected for each in cycles)
    found = {"steps": steps, "sha256": expected, "cycles": cycles, "same": same}
    print(f"{same} of {len(cycles)} are the same", write("kill_resume", about | found))


if __name__ == "__main__":
    main()
