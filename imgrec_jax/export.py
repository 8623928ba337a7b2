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

from imgrec_jax.inference.command import Parser, ending_in_one_line, load, workdir_flags


class Format(NamedTuple):
    """write: (run, file) -> what to say of it; suffix: of the file's name; rows: whether it takes a size of batch, too."""

    write: Callable[..., str]
    suffix: str
    rows: bool = False


def _torchvision(run: Any, out: Path) -> str:
    from imgrec_jax.inference.export import write_torchvision

    return write_torchvision(run, out)


def _stablehlo(run: Any, out: Path) -> str:
    from imgrec_jax.inference.stablehlo import write

    return write(run, out)


def _onnx(run: Any, out: Path, rows: int | None) -> str:
    from imgrec_jax.inference.onnx_export import write

    return write(run, out, rows)


FORMATS: dict[str, Format] = {
    "onnx": Format(_onnx, ".onnx", rows=True),
    "stablehlo": Format(_stablehlo, ".bin"),
    "torchvision": Format(_torchvision, ".safetensors"),
}


def parser() -> Parser:
    made = Parser("export", __doc__)
    workdir_flags(made)
    made.add_argument("--format", required=True, choices=sorted(FORMATS), help="what to write")
    made.add_argument("--out", metavar="FILE", help="default: WORKDIR/export/FORMAT and the format's suffix")
    made.add_argument("--batch_size", type=int, metavar="N", help="of the file's input, with onnx: any size where it is not "
                      "given, of a detector 1")  # fmt: skip
    return made


def run(arguments: argparse.Namespace) -> None:
    """Does what the flags say."""
    made, rows = FORMATS[arguments.format], arguments.batch_size
    if rows is not None and (not made.rows or rows < 1):
        takes = "expected 1 or more" if made.rows else f"--format={arguments.format} takes batches of any size; leave it out"
        raise ValueError(f"--batch_size={rows}: {takes}")
    from imgrec_jax.inference.outputs import output_file

    loaded = load(arguments)
    name = arguments.format + ("" if rows is None else f"_batch{rows}") + made.suffix
    out = output_file("--out", arguments.out or loaded.workdir / "export" / name)
    print(made.write(loaded, out, rows) if made.rows else made.write(loaded, out))


def main(argv: Sequence[str] | None = None) -> None:
    with ending_in_one_line():
        run(parser().parse(argv))


if __name__ == "__main__":
    main()
