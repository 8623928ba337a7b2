"""Layouts: the same numbers from one device, 8 under jit, 8 under pmap, and parameters in pieces; several processes."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest

from imgrec_jax import distributed, parallel
from imgrec_jax.data.batch import examples_per_process
from imgrec_jax.data.pipeline import Pipeline, sequential_order
from imgrec_jax.data.source import ArraySource, SourceInfo
from tests import small_runs

ROOT = Path(__file__).resolve().parents[1]


def report_of(script):
    """What a script prints with 8 fake devices."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, str(ROOT / "tests" / script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def report():
    return report_of("many_devices.py")


@pytest.mark.parametrize("layout", ["jit", "fsdp", "pmap"])
def test_many_devices_compute_what_one_does(report, layout):
    assert report[layout]["losses"] < 1e-5
    assert report[layout]["state"] < 1e-5


@pytest.mark.parametrize("layout", ["jit", "fsdp", "pmap"])
def test_metrics_count_every_valid_row_once_and_a_state_survives_a_change_of_layout(report, layout):
    assert report[layout]["counted"] == 16 - 5
    assert report[layout]["whole and back"]


@pytest.mark.slow
def test_detectors_of_masks_and_of_one_stage_step_alike_on_many_devices():
    """Mask R-CNN and RetinaNet: one step on 2 and 8 devices and with parameters in pieces, against one device, in float32."""
    found = report_of("many_devices_detection.py")
    assert len(found) == 6
    for layout, (of_step, of_objective) in found.items():
        assert of_step < 1e-4 and of_objective < 1e-5, layout


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("layout", ["one", "jit", "fsdp", "pmap"])
@pytest.mark.parametrize("elements", ["images", "pixels"])
def test_the_gradient_is_that_of_the_mean_over_what_is_valid(report, elements, layout, accumulate):
    of_gradient, of_objective = report["gradients"][f"{elements} {layout} {accumulate}"]
    assert of_gradient < 1e-7 and abs(of_objective) < 1e-6


def test_state_in_eight_pieces_takes_a_seventh_of_the_memory(report):
    assert report["bytes"]["8"] <= report["bytes"]["1"] / 7


def test_state_in_eight_pieces_is_born_so(report):
    assert report["born"]["8"] <= report["born"]["1"] / 7


def test_one_device_keeps_everything_whole():
    layout = parallel.make_layout("jit", 1)
    state = {"kernel": np.ones((3, 3, 8, 16), np.float32), "step": np.int32(4)}
    placed = layout.put_state(state)
    assert placed["kernel"].sharding.is_fully_replicated and int(placed["step"]) == 4
    assert parallel.bytes_per_device(placed) == 3 * 3 * 8 * 16 * 4 + 4


def test_a_split_on_the_devices_is_uploaded_and_compiled_for_once(monkeypatch):
    """However often it is asked for; and it leaves them with its source."""
    layout, uploads, compiled = parallel.make_layout("jit", 1), [], []
    put = jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda tree, *args: uploads.append(tree) or put(tree, *args))
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 1), dtype=np.uint8)

    def source():
        return ArraySource({"image": images.copy(), "label": np.arange(50)}, SourceInfo("numbers"))

    def evaluate(split):
        pipeline = Pipeline(split, sequential_order(50, 16), seed=0)
        batches = [batch for _, batch in parallel.feed(pipeline, 0, 4, layout, on_device=True)]
        for batch in batches:
            np.testing.assert_array_equal(batch["image"], images[np.asarray(batch["index"])])
        assert np.concatenate([batch["index"][batch["example_valid"]] for batch in batches]).tolist() == list(range(50))

    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    splits = [source(), source()]
    evaluate(splits[0])  # what comes first compiles, also numpy's ways of looking at arrays
    assert len(uploads) == 1 and len(compiled) >= 1
    before = len(compiled)
    for split in splits * 3:
        evaluate(split)
    assert len(uploads) == 2 and len(compiled) == before
    kept = [weakref.ref(layout._splits[split]["image"]) for split in splits]
    del split, splits
    uploads.clear()
    gc.collect()
    assert not layout._splits and [ref() for ref in kept] == [None, None]


