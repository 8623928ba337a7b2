"""Command line: python -m imgrec_jax.report --workdir=runs/mnist     (or, once installed: imgrec report ...)

Writes WORKDIR/report/index.html, one file that needs nothing else, and its plots as PNG and SVG beside it. With several runs,
imgrec report runs/a runs/b --out=compared, it compares them: configs, curves, results, paired tests on the same examples.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from imgrec_jax.inference.command import Parser, ending_in_one_line


def parser() -> Parser:
    made = Parser("report", __doc__)
    made.add_argument("runs", nargs="*", metavar="RUN", help="workdirs; more than one are compared")
    made.add_argument("--workdir", help="the trained run")
    made.add_argument("--checkpoint", help="best, last or a step (default: best where there is one, else last)")
    made.add_argument("--out", metavar="DIR", help="default WORKDIR/report, or report_of_N_runs for several")
    made.add_argument("--allow_code", action="store_true", help="run the Python files that a workdir carries")
    made.add_argument("--verbosity", type=int, default=0, help="1 shows where an error happened")
    return made


def run(arguments: argparse.Namespace) -> int:
    """Does what the flags say; returns the exit status."""
    from imgrec_jax.inference.command import note
    from imgrec_jax.pages import report

    folders = [*([arguments.workdir] if arguments.workdir else []), *arguments.runs]
    if not folders:
        raise ValueError("which run? give --workdir=RUN, or several runs to compare")
    out = Path(arguments.out).expanduser() if arguments.out else None
    if len(folders) == 1:
        options = {"checkpoint": arguments.checkpoint, "allow_code": arguments.allow_code}
        page = report.write(Path(folders[0]), note, out=out, **options)
    else:
        if arguments.checkpoint is not None:
            raise ValueError("--checkpoint is for one run; a comparison looks at the best checkpoint of each, else the last")
        out = out or Path(f"report_of_{len(folders)}_runs")
        page = report.compare([Path(folder) for folder in folders], note, out=out, allow_code=arguments.allow_code)
    print(page)
    return 0


def main(argv: Sequence[str] | None = None) -> None:
    with ending_in_one_line():
        raise SystemExit(run(parser().parse(argv)))


if __name__ == "__main__":
    main()
