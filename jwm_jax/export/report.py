"""One HTML file that says what came out: numbers, videos, curves, tables, warnings, next commands.

The file is complete in itself. Its content security policy forbids every address but data in the
file, and it holds no script: videos play by themselves and charts carry their tooltips. All text is
escaped.

    report = Report("Demo", "A street reconstructed and continued.", {"clip": "procedural:easy:0"})
    report.headlines([Headline("23.4 dB", "PSNR at 2 s", "16 frames, protocol future-v1")])
    report.section("Reconstruction", "From 17 frames.").videos([(frames, "lane shift")], rate=10)
    report.write("report.html")
"""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from jwm_jax.export.chart import Series, line_chart
from jwm_jax.export.pictures import picture_bytes
from jwm_jax.export.report_style import STYLE
from jwm_jax.export.video import MEDIA_TYPES, encode_video
from jwm_jax.files import write_whole


@dataclass(frozen=True)
class Headline:
    """A number worth knowing first.

    Attributes:
        value: With its unit, such as "23.4 dB".
        label: What it is.
        how: How many samples and which protocol.
    """

    value: str
    label: str
    how: str


class Report:
    """A report under construction; every method adds to its last section and returns the report."""

    def __init__(self, title: str, lead: str = "", facts: Mapping[str, object] | None = None):
        """
        Args:
            title: Large, at the top.
            lead: A sentence or two below it.
            facts: Short ones by name: clip, device, seed.
        """
        self._title = title
        self._lead = lead
        self._facts = dict(facts or {})
        self._headlines: list[Headline] = []
        self._warnings: list[str] = []
        self._sections: list[list[str]] = []

    def headlines(self, numbers: Sequence[Headline]) -> "Report":
        """Numbers at the top."""
        self._headlines.extend(numbers)
        return self

    def warnings(self, sentences: Sequence[str]) -> "Report":
        """What a reader must know before believing the numbers, at the top."""
        self._warnings.extend(sentences)
        return self

    def section(self, title: str, text: str = "") -> "Report":
        """Begin a section."""
        words = f'<p class="text">{escape(text)}</p>' if text else ""
        self._sections.append([f"<h2>{escape(title)}</h2>{words}"])
        return self

    def text(self, sentences: str) -> "Report":
        """A paragraph."""
        return self._add(f'<p class="note">{escape(sentences)}</p>')

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = ""
    ) -> "Report":
        """A table; columns whose cells are all numbers (with units or without) stand right."""
        right = [all(_is_number(row[c]) for row in rows) for c in range(len(columns))]
        kind = [' class="n"' if r else "" for r in right]
        head = "".join(
            f'<th scope="col"{k}>{escape(c)}</th>' for c, k in zip(columns, kind, strict=True)
        )
        body = "".join(
            "<tr>"
            + "".join(f"<td{k}>{escape(_word(v))}</td>" for v, k in zip(row, kind, strict=True))
            + "</tr>"
            for row in rows
        )
        title = f"<caption>{escape(caption)}</caption>" if caption else ""
        return self._add(
            f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def figure(self, picture: np.ndarray, caption: str) -> "Report":
        """A picture [h, w, 3], uint8 or in [0, 1], across the page."""
        return self._add(_figure(_image(picture, caption), caption))

    def figures(self, pictures: Sequence[tuple[np.ndarray, str]]) -> "Report":
        """Pictures with captions, side by side where there is room."""
        return self._add(_grid([_figure(_image(p, c), c) for p, c in pictures]))

    def videos(self, videos: Sequence[tuple[np.ndarray, str]], rate: int | float) -> "Report":
        """Videos with captions, side by side where there is room; they play in a loop.

        Args:
            videos: Frames [F, h, w, 3], uint8 or in [0, 1], and a caption each.
            rate: Frames a second.
        """
        return self._add(_grid([_figure(_video(frames, rate, c), c) for frames, c in videos]))

    def strip(
        self,
        rows: Mapping[str, Sequence[np.ndarray]],
        columns: Sequence[str],
        caption: str = "",
    ) -> "Report":
        """Pictures in a grid, such as truth, prediction and error at several times.

        Args:
            rows: Pictures [h, w, 3] by row name, one a column.
            columns: What stands over each column, such as "0.4 s".
            caption: Below the grid.
        """
        head = "".join(f'<th scope="col">{escape(c)}</th>' for c in columns)
        body = "".join(
            f'<tr><th scope="row">{escape(name)}</th>'
            + "".join(
                f"<td>{_image(p, f'{name}, {c}')}</td>"
                for p, c in zip(pictures, columns, strict=True)
            )
            + "</tr>"
            for name, pictures in rows.items()
        )
        words = f'<p class="note">{escape(caption)}</p>' if caption else ""
        return self._add(
            f'<div class="scroll"><table class="strip"><thead><tr><td></td>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>{words}"
        )

    def chart(
        self,
        series: Sequence[Series],
        x_label: str,
        y_label: str,
        caption: str = "",
        log_y: bool = False,
    ) -> "Report":
        """A line chart; two in a row stand side by side where there is room."""
        drawing = line_chart(series, x_label, y_label, log_y=log_y, title=caption)
        return self._add(_figure(drawing, caption, kind="plot"))

    def timings(self, seconds: Mapping[str, int | float]) -> "Report":
        """How long each step took, as bars."""
        longest = max([*seconds.values(), 1e-9])
        rows = "".join(
            f'<tr><td>{escape(name)}</td><td class="n">{value:.2f} s</td><td>'
            f'<svg class="bar" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect x="0" y="2" width="{100 * value / longest:.2f}" height="8"/></svg></td></tr>'
            for name, value in seconds.items()
        )
        return self._add(f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>')

    def commands(self, lines: Sequence[str]) -> "Report":
        """Commands to copy."""
        return self._add(f"<pre>{escape(chr(10).join(lines))}</pre>")

    def html(self) -> str:
        """The whole document."""
        digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
        policy = (
            f"default-src 'none'; img-src data:; media-src data:; style-src 'sha256-{digest}'; "
            "base-uri 'none'; form-action 'none'"
        )
        facts = "".join(
            f"<li><b>{escape(str(k))}</b> {escape(str(v))}</li>" for k, v in self._facts.items()
        )
        numbers = "".join(
            f'<div class="number"><div class="value">{escape(h.value)}</div>'
            f'<div class="label">{escape(h.label)}</div>'
            f'<div class="how">{escape(h.how)}</div></div>'
            for h in self._headlines
        )
        warnings = "".join(f"<li>{escape(w)}</li>" for w in self._warnings)
        sections = "".join(
            f'<section class="section">{"".join(s)}</section>' for s in self._sections
        )
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self._title)}</title>\n<style>{STYLE}</style></head>\n<body><main>\n"
            f'<header><h1>{escape(self._title)}</h1><p class="lead">{escape(self._lead)}</p>'
            + (f'<ul class="facts">{facts}</ul>' if facts else "")
            + "</header>\n"
            + (f'<div class="numbers">{numbers}</div>\n' if numbers else "")
            + (f'<ul class="warnings">{warnings}</ul>\n' if warnings else "")
            + sections
            + "\n<footer>Written by jwm_jax. This file is complete in itself and opens offline."
            "</footer>\n</main></body></html>\n"
        )

    def write(self, path: str | os.PathLike) -> Path:
        """Write the document in one step.

        Returns:
            The path.

        Raises:
            ResourceError: The file cannot be written.
        """
        return write_whole(path, self.html())

    def _add(self, html: str) -> "Report":
        if not self._sections:
            self._sections.append([])
        self._sections[-1].append(html)
        return self


