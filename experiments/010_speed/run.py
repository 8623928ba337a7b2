"""Against PyTorch, in turn: python experiments/010_speed/run.py --suite=cpu [--only=REGEX] [--threads=2]

Both sides are processes of their own that stay alive; they are asked in turn, ours, theirs, ours, theirs, and while one works
the other waits. A pair is one round of each; the table shows medians over pairs, and the ratio is the median of the pairs'
ratios. `--threads=1` pins both to the last core. `--torch-python` names an interpreter that has torch==2.13.0, if it is not
this one; rows of detectors, their parts and operations need torchvision with its compiled operators beside it. Results go to
`results.jsonl`, one line a row, and the table of README.md is written from them: the latest result of a row, JAX version and
number of threads.

`--suite=gpu` asks both sides on the GPU, with batches that fill it (`case.py`), and writes to `results_gpu.jsonl`; its memory
is that of the GPU. `--small` is a look at whether all rows run, on small shapes, and keeps nothing.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runs

HERE = Path(__file__).resolve().parent


class Row(NamedTuple):
    text: str
    target: float  # the ratio that it is held against
    other: str = "theirs.py"
    suites: tuple[str, ...] = ("cpu",)


BOTH = ("cpu", "gpu")
VISION = "theirs_vision.py"
R50 = "R50 FPN, 800 x 1088"
ROWS = {
    "seed_a_train": Row("seed A, train, 64 x 28²", 1.5, suites=BOTH),
    "seed_b_train": Row("seed B, train, 64 x 28²", 1.5, suites=BOTH),
    "resnet18_32_train": Row("ResNet-18, train, 64 x 32²", 1.0, suites=BOTH),
    "resnet18_128_train": Row("ResNet-18, train, 16 x 128²", 1.0, suites=BOTH),
    "resnet18_224_train": Row("ResNet-18, train, 8 x 224²", 1.0, suites=BOTH),
    "resnet50_224_train": Row("ResNet-50, train, 8 x 224²", 1.0, suites=BOTH),
    "resnet50_224_forward": Row("ResNet-50, forward, 8 x 224²", 1.2, suites=BOTH),
    "resnet50_224_forward_1": Row("ResNet-50, forward, 1 x 224²", 1.2, suites=BOTH),
    "mobilenet_v2_224_train": Row("MobileNetV2, train, 16 x 224²", 1.0, VISION, BOTH),
    "vgg16_224_forward": Row("VGG16, forward, 8 x 224²", 1.0, suites=BOTH),
    "unet_128_train": Row("U-Net, width 32, train, 8 x 128²", 1.0, suites=BOTH),
    "body_fpn_800_train": Row("Faster R-CNN R50 body + FPN, train, 1 x 800 x 1088", 1.0),
    "body_fpn_800_forward": Row("Faster R-CNN R50 body + FPN, forward, 1 x 800 x 1088", 1.0),
    "faster_800_train": Row(f"Faster R-CNN {R50}, train", 1.0, VISION, BOTH),
    "faster_800_inference": Row(f"Faster R-CNN {R50}, inference", 1.0, VISION, BOTH),
    "mask_800_train": Row(f"Mask R-CNN {R50}, train", 1.0, VISION, BOTH),
    "mask_800_inference": Row(f"Mask R-CNN {R50}, inference", 1.0, VISION, BOTH),
    "retina_800_train": Row(f"RetinaNet {R50}, train", 1.0, VISION, BOTH),
    "retina_800_inference": Row(f"RetinaNet {R50}, inference", 1.0, VISION, BOTH),
    "rpn_head_800": Row("Faster R-CNN's RPN head, forward and backward", 1.0, VISION),
    "box_head_512": Row("Faster R-CNN's box head, 512 RoIs, forward and backward", 1.0, VISION),
    "mask_head_128": Row("Mask R-CNN's mask head, 128 RoIs, forward and backward", 1.0, VISION),
    "retina_head_800": Row("RetinaNet's towers, forward and backward", 1.0, VISION),
    "select_proposals": Row("from the RPN's outputs to 1,000 proposals", 1.0, VISION),
    "select_detections": Row("from the box head's outputs to 100 detections", 1.0, VISION),
    "nms_4x2000": Row("NMS, 4 x 2,000 boxes", 1.0, VISION, BOTH),
    "roi_align_512_forward": Row("RoIAlign, 512 RoIs, 7 x 7 x 256 of four levels, forward", 1.0, VISION, BOTH),
    "roi_align_512_train": Row("the same, forward and backward", 1.0, VISION, BOTH),
    "assign_268k": Row("matching 268,000 anchors with 100 boxes", 1.0, VISION),
    "input_480x640": Row("JPEG of 480 x 640 to random crops of 224², 32 a batch, against DataLoader", 1.3, "theirs_input.py"),
    "input_960x1280": Row("JPEG of 960 x 1280 to random crops of 224², 32 a batch, against DataLoader", 1.3, "theirs_input.py"),
    "input_480x640_reduced": Row(
        "the same of 480 x 640, decoded at a reduced scale where it is enough", 1.5, "theirs_input.py"
    ),
    "input_960x1280_reduced": Row(
        "the same of 960 x 1280, decoded at a reduced scale where it is enough", 1.5, "theirs_input.py"
    ),
    "coco_eval_1000": Row("COCO evaluation, 1,000 images x 100 detections, against pycocotools", 5.0, "theirs_coco.py"),
    "coco_eval_5000": Row("COCO evaluation, 5,000 images x 100 detections, against pycocotools", 5.0, "theirs_coco.py"),
}  # fmt: skip


class Side:
    """One process that does one work when asked."""

    def __init__(self, python: str, program: str, work: str, threads: int, more: Mapping[str, str]):
        env = dict(os.environ, OMP_NUM_THREADS=str(threads), **more)
        if threads == 1:
            flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
            env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {flags}".strip()
        cores = sorted(os.sched_getaffinity(0))[-threads:]
        command = [python, str(HERE / program), work, str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip
        self.info = self._read()

    def _read(self) -> dict:
        out: IO[str] = self.process.stdout
        line = out.readline()
        if not line:
            raise SystemExit(f"error: {' '.join(self.process.args)} ended with status {self.process.wait()}; see above")
        return json.loads(line)

    def measure(self, n: int) -> dict:
        self.process.stdin.write(f"{n}\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(work: str, args: argparse.Namespace) -> dict:
    """One row: `args.pairs` rounds of each side in turn."""
    other, more = ROWS[work].other, {"SPEED_SUITE": args.suite, "SPEED_SMALL": "1" if args.small else ""}
    if args.suite == "gpu" and not args.small:
        # JAX takes what it needs, as PyTorch does, so that peaks compare.
        more |= {"SPEED_DEVICE": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    sides = {
        "ours": Side(args.python, "ours.py", work, args.threads, more),
        "theirs": Side(args.python if other == "theirs_coco.py" else args.torch_python, other, work, args.threads, more),
    }
    # A round takes PyTorch so many seconds; pycocotools takes more for one.
    n = max(1, round(args.seconds / sides["theirs"].measure(1)["wall"])) if other != "theirs_coco.py" else 1
    rounds = {name: [] for name in sides}
    for _ in range(args.pairs):
        for name, side in sides.items():
            rounds[name].append(side.measure(n))
    for side in sides.values():
        side.close()
    _agree(work, [side[-1].get("result") for side in rounds.values()])
    record = {"work": work, "threads": args.threads, "load": os.getloadavg()[0], "repetitions": n}
    for name, side in sides.items():
        record[name] = {
            **side.info,
            **{f"{clock}_ms": [round(r[clock] / n * 1e3, 3) for r in rounds[name]] for clock in ("wall", "cpu")},
            "peak_mib": rounds[name][-1]["peak_mib"],
        }
    return record


def _agree(work: str, results: list) -> None:
    """Ends the program where two sides that both say what they found differ by more than 1e-9."""
    if None not in results and (far := max(abs(a - b) for a, b in zip(*results, strict=True))) > 1e-9:
        raise SystemExit(f"error: {work}: the two sides differ by {far:g}: {results}")


def ratio(record: dict, clock: str = "wall_ms") -> float:
    """PyTorch's time over ours, the median over pairs."""
    return statistics.median(b / a for a, b in zip(record["ours"][clock], record["theirs"][clock], strict=True))


