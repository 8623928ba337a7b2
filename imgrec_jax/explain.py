"""Command line: python -m imgrec_jax.explain --workdir=runs/mnist PATH...   (or, once installed: imgrec explain ...)

Shows what in an image speaks for the answer: for a class, for a chosen detection, for the pixels of a class. Writes the image
under its heat as PNG and the raw values as .npy to WORKDIR/explain, and a JSON line an image to standard output.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from imgrec_jax.inference.command import Parser, ending_in_one_line, workdir_flags


def parser() -> Parser:
    made = Parser("explain", __doc__)
    workdir_flags(made)
    made.add_argument("paths", nargs="*", metavar="PATH", help="images, folders, globs, .npz, - for a list on standard input")
    made.add_argument("--method", help="one or several of gradients, smoothgrad, ig, gradcam, gradcam++, hirescam, occlusion, "
                      "rise, separated by commas (default gradcam; of a detection hirescam)")  # fmt: skip
    made.add_argument("--class", dest="class_name", metavar="NAME", help="what is explained (default: the answer)")
    made.add_argument("--box", type=int, default=0, metavar="N", help="detection: which box, 0 the best (of --class, if given)")
    made.add_argument("--layer", help="of Grad-CAM; a wrong name lists those there are")
    made.add_argument("--masks", type=int, default=1000, help="of RISE (default 1000)")
    made.add_argument("--window", type=int, help="side of an occluded square in pixels (default: an eighth of the image)")
    made.add_argument("--draws", type=int, default=50, help="of SmoothGrad (default 50)")
    made.add_argument("--seed", type=int, default=0, help="of what is random (default 0)")
    made.add_argument("--merit", action="store_true", help="also the areas under deletion and insertion")
    made.add_argument("--randomise", action="store_true", help="also the rank correlation with the map of a model whose last "
                      "layers are random: near 1 means that the map does not depend on the model")  # fmt: skip
    made.add_argument("--layers", action="store_true", help="show the first filters and every named map instead")
    made.add_argument("--out", metavar="DIR", help="default WORKDIR/explain")
    return made


def run(arguments: argparse.Namespace) -> int:
    """Does what the flags say; returns the exit status."""
    import numpy as np

    from imgrec_jax.attribution import explain
    from imgrec_jax.attribution.targets import NoGradient
    from imgrec_jax.inference import command, drawing, inputs, outputs

    fields = ("class_name", "box", "layer", "masks", "window", "draws", "seed")
    options = explain.Options(**{name: getattr(arguments, name) for name in fields})
    run = command.load(arguments)
    if not arguments.paths:
        raise ValueError("no images: give paths, or - to read a list of them from standard input")
    usual = "hirescam" if run.config.task == "detection" else "gradcam"
    chosen = [name.strip() for name in (arguments.method or usual).split(",") if name.strip()]
    if unknown := [name for name in chosen if name not in explain.METHODS]:
        raise ValueError(f"--method={','.join(unknown)} is unknown; choose of {', '.join(explain.METHODS)}")
    folder = Path(arguments.out).expanduser() if arguments.out else run.workdir / "explain"
    folder.mkdir(parents=True, exist_ok=True)
    names, faults, count = outputs.Names(), command.Faults(), 0
    for picture in inputs.of_words(arguments.paths, sys.stdin, **run.reading()):
        try:
            at = explain.prepare(run, picture, options)
        except ValueError as error:
            faults(picture, error)
            continue
        count += 1
        stem = folder / names.of(picture.name)
        if arguments.layers:
            path = stem.with_name(f"{stem.name}.layers.png")
            drawing.save(path, explain.layers_picture(at))
            print(path, flush=True)
            continue
        for method in chosen:
            try:
                heat, found = explain.explain(at, method, options)
            except NoGradient as error:
                faults(picture, error)
                continue
            line = {"file": picture.name, "explains": at.target.text, "method": method}
            line |= {"note": found.said} if found.said else {}
            line |= explain.figures_of_merit(at, heat) if arguments.merit else {}
            line |= {"randomised": explain.sanity(at, method, options)} if arguments.randomise else {}
            path = stem.with_name(f"{stem.name}.{method}.png")
            drawing.save(path, explain.drawn(at, heat, method))
            np.save(path.with_suffix(".npy"), found.values)
            print(json.dumps({**line, "picture": str(path)}, ensure_ascii=False), flush=True)
    return 1 if faults.count or not count else 0


def main(argv: Sequence[str] | None = None) -> None:
    with ending_in_one_line():
        raise SystemExit(run(parser().parse(argv)))


if __name__ == "__main__":
    main()