def _figure(content: str, caption: str, kind: str = "picture") -> str:
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="{kind}">{content}{words}</figure>'


def _grid(cells: list[str]) -> str:
    """Cells in two columns if that leaves no gap, else in as many as there is room for."""
    pairs = " pairs" if len(cells) in (2, 4) else ""
    return f'<div class="pictures{pairs}">{"".join(cells)}</div>'


def _image(picture: np.ndarray, text: str) -> str:
    return f'<img alt="{escape(text)}" src="{_data(picture_bytes(picture), "image/jpeg")}">'


def _video(frames: np.ndarray, rate: int | float, text: str) -> str:
    content, suffix = encode_video(frames, rate)
    source = _data(content, MEDIA_TYPES[suffix])
    if suffix == ".mp4":
        return (
            f'<video autoplay muted loop playsinline aria-label="{escape(text)}" '
            f'src="{source}"></video>'
        )
    return f'<img alt="{escape(text)}" src="{source}">'


def _data(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _is_number(value: object) -> bool:
    """Whether a cell reads as a number, with a unit or without."""
    if isinstance(value, int | float | np.number):
        return True
    word = str(value).split(" ")[0].lstrip("+-<>").rstrip("%x")
    try:
        float(word)
    except ValueError:
        return str(value) in ("", "-")
    return True


def _word(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
