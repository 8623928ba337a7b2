"""Listing folders: in this process, and by another one that was begun earlier."""

import os
import sys

import pytest

from imgrec_jax.data import walking


@pytest.fixture
def tree(tmp_path):
    """Files in nested folders, hidden ones, a link to a folder above, a link to nothing, names in any spelling."""
    for name in ("b/2.jpg", "a/1.jpg", "a b/ü\u0301.PNG", "a/deep/x.txt", ".git/config", "a/.hidden", "a/Thumbs.db"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    if sys.platform != "win32":
        (tmp_path / "b" / "up").symlink_to(tmp_path)
        (tmp_path / "b" / "gone.jpg").symlink_to(tmp_path / "nowhere")
        open(os.fsencode(tmp_path) + b"/a/\xff.jpg", "wb").close()
    return tmp_path


def test_another_process_finds_the_same_in_the_same_order(tree):
    here = walking.walk(tree)
    walking.begin(tree)
    assert walking._AHEAD
    there = walking.walked(tree)
    assert not walking._AHEAD and list(there.items()) == list(here.items()) and list(here) == sorted(here)
    assert "a/1.jpg" in here and here["a/1.jpg"] == (7, (tree / "a/1.jpg").stat().st_mtime_ns)
    assert not [name for name in here if "hidden" in name or "Thumbs" in name or ".git" in name or "up" in name]
    if sys.platform != "win32":
        assert here["b/gone.jpg"] == (-1, -1)


def test_what_was_begun_is_taken_once(tree):
    walking.begin(tree)
    walking.walked(tree)
    (tree / "new.jpg").write_bytes(b"1")
    assert "new.jpg" in walking.walked(tree)


def test_nothing_and_no_folder(tmp_path):
    walking.begin(tmp_path / "absent")
    walking.begin(tmp_path)
    assert walking.walked(tmp_path) == {} and not walking._AHEAD


def test_a_process_that_was_killed_is_made_up_for(tree):
    walking.begin(tree)
    next(iter(walking._AHEAD.values())).kill()
    assert walking.walked(tree) == walking.walk(tree)