def table(records: list[dict]) -> str:
    """The latest record of each (threads, JAX version, work), as Markdown."""
    latest = {(r["threads"], r["ours"]["version"], r["work"]): r for r in records}
    lines = [
        "| work | threads | JAX | ours, ms | theirs, ms | ratio | ratio of CPU time | to reach | peak MiB, ours / theirs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    order = list(ROWS)
    for (threads, version, work), r in sorted(
        latest.items(), key=lambda item: (-item[0][0], item[0][1], order.index(item[0][2]))
    ):
        ours, theirs = (statistics.median(r[side]["wall_ms"]) for side in ("ours", "theirs"))
        text, target = ROWS[work][:2]
        lines.append(
            f"| {text} | {threads} | {version.removeprefix('jax ')} | {ours:.4g} | {theirs:.4g} | **{ratio(r):.2f}** | "
            f"{ratio(r, 'cpu_ms'):.2f} | {target} | {r['ours']['peak_mib']:,} / {r['theirs']['peak_mib']:,} |"
        )
    return "\n".join(lines)


# Of the front page: a line of several rows.
FRONT = {
    "ResNet-50, 8 x 224²": {"train": "resnet50_224_train", "forward": "resnet50_224_forward"},
    "Faster R-CNN, ResNet-50 and FPN, 800 x 1088": {"train": "faster_800_train", "inference": "faster_800_inference"},
    "Mask R-CNN, the same": {"train": "mask_800_train", "inference": "mask_800_inference"},
    "RetinaNet, the same": {"train": "retina_800_train", "inference": "retina_800_inference"},
    "MobileNetV2, 16 x 224²": {"train": "mobilenet_v2_224_train"},
    "VGG16, 8 x 224²": {"forward": "vgg16_224_forward"},
    "ResNet-18": {
        "train at 64 x 32²": "resnet18_32_train", "at 16 x 128²": "resnet18_128_train", "at 8 x 224²": "resnet18_224_train",
    },
    "U-Net, 8 x 128²": {"train": "unet_128_train"},
    "PyTorch's and Keras's first MNIST networks": {"train": "seed_a_train", "and": "seed_b_train"},
}  # fmt: skip


def front(records: list[dict]) -> str:
    """The rows of two cores and JAX 0.10, in short."""
    latest = {r["work"]: r for r in records if r["threads"] == 2 and r["ours"]["version"].startswith("jax 0.10.")}
    lines = ["| | |", "| --- | --- |"]
    for name, works in FRONT.items():
        cells = [f"{word} **{ratio(latest[work]):.2f}**" for word, work in works.items() if work in latest]
        lines.append(f"| {name} | {', '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=BOTH, default="cpu")
    parser.add_argument("--small", action="store_true", help="small shapes, on the CPU, one short pair; keeps nothing")
    parser.add_argument("--only", default="", help="a regular expression over the names of rows: " + ", ".join(ROWS))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="that a round takes PyTorch, about")
    parser.add_argument("--python", default=sys.executable, help="interpreter of our side")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter with torch")
    parser.add_argument("--out", type=Path, help="default results.jsonl or results_gpu.jsonl here, and the table from it")
    args = parser.parse_args()
    works = [work for work in ROWS if args.suite in ROWS[work].suites and re.search(args.only, work)]
    if not works:
        raise SystemExit(f"error: --only={args.only!r} matches none of the {args.suite} suite: {list(ROWS)}")
    if args.small:
        args.pairs, args.seconds = 1, 0.01
    results = HERE / f"results{'_gpu' if args.suite == 'gpu' else ''}.jsonl"
    out = args.out or results
    for work in works:
        record = compare(work, args)
        print(
            f"{work:<24} {ratio(record):.2f} (CPU time {ratio(record, 'cpu_ms'):.2f}); ours {record['ours']['wall_ms']}, "
            f"theirs {record['theirs']['wall_ms']} ms, load {record['load']:.1f}", flush=True,
        )  # fmt: skip
        if args.small:
            continue
        with out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if out == results:
            write(args.suite, runs.read(results))


def write(suite: str, records: list[dict]) -> None:
    """The tables of the pages."""
    runs.put(HERE / "README.md", table(records), mark="table" if suite == "cpu" else "gpu")
    if suite == "cpu":
        runs.put(runs.ROOT / "README.md", front(records), mark="speed")


if __name__ == "__main__":
    main()
