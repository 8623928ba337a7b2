"""The report of a run of every task, and of two runs."""

import itertools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from imgrec_jax import report, stats
from imgrec_jax.inference.results import MapResult
from imgrec_jax.pages import evidence, html, sections
from imgrec_jax.pages import report as page
from tests import chromium, small_runs


def call(*words):
    with pytest.raises(SystemExit) as ended:
        report.main([str(word) for word in words])
    return ended.value.code


HEADINGS = {
    "classification": ("Confusion matrix", "Calibration", "Precision, recall, F1", "Most confident mistakes"),
    "detection": ("Error breakdown", "Precision, recall, F1", "Images with the most errors", "Lists of test, step "),
    "segmentation": ("Per class", "Per image", "Worst images"),
}


@pytest.mark.parametrize("task", small_runs.TASKS)
def test_the_report_of_every_task_is_one_file_with_every_section(finished, tmp_path, task):
    assert call("--workdir", finished[task], "--out", tmp_path) == 0
    text = (tmp_path / "index.html").read_text()
    for heading in ("Result", "Learning curves", "Training batches", "Config", "Environment", *HEADINGS[task]):
        assert heading in text
    assert not re.search(r'(src|href)="(?!data:|#)', text) and "<script" not in text and "@import" not in text
    assert ("bootstrap over" in text) == (task == "detection")  # of a single test image there is no interval
    assert ("(Wilson)" in text) == (task == "classification")
    last = [r for r in map(json.loads, (finished[task] / "metrics.jsonl").read_text().splitlines()) if r["split"] == "test"][-1]
    metric = {"classification": "accuracy", "detection": "AP50", "segmentation": "mean_iou"}[task]
    assert f"<td>{metric}</td>" in text and f"<td>{last[metric]:.4f}</td>" in text
    assert {p.suffix for p in tmp_path.iterdir()} == {".html", ".png", ".svg"}


def test_the_numbers_of_the_best_checkpoint_are_its_own():
    """The state of step 22 is shown, the run went on to step 40."""
    from imgrec_jax.pages import report

    def record(step, split, right):
        numbers = {"accuracy": right / 100, "accuracy_correct": right, "accuracy_count": 100}
        return {"step": step, "epoch": 1.0, "split": split, **numbers, "by_class": {"cat": step}}

    records = [record(22, "train", 93), record(22, "validation", 92), record(22, "clinic", 91), record(40, "validation", 81)]
    records += [record(40, "test", 82), record(40, "clinic", 83), record(22, "best_test", 94), record(22, "best_clinic", 95)]
    text = report._result(22, records, [])
    heads = re.findall("<th>(.*?)</th>", text)
    assert heads[:5] == ["metric", "validation, step 40", "validation, step 22", "test, step 40", "best_test, step 22"]
    assert sorted(heads[5:]) == ["best_clinic, step 22", "clinic, step 40"]
    assert re.search("<td>accuracy</td>" + "".join(f"<td>0.{n}00</td>" for n in (81, 92, 82, 94)), text)
    assert "Test accuracy at step 22 0.9400: 94 of 100" in text
    assert report._shown(records, 22, "test")["by_class"] == {"cat": 22}
    assert "(Wilson)" not in page._result(30, records, [])  # no record is of that state
    body = report._side_by_side({"a": records, "b": records})
    assert all(f"<h3>{split}</h3>" in body for split in ("clinic", "best_clinic", "best_test")) and "<h3>train" not in body


def test_a_part_of_a_split_is_called_one_and_its_examples_by_their_own_numbers(finished, monkeypatch):
    import imgrec_jax
    from imgrec_jax.pages import evidence, report, sections

    monkeypatch.setattr(evidence, "MOST", 5)
    run = imgrec_jax.load(finished["classification"])
    source = evidence.splits(run)["test"]
    found = evidence.gather(run, "test", source)
    assert found.indices.tolist() != list(range(5)) and len(source) > 5
    shown = dict(sections.of(found)[0])
    text = "".join(shown[heading] for heading in ("Most confident mistakes", "Random successes"))
    assert set(re.findall(r"\(example (\d+)\)", text)) == set(map(str, found.indices))
    assert all(f"Of 5 evenly spread of the {len(source)} examples of test." in body for body in shown.values() if body)
    right = int(evidence.correct(found).sum())
    low, high = stats.wilson(right, 5)
    want = f"of 5 evenly spread of {len(source)} examples, 95 % interval {low:.4f} to {high:.4f} (Wilson, 5 images)."
    assert want in report.interval_line(found)


def test_two_runs_are_compared_on_the_same_examples(finished, small_data, tmp_path):
    from imgrec_jax import assemble
    from imgrec_jax.run import loop

    other = tmp_path / "other"
    config = small_runs.config_of("classification", small_data["classification"], optim__learning_rate=1e-5)
    loop.train(assemble.build(config), other, lambda line: None)
    assert call(finished["classification"], other, "--out", tmp_path / "both") == 0
    text = (tmp_path / "both" / "index.html").read_text()
    for part in ("optim.learning_rate", "McNemar, exact", "mean ± std", "<th>other</th>"):
        assert part in text


def test_without_the_data_it_says_so_and_reports_what_it_can(finished, tmp_path, capsys):
    import shutil

    copy = shutil.copytree(finished["segmentation"], tmp_path / "run")
    config = json.loads((copy / "config.json").read_text())
    config["data"]["manual_dir"] = "/nowhere"
    (copy / "config.json").write_text(json.dumps(config))
    assert call("--workdir", copy) == 0
    assert "without pictures" in capsys.readouterr().err and "Learning curves" in (copy / "report" / "index.html").read_text()
    assert "which run?" in str(call())


