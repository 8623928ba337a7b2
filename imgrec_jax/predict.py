"""Command line: python -m imgrec_jax.predict --workdir=runs/mnist PATH...   (or, once installed: imgrec predict ...)

PATH: images, folders (with those below them), globs, .npz or .npy arrays, videos, or "-" for a list of paths on standard input.
Answers go to standard output as JSON lines, one an image; what is wrong with an image goes to standard error with its name,
and the exit status is then 1.
"""

import argparse
import functools
import math
import sys
import time
from collections.abc import Sequence

from imgrec_jax.inference.command import Parser, ending_in_one_line, window_of_text, workdir_flags


def parser() -> Parser:
    made = Parser("predict", __doc__)
    workdir_flags(made)
    made.add_argument("paths", nargs="*", metavar="PATH", help="images, folders, globs, .npz, videos, - for a list on stdin")
    made.add_argument("--out", metavar="FILE", help="write the JSON lines there instead of to standard output")
    made.add_argument("--coco", metavar="FILE", help="also write a COCO result file (boxes, or masks as run lengths); "
                      "all answers are then of the pixels as stored, whatever EXIF orientation a file has")  # fmt: skip
    made.add_argument(
        "--save_images",
        metavar="DIR",
        help="also write every picture with its answer drawn, boxes from --threshold (else 0.5) on; of a video, a video",
    )
    made.add_argument(
        "--save_masks",
        metavar="DIR",
        help="segmentation: also write every mask as PNG of class numbers, and of objects' numbers to DIR/objects",
    )
    made.add_argument("--labels", metavar="PATH", help="the truth: a folder with a folder a class or a CSV, a COCO json, or a "
                      "folder of masks; adds the score of the prediction; boxes and masks "
                      "are of the pixels as stored")  # fmt: skip
    made.add_argument("--threshold", type=float, metavar="S", help="detection: leave out boxes with a lower score than S")
    made.add_argument("--window", type=window_of_text, metavar="H,W", help="detection: also look through windows of this size, "
                      "for small objects in large pictures (default the run's eval.window), or none")  # fmt: skip
    made.add_argument("--overlap", type=float, help="of the windows, as a share of their side (default the run's, 0.25)")
    made.add_argument("--every", type=int, default=1, metavar="N", help="of a video: one frame in N (default 1)")
    made.add_argument("--features", metavar="NAME", help="write a feature of every image instead: 'embedding', or a layer "
                      "('?' lists them), to the .npz file of --out")  # fmt: skip
    made.add_argument("--pairs", metavar="FILE", help="write the cosine similarity of pairs of images instead; lines of "
                      "PATH,PATH or PATH,PATH,1 for the same object and 0 for another")  # fmt: skip
    made.add_argument("--far", type=float, default=0.01, help="with --pairs: the false-accept rate whose threshold is printed")
    made.add_argument("--threads", type=int, default=2, help="that read images (default 2)")
    return made


def run(arguments: argparse.Namespace) -> int:
    """Does what the flags say; returns the exit status."""
    from imgrec_jax.inference import command, inputs, outputs, similarity

    began = time.perf_counter()
    for name, low, high in (("threshold", 0, 1), ("far", 0, 1), ("threads", 1, math.inf)):
        value = getattr(arguments, name)
        if value is not None and not low <= value <= high:
            raise ValueError(
                f"--{name}={value}; expected {low} to {high}" if high == 1 else f"--{name}={value}; expected {low} or more"
            )
    if arguments.labels:
        for flag in ("save_masks", "save_images"):
            if (folder := getattr(arguments, flag)) and outputs.is_one(folder, arguments.labels):
                raise ValueError(f"--{flag}={folder} is --labels, whose files would be written over; give another folder")
    run = command.load(arguments)
    say = command.note
    for line in run.lacks:
        say(f"note: {line}")
    if arguments.pairs:
        return similarity.compare(run, arguments.pairs, arguments.features, far=arguments.far, out=arguments.out, say=say)
    if arguments.features == "?":
        print("\n".join(similarity.feature_names(run)))
        return 0
    if not arguments.paths:
        raise ValueError("no images: give paths, or - to read a list of them from standard input")
    labels = run.labels_at(arguments.labels) if arguments.labels else None
    if arguments.every < 1:
        raise ValueError(f"--every={arguments.every}; expected 1 (every frame) or more")
    # COCO's results are of the pixels as stored, like its annotations.
    options = {**run.reading(labels is not None or arguments.coco is not None), "every": arguments.every}
    stored = inputs.AsStored(
        options["decode"] or functools.partial(inputs.decode, max_pixels=options["max_pixels"], upright=False)
    )
    found = inputs.of_words(arguments.paths, sys.stdin, **options | ({} if options["upright"] else {"decode": stored}))
    faults, undrawn = command.Faults(), command.Faults()
    if arguments.features:
        return similarity.write_features(run, found, arguments.features, arguments.out, faults)
    results = run.stream(
        command.shown(found), on_fault=faults, labels=labels, window=arguments.window, overlap=arguments.overlap,
        threads=arguments.threads,
    )  # fmt: skip
    count = 0
    with outputs.Writer(
        run, out=arguments.out, coco=arguments.coco, images=arguments.save_images, masks=arguments.save_masks,
        threshold=arguments.threshold, labels=labels, on_fault=undrawn,
    ) as writer:  # fmt: skip
        for result in results:
            writer.write(result)
            count += 1
    seconds = time.perf_counter() - began
    if writer.numbered:
        say("note: names of the images are no numbers, or the same: --coco has the numbers of their lines, 1, 2, ...")
    if stored.turned:
        say(
            f"note: {len(stored.turned):,} images have an EXIF orientation, e.g. {min(stored.turned)}: with --coco and "
            "--labels they are not turned, and all answers are of the pixels as stored"
        )
    if run.resized:
        height, width = run.image_size
        say(f"note: {run.resized:,} images of another size were stretched to the run's {height} x {width}")
    say(
        f"{count:,} images in {seconds:.1f} s ({count / seconds:,.1f} a second), {len(run.compiled)} compiled shapes, "
        f"{command.peak_memory()} of memory at most, with the {run.checkpoint} checkpoint (step {run.step:,})"
        + (f"; {faults.count:,} could not be read" if faults.count else "")
        + (f"; {undrawn.count:,} could not be drawn" if undrawn.count else "")
    )
    if labels is not None:
        score = labels.score()
        say(outputs.score_table(score, count))
        if arguments.out is not None:
            outputs.write_score(arguments.out, {"images": count, **score})
            say(f"all of it: {outputs.score_file(arguments.out)}")
    return 1 if faults.count or undrawn.count or not count else 0


def main(argv: Sequence[str] | None = None) -> None:
    with ending_in_one_line():
        raise SystemExit(run(parser().parse(argv)))


if __name__ == "__main__":
    main()
