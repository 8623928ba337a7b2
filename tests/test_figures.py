"""The figures of READMEs and configs are those of the records under experiments/."""

import importlib.util
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"


def records(path: str) -> list[dict]:
    return [json.loads(line) for line in (EXPERIMENTS / path).read_text().splitlines()]


def latest(config: str) -> list[dict]:
    """The final evaluation of each seed of an MNIST config, of the commit that was measured last."""
    mine = [r for r in records("003_mnist_accuracy/result.jsonl") if r["config"] == config]
    mine = [r for r in mine if (r["commit"], r.get("cores")) == (mine[-1]["commit"], mine[-1].get("cores"))]
    return list({r["seed"]: r for r in mine}.values())


def percent(values: Sequence[float], digits: int = 2) -> list[str]:
    return [f"{100 * value:.{digits}f}" for value in values]


def accuracies(config: str) -> list[float]:
    return [r["accuracy"] for r in latest(config)]


def scenes(experiment: str, variant: str, metric: str) -> list[float]:
    config = f"configs/scenes_{'detection' if '005' in experiment else 'segmentation'}.py:{variant}"
    return [r["splits"]["best_test"][metric] for r in records(f"{experiment}/result.jsonl") if r["config"] == config]


def instances(name: str, metric: str) -> list[float]:
    return [r["splits"]["best_test"][metric] for r in records("027_instances/result.jsonl") if r["name"] == name]


def mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f}"


def last(experiment: str, metric: str) -> float:
    final = records(f"{experiment}/result.jsonl")[-1]
    assert final["split"] == "best_test"
    return final[metric]


def spread(values: Sequence[float]) -> str:
    return f"{mean(values)} ({min(values):.3f} to {max(values):.3f})"


def fast() -> str:
    values = accuracies("mnist.py:fast")
    low, high, mean = percent([min(values), max(values), statistics.mean(values)])
    assert len(values) == 5
    return f"{low} to {high} % (seeds 0 to 4), mean {mean} %"


def fast_seconds() -> str:
    seconds = [r["seconds"] for r in latest("mnist.py:fast")]
    return f"{min(seconds):.1f} to {max(seconds):.1f} s from the start of the process"


LAST_ERRORS = "035_last_errors/results.jsonl"


def best() -> str:
    values = [r["test"]["accuracy"] for r in records(LAST_ERRORS)]
    low, high, mean = percent([min(values), max(values), statistics.mean(values)])
    assert len(values) == 5
    return f"{low} to {high} % (seeds 0 to 4), mean {mean} %"


def ensemble() -> str:
    return f"the five together {100 - len(records(LAST_ERRORS)[0]['ensemble']) / 100:.2f} %"


def kills() -> str:
    trials = json.loads((EXPERIMENTS / "001_kill_and_resume/result.json").read_text())["trials"]
    return f"{sum(t['identical'] for t in trials)} of {len(trials)} kills"


DETECTION, SEGMENTATION = "005_scenes_detection", "004_scenes_segmentation"
FRONT, EVIDENCE = "README.md", "experiments/README.md"
CLAIMS = [
    (lambda: f"{percent(accuracies('mnist.py'))[0]} %", (FRONT, EVIDENCE, "configs/mnist.py")),
    (fast, (FRONT, EVIDENCE, "configs/mnist.py")),
    (best, (FRONT, EVIDENCE, "configs/mnist.py")),
    (ensemble, (FRONT, EVIDENCE)),
    (kills, (FRONT, EVIDENCE)),
    *(
        (lambda v=variant, m=metric: spread(scenes(DETECTION, v, m)), (f"experiments/{DETECTION}/README.md",))
        for variant in ("rcnn", "fast", "faster")
        for metric in ("AP", "AR100")
    ),
    *(
        (lambda v=variant: spread(scenes(SEGMENTATION, v, "mean_iou")), (f"experiments/{SEGMENTATION}/README.md",))
        for variant in ("unet", "fcn8s", "fcn16s", "fcn32s")
    ),
    (lambda: f"test AP {last('008_blood_cells', 'AP'):.3f}, AP50 {last('008_blood_cells', 'AP50'):.3f}", (EVIDENCE,)),
    (lambda: f"AP50 {last('008_blood_cells', 'AP50'):.3f}", (FRONT,)),
    (
        lambda: (
            f"test Dice {spread(instances('nuclei_unet', 'f1'))}, IoU {mean(instances('nuclei_unet', 'iou'))}, "
            f"object F1 at IoU 0.5 {spread(instances('nuclei_unet', 'object_f1'))}"
        ),
        (EVIDENCE,),
    ),
    (
        lambda: f"Dice {mean(instances('nuclei_unet', 'f1'))}, object F1 {mean(instances('nuclei_unet', 'object_f1'))}",
        (FRONT,),
    ),
    *(
        (
            lambda v=variant: (
                f"test AP {statistics.mean(scenes(DETECTION, v, 'AP')):.3f}, "
                f"AP50 {spread(scenes(DETECTION, v, 'AP50'))}, "
                f"AR100 {statistics.mean(scenes(DETECTION, v, 'AR100')):.3f}"
            ),
            (EVIDENCE,),
        )
        for variant in ("rcnn", "fast", "faster")
    ),
    (lambda: f"test mIoU {spread(scenes(SEGMENTATION, 'unet', 'mean_iou'))}", (EVIDENCE,)),
    (lambda: f"mIoU {statistics.mean(scenes(SEGMENTATION, 'unet', 'mean_iou')):.3f}", (FRONT,)),
    (lambda: f"AP {statistics.mean(scenes(DETECTION, 'faster', 'AP')):.3f}", (FRONT,)),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CLAIMS)))
def test_a_figure_is_that_of_its_record(number):
    claim, files = CLAIMS[number]
    text = claim()
    for file in files:
        assert text in " ".join((ROOT / file).read_text().split()), f"{file} should say: {text}"


def test_the_tables_of_speed_are_those_of_their_records(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    spec = importlib.util.spec_from_file_location("speed", EXPERIMENTS / "010_speed" / "run.py")
    speed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(speed)
    made = records("010_speed/results.jsonl")
    assert speed.table(made) in (EXPERIMENTS / "010_speed" / "README.md").read_text()
    assert speed.front(made) in (ROOT / FRONT).read_text()


WITH_TABLES = sorted(page.parent.name for page in EXPERIMENTS.glob("0*/README.md") if "<!-- table -->" in page.read_text())


@pytest.mark.parametrize("experiment", [name for name in WITH_TABLES if not name.startswith(("010", "014"))])
def test_a_table_is_that_of_its_records(experiment, monkeypatch, tmp_path):
    folder = EXPERIMENTS / experiment
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import questions

    monkeypatch.setattr(questions, "save", lambda made, path: None)  # the plot is not looked at
    spec = importlib.util.spec_from_file_location(experiment, folder / "run.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    text = made.answer(records(f"{experiment}/results.jsonl"), tmp_path) if hasattr(made, "answer") else made.table()
    between = (folder / "README.md").read_text().partition("<!-- table -->")[2].partition("<!-- end of table -->")[0]
    assert text.strip() == between.strip()


def test_every_experiment_and_config_is_listed():
    listed = (EXPERIMENTS / "README.md").read_text()
    assert [p.name for p in sorted(EXPERIMENTS.glob("0*")) if f"({p.name})" not in listed] == []
    listed = (ROOT / "configs" / "README.md").read_text()
    assert [p.name for p in sorted((ROOT / "configs").glob("*.py")) if f"`{p.name}`" not in listed] == []