def test_the_report_is_written_at_the_end_of_training_and_once(small_data, tmp_path, monkeypatch):
    import imgrec_jax
    from imgrec_jax.pages import report

    def train(**changes):
        config = small_runs.config_of("classification", small_data["classification"], log__report=True, **changes)
        said = []
        imgrec_jax.train(imgrec_jax.build(config), tmp_path / "run", said.append)
        return said

    written = []
    monkeypatch.setattr(report, "write", lambda folder, say, **_: written.append(folder) or 1 / (len(written) - 1))
    assert any("no report (division by zero); imgrec report --workdir=" in line for line in train())
    (tmp_path / "run" / "report").mkdir()
    train()  # a run at its end, whose report is missing
    (tmp_path / "run" / "report" / "index.html").write_text("a report")
    train()
    assert written == [tmp_path / "run"] * 2


@pytest.mark.slow
@pytest.mark.skipif(chromium.CHROMIUM is None, reason="there is no Chromium on this machine")
@pytest.mark.parametrize("task", small_runs.TASKS)
def test_the_report_opens_without_a_word_or_a_request_on_a_phone_and_on_a_desk(finished, tmp_path, task):
    pytest.importorskip("playwright", reason="playwright is not installed")
    assert call("--workdir", finished[task], "--out", tmp_path) == 0
    for width, dark in itertools.product(chromium.WIDTHS, (False, True)):
        with chromium.opened((tmp_path / "index.html").as_uri(), width, dark) as page:
            page.screenshot(path=tmp_path / f"{width}_{dark}.png")
            assert page.locator("h2").count() > 5


@pytest.mark.parametrize("shape", [(1, 5000, 3), (5000, 1, 3)])
def test_a_picture_that_is_a_line_is_one(shape):
    assert html.picture(np.zeros(shape, np.uint8), "thin").startswith("<figure><img")


def test_several_labels_have_no_interval_over_label_decisions_and_a_column_a_score():
    record = {
        "split": "test", "step": 3, "accuracy": 0.5, "accuracy_correct": 27, "accuracy_count": 54,
        "mAP": 0.4, "mAP_low": 0.3, "mAP_high": 0.6, "per_label": {"a": {"AP": 0.25, "yes": 3}},
    }  # fmt: skip
    said = page._result(3, [record], [])
    assert "Wilson" not in said and "Test mAP at step 3 0.4000, 95 % interval 0.3000 to 0.6000 (bootstrap over images)" in said
    assert "<th>AP</th><th>yes</th>" in page._lists(record) and "{" not in page._lists(record)
    one = {key: value for key, value in record.items() if "mAP" not in key and key != "per_label"}
    assert "27 of 54" in page._result(3, [one], [])


def test_a_mean_over_classes_is_undefined_for_a_draw_without_one():
    there = np.array([[True, False, True], [True, False, False]])  # the second class is nowhere
    mean = evidence._of_all_classes(lambda weights: float(weights[0]), there)
    assert mean(np.array([2, 0])) == 2.0 and mean(np.array([0, 2])) is None


def test_two_runs_that_answer_alike_have_a_difference_of_nothing(monkeypatch):
    scores = np.array([0.5, 0.6, 0.9])
    source = SimpleNamespace(info=SimpleNamespace(identity="x", name="d test"))
    one = SimpleNamespace(source=source, split="test", indices=np.arange(3), results=[None] * 3)
    monkeypatch.setattr(page.looked, "statistic", lambda found: ("mean_iou", stats.mean_of(scores)))
    said = page._paired(["a", "b"], [[one], [one]])
    assert "mean_iou" in said and "whichever images are drawn" in said and "No two of these runs" not in said


def test_an_image_of_void_pixels_alone_has_no_iou_and_a_class_that_is_absent_no_recall():
    shape, names = (8, 8), ("nothing", "cell", "dirt")
    said = [np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)]
    said[1][2:4], said[1][6:] = 1, 2
    truth = np.where(said[1] == 2, 0, said[1])
    truths = [{"segmentation": truth, "pixel_valid": np.full(shape, n > 0)} for n in range(2)]
    results = [MapResult(f"{n}", shape, names, lambda: np.zeros((*shape, 3), np.uint8), None, said[n]) for n in range(2)]
    source = SimpleNamespace(info=SimpleNamespace(class_names=names))
    shown = dict(sections._segmentation(evidence.Evidence("test", source, np.arange(2), results, truths, 1.0), {}))
    assert "Median 0.556" in shown["Per image"]  # (32 / 48 + 1 + 0) / 3
    assert "example 0" not in shown["Worst images"] and "example 1" in shown["Worst images"]
    assert "mean IoU \u2013" in shown["Random images"]
    assert "<td>dirt</td><td>0</td><td>0.0000</td><td>\u2013</td><td>0.0000</td>" in shown["Per class"]


@pytest.mark.parametrize(("pixels", "count"), [(32, 5), (64, 5), (16, 4), (4, 1)])
def test_maps_are_looked_at_as_long_as_there_is_room_for_them(monkeypatch, pixels, count):
    monkeypatch.setattr(evidence, "MOST_PIXELS", pixels)
    example = {"image": np.zeros((2, 2, 3), np.uint8), "segmentation": np.ones((2, 2), np.int32), "instances": np.ones((2, 2))}
    found = evidence.gather(SimpleNamespace(predict=list), "test", [example] * 5)
    assert len(found.results) == len(found.truths) == count
    assert found.truths[0]["segmentation"].dtype == np.uint8 and set(found.truths[0]) == {"segmentation"}