def test_layouts_that_cannot_be():
    with pytest.raises(ValueError, match="fsdp=3 does not divide the 1 devices"):
        parallel.make_layout("jit", 3)
    with pytest.raises(ValueError, match="needs parallel.mode='jit'"):
        parallel.make_layout("pmap", 2)


def test_a_batch_that_does_not_divide_names_the_nearest():
    with pytest.raises(ValueError, match=r"100 does not divide among 8 devices; the nearest are \[96, 104\]"):
        examples_per_process(100, 1, 8)


def test_place_from_flags_environment_and_cluster():
    flags = ("host:1", 4, 3)
    whole = {"coordinator_address": "host:1", "num_processes": 4, "process_id": 3}
    assert distributed.place(*flags, {}) == whole
    variables = {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    assert distributed.place(None, None, None, variables) == whole
    assert distributed.place(None, None, 2, variables)["process_id"] == 2
    assert distributed.place(None, None, None, {}) is None
    assert distributed.place(None, None, None, {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert distributed.place(None, None, None, {"SLURM_STEP_NUM_TASKS": "8"}) == {}
    assert distributed.place(None, None, None, {"TPU_WORKER_HOSTNAMES": "a,b"}) == {}
    with pytest.raises(distributed.PlaceError, match=r"missing: \['process_id'\]"):
        distributed.place("host:1", 4, None, {})
    with pytest.raises(distributed.PlaceError, match="process_id=4: expected 0 to 3"):
        distributed.place("host:1", 4, 4, {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("host:1", "two", 0), "num_processes='two': expected a whole number"),
        (("host:1", 2, "x"), "process_id='x': expected a whole number"),
        (("host", 2, 0), "coordinator_address='host': expected the address and a port"),
    ],
)
def test_a_place_that_is_none_is_named(given, message):
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    with pytest.raises(distributed.PlaceError, match=message):
        distributed.place(None, None, None, dict(zip(names, map(str, given), strict=True)))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_processes_pad_alike_stop_at_one_place_and_end_together():
    """A batch has the size of its largest example, whoever read it; a signal to one stops all after equally many steps, also
    while it waits; and where one fails, the others end at once and say so."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command, pipes = (
        [sys.executable, str(ROOT / "tests" / "many_processes.py"), str(free_port())],
        {"text": True, "env": environment},
    )
    started = [
        subprocess.Popen([*command, str(index)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **pipes) for index in (0, 1)
    ]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in started]
    for out, err, status in ended:
        assert status == 1 and "Traceback" not in err, err
        found = json.loads(next(line for line in out.splitlines() if line.startswith("{")))
        assert found["shapes"] == [[[1, 8, 8, 1], [1, 16, 8, 1], [1, 8, 24, 1]]] * 2
        assert found["stopped"] == [5, signal.SIGINT]
    assert "process 0 of 2 stops: another one failed or cannot be reached (process 1: no data here)" in ended[0][1]
    assert ended[1][1].splitlines()[-1] == "error: no data here"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 0), (signal.SIGTERM, 0)])
def test_a_signal_to_one_process_makes_all_save_the_same_step(small_data, tmp_path, number, status):
    flags = ["--config.train.total_steps=1000000", "--config.log.every_steps=20", "--config.checkpoint.every_steps=1000000"]
    command = small_runs.command("classification", small_data["classification"], tmp_path / "w", *flags)
    place = [f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2"]
    started = [small_runs.launch([*command, *place, f"--process_id={index}"]) for index in (0, 1)]
    next(line for line in started[0].stdout if line.startswith("step 20/"))
    started[1].send_signal(number)
    (out, _), _ = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [status, status]
    step = next(line for line in out.splitlines() if " at step " in line).split("step ")[1].split(";")[0]
    assert [path.name for path in (tmp_path / "w" / "checkpoints").iterdir()] == [step]


def test_pieces_are_cut_from_the_largest_axis_that_divides():
    layout = parallel.make_layout("jit", 1)
    layout.mesh = jax.sharding.AbstractMesh((1, 4), (parallel.DATA, parallel.FSDP))
    spec = lambda shape: tuple(layout.placement(np.zeros(shape)).spec)  # noqa: E731
    assert spec((3, 3, 8, 16)) == (None, None, None, "fsdp")
    assert spec((3, 3, 16, 10)) == (None, None, "fsdp")
    assert spec((7,)) == ()
    assert spec(()) == ()
