"""Command line: python -m imgrec_jax.export --workdir=runs/NAME --format=torchvision   (or, once installed: imgrec export ...)

Formats:
  stablehlo     the whole run as one file for cpu, cuda and tpu that jax alone runs: uint8 images in, answers out, with a JSON
                that describes it and a script of ten lines; compared with the live model before it is given away
  onnx          the same for ONNX Runtime (pip install 'imgrec-jax[onnx]'); a detector's file takes batches of one size
  torchvision   safetensors with the names and layouts of torchvision's state dicts, which the network of the same architecture
                there takes with load_state_dict(strict=True)
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from imgrec_jax.inference.command import Parser, ending_in_one_line, load, size_of_text, workdir_flags


class Format(NamedTuple):
    """write: (run, file) -> what to say of it; suffix: of the file's name; rows, size: whether it takes one of batches and of
    images, too."""

    write: Callable[..., str]
    suffix: str
    rows: bool = False
    size: bool = False


def _torchvision(run: Any, out: Path) -> str:
    from imgrec_jax.inference.export import write_torchvision

    return write_torchvision(run, out)


def _stablehlo(run: Any, out: Path, size: tuple[int, int] | None) -> str:
    from imgrec_jax.inference.stablehlo import write

    return write(run, out, size)


def _onnx(run: Any, out: Path, rows: int | None, size: tuple[int, int] | None) -> str:
    from imgrec_jax.inference.onnx_export import write

    return write(run, out, rows, size)


FORMATS: dict[str, Format] = {
    "onnx": Format(_onnx, ".onnx", rows=True, size=True),
    "stablehlo": Format(_stablehlo, ".bin", size=True),
    "torchvision": Format(_torchvision, ".safetensors"),
}


def parser() -> Parser:
    made = Parser("export", __doc__)
    workdir_flags(made)
    made.add_argument("--format", required=True, choices=sorted(FORMATS), help="what to write")
    made.add_argument("--out", metavar="FILE", help="default: WORKDIR/export/FORMAT and the format's suffix")
    made.add_argument("--batch_size", type=int, metavar="N", help="of the file's input, with onnx: any size where it is not "
                      "given, of a detector 1")  # fmt: skip
    made.add_argument("--image_size", type=size_of_text, metavar="H,W", help="of the file's input, with onnx and stablehlo "
                      "(default: that of the run's evaluation)")  # fmt: skip
    return made


def run(arguments: argparse.Namespace) -> None:
    """Does what the flags say."""
    made, rows, size = FORMATS[arguments.format], arguments.batch_size, arguments.image_size
    if rows is not None and (not made.rows or rows < 1):
        takes = "expected 1 or more" if made.rows else f"--format={arguments.format} takes batches of any size; leave it out"
        raise ValueError(f"--batch_size={rows}: {takes}")
    if size is not None and not made.size:
        raise ValueError(f"--image_size={size[0]},{size[1]}: --format={arguments.format} writes weights alone; leave it out")
    from imgrec_jax.inference.outputs import output_file

    loaded = load(arguments)
    name = (
        arguments.format + ("" if rows is None else f"_batch{rows}") + (f"_{size[0]}x{size[1]}" if size else "") + made.suffix
    )
    out = output_file("--out", arguments.out or loaded.workdir / "export" / name)
    print(made.write(loaded, out, *[rows] * made.rows, *[size] * made.size))


def main(argv: Sequence[str] | None = None) -> None:
    with ending_in_one_line():
        run(parser().parse(argv))


if __name__ == "__main__":
    main()
