"""Command line: python -m imgrec_jax.report --workdir=runs/mnist     (or, once installed: imgrec report ...)

Writes WORKDIR/report/index.html, one file that needs nothing else, and its plots as PNG and SVG beside it. With several runs,
imgrec report runs/a runs/b --out=compared, it compares them: configs, curves, results, paired tests on the same examples. The
folder of a sweep, or of several seeds, stands for its finished runs.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imgrec_jax.inference.command import Parser, ending_in_one_line


def parser() -> Parser:
    made = Parser("report", __doc__)
    made.add_argument("runs", nargs="*", metavar="RUN", help="workdirs; more than one are compared")
    made.add_argument("--workdir", help="the trained run")
    made.add_argument("--checkpoint", help="best, last or a step (default: best where there is one, else last)")
    made.add_argument("--out", metavar="DIR", help="default WORKDIR/report; for several runs report_of_N_runs, or SWEEP/report")
    made.add_argument("--allow_code", action="store_true", help="run the Python files that a workdir carries")
    made.add_argument("--verbosity", type=int, default=0, help="1 shows where an error happened")
    return made


def finished_runs(folder: Path) -> list[Path]:
    """The folder itself, or of a sweep its finished runs.

    Raises:
      ValueError: for a sweep without any.
    """
    from imgrec_jax.sweeps.runs import RESULTS, finished

    if not (folder / RESULTS).is_file():
        return [folder]
    if not (found := [folder / name for name in finished(folder)]):
        raise ValueError(f"{folder} is a sweep of which no run is finished; the command that began it goes on")
    return found


def ensemble_of(folder: Path) -> list[dict[str, Any]]:
    """What the ensemble of a folder of seeds was evaluated to; [] for any other folder."""
    from imgrec_jax.sweeps.seeds import ENSEMBLE

    return json.loads((folder / ENSEMBLE).read_text())["records"] if (folder / ENSEMBLE).is_file() else []


def run(arguments: argparse.Namespace) -> int:
    """Does what the flags say; returns the exit status."""
    from imgrec_jax.inference.command import note
    from imgrec_jax.pages import report

    given = [*([arguments.workdir] if arguments.workdir else []), *arguments.runs]
    folders = [run for folder in given for run in finished_runs(Path(folder).expanduser())]
    if not folders:
        raise ValueError("which run? give --workdir=RUN, or several runs to compare")
    out = Path(arguments.out).expanduser() if arguments.out else None
    if len(folders) == 1:
        options = {"checkpoint": arguments.checkpoint, "allow_code": arguments.allow_code}
        page = report.write(folders[0], note, out=out, **options)
    else:
        if arguments.checkpoint is not None:
            raise ValueError("--checkpoint is for one run; a comparison looks at the best checkpoint of each, else the last")
        out = out or (Path(given[0]).expanduser() / "report" if len(given) == 1 else Path(f"report_of_{len(folders)}_runs"))
        ensemble = [record for folder in given for record in ensemble_of(Path(folder).expanduser())]
        page = report.compare(folders, note, out=out, allow_code=arguments.allow_code, ensemble=ensemble)
    print(page)
    return 0


def main(argv: Sequence[str] | None = None) -> None:
    with ending_in_one_line():
        raise SystemExit(run(parser().parse(argv)))


if __name__ == "__main__":
    main()
