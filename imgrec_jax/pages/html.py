"""One self-contained HTML file: no script, no font, no picture that is not in it, readable on a phone and in the dark."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgrec_jax.data.files import write_whole

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #777; --back: #fff; --ink: #1b1b1f; --bar: #3b7dd8; }
@media (prefers-color-scheme: dark) { :root { --back: #16171a; --ink: #e6e6e9; --quiet: #9a9aa2; --bar: #6aa5f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 1100px; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .2rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p.note, figcaption, .quiet { color: var(--quiet); font-size: .85rem; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
figure { margin: .6rem 0; } img { max-width: 100%; height: auto; }
img.small { image-rendering: pixelated; border-radius: 3px; }
.pictures { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); align-items: start; }
.pictures.large { grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); }
.pictures figure { margin: 0; } .pictures img { width: 100%; display: block; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; font-size: .9rem; } a { color: var(--bar); }
details > summary { cursor: pointer; font-weight: 600; } pre { overflow-x: auto; font-size: .8rem; }
"""


def escape(value: Any) -> str:
    return html.escape(str(value))


def number(value: Any) -> str:
    """A value of a table: 4 significant digits of a float, thousands apart, a dash for what is undefined."""
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, bool | str):
        return escape(value)
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    if isinstance(value, float | np.floating):
        return f"{float(value):.4f}" if 1e-3 <= abs(float(value)) < 1e4 or value == 0 else f"{float(value):.3e}"
    return escape(value)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{number(v)}</td>" for v in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(values: Mapping[str, Any]) -> str:
    """Names and values side by side."""
    return table(("", ""), values.items()).replace("<thead><tr><th></th><th></th></tr></thead>", "")


LARGEST = 1024  # pixels of the longer side of a picture in a page


def data_uri(image: np.ndarray, lossy: bool = False) -> str:
    """uint8 [H, W, 3] as a data URI: PNG, or JPEG where many colours make that larger."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "JPEG" if lossy else "PNG", **({"quality": 85} if lossy else {}))
    return f"data:image/{'jpeg' if lossy else 'png'};base64,{base64.b64encode(file.getvalue()).decode()}"


def picture(image: np.ndarray, text: str = "") -> str:
    """A picture with a line below; small ones keep their pixels."""
    small = max(image.shape[:2]) <= 160
    if (step := max(image.shape[:2]) / LARGEST) > 1:
        import cv2

        size = max(int(image.shape[1] / step), 1), max(int(image.shape[0] / step), 1)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    source = data_uri(image, lossy=not small and len(np.unique(image[:: max(len(image) // 64, 1)])) > 64)
    under = f"<figcaption>{escape(text)}</figcaption>" if text else ""
    alt = escape(text or "picture")
    return f'<figure><img {"class=small " if small else ""}src="{source}" alt="{alt}">{under}</figure>'


def pictures(items: Iterable[tuple[np.ndarray, str]], large: bool = False) -> str:
    """A grid of (picture, text)."""
    inner = "".join(picture(image, text) for image, text in items)
    return f'<div class="pictures{" large" if large else ""}">{inner}</div>'


def plot(png: bytes, text: str) -> str:
    """A plot of `plots.Plot.png`."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<figure><img src="{source}" alt="{escape(text)}"><figcaption>{escape(text)}</figcaption></figure>'


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def hidden(title: str, text: str) -> str:
    """Text that is shown when its title is clicked."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def page(title: str, under: str, sections: Iterable[tuple[str, str]]) -> str:
    """A whole file: a title with a line under it, and sections (heading, HTML); empty ones are left out."""
    kept = [(heading, body) for heading, body in sections if body]
    links = "".join(f'<a href="#s{n}">{escape(heading)}</a>' for n, (heading, _) in enumerate(kept))
    parts = "".join(f'<section id="s{n}"><h2>{escape(heading)}</h2>{body}</section>' for n, (heading, body) in enumerate(kept))
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1><p class=quiet>{escape(under)}</p><nav>{links}</nav>"
        f"{parts}</body></html>\n"
    )


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8", errors="backslashreplace"))
