"""
Draws `docs/pictures/*.svg`: `python docs/generate_pictures.py`.

Every picture holds its colours for light and for dark pages, and a ground of its own, so that it can be read on a page
whose colours differ from those of the system.
"""

import json
import math
from pathlib import Path


FOLDER = Path(__file__).with_name("pictures")
SPECTRUM = Path(__file__).parents[1] / "benchmarks" / "results" / "spectrum.json"

STYLE = """
  svg { --ink: #1d2733; --soft: #5f6f83; --faint: #c8d0da; --ground: #ffffff;
        --stream: #24476f; --reader: #2f6fde; --writer: #c9591c; --extra: #23855a; --other: #8a4fc7; }
  @media (prefers-color-scheme: dark) {
    svg { --ink: #e3e8ef; --soft: #9fadbf; --faint: #48536a; --ground: #1e2129;
          --stream: #86b7ec; --reader: #79a9ff; --writer: #f09a63; --extra: #62cf9d; --other: #c39bf0; } }
  text { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
         fill: var(--ink); }
  .soft { fill: var(--soft); font-size: 13px; } .strong { font-weight: 600; } .big { font-size: 15px; }
  .box { stroke-width: 1.5; fill-opacity: .12; }
  .line { fill: none; stroke-width: 1.5; } .thick { stroke-width: 4; } .dashed { stroke-dasharray: 5 4; }
"""
COLOURS = ("ink", "soft", "faint", "stream", "reader", "writer", "extra", "other")


class Picture:
    """An SVG, drawn piece by piece. Colours are the names in `COLOURS`."""

    def __init__(self, width: int, height: int, title: str):
        self.width, self.height, self.title, self.parts = width, height, title, []

    def text(self, x, y, text, kind="", anchor="middle", colour=None):
        style = f' style="fill: var(--{colour})"' if colour else ""
        self.parts.append(f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}"{style}>{text}</text>')

    def box(self, x, y, width, height, label="", colour="ink", kind=""):
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" class="box {kind}" '
            f'style="stroke: var(--{colour}); fill: var(--{colour})"/>'
        )
        lines = label.split("\n")
        for number, line in enumerate(lines):
            self.text(x + width / 2, y + height / 2 + 5 + 17 * (number - (len(lines) - 1) / 2), line)

    def hatched(self, x, y, width, height):
        """Draws a hatched box: deleted rows or columns."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="url(#deleted)" '
            'style="stroke: var(--faint)" stroke-width="1.5"/>'
        )

    def line(self, points, colour="soft", kind="", arrow=True):
        path = " ".join(f"{x},{y}" for x, y in points)
        end = f' marker-end="url(#{colour})"' if arrow else ""
        self.parts.append(f'<polyline points="{path}" class="line {kind}" style="stroke: var(--{colour})"{end}/>')

    def dot(self, x, y, colour="stream", radius=6):
        self.parts.append(f'<circle cx="{x}" cy="{y}" r="{radius}" style="fill: var(--{colour})"/>')

    def plus(self, x, y, colour="stream"):
        self.parts.append(
            f'<circle cx="{x}" cy="{y}" r="10" class="line" style="fill: var(--ground); stroke: var(--{colour})"/>'
        )
        self.line([(x - 5, y), (x + 5, y)], colour, arrow=False)
        self.line([(x, y - 5), (x, y + 5)], colour, arrow=False)

    def svg(self) -> str:
        size = 'viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" markerUnits="userSpaceOnUse"'
        heads = "".join(
            f'<marker id="{name}" {size} orient="auto"><path d="M0 0 8 4 0 8z" style="fill: var(--{name})"/></marker>'
            for name in COLOURS
        )
        hatch = (
            '<pattern id="deleted" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
            '<line x1="0" y1="0" x2="0" y2="7" style="stroke: var(--faint)" stroke-width="3"/></pattern>'
        )
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img">\n'
            f"<title>{self.title}</title>\n<style>{STYLE}</style>\n<defs>{heads}{hatch}</defs>\n"
            f'<rect width="{self.width}" height="{self.height}" rx="8" style="fill: var(--ground)"/>\n{body}\n</svg>\n'
        )


def stream() -> Picture:
    picture = Picture(760, 220, "The residual stream, who reads it and who writes it")
    level = 160
    picture.line([(104, level), (644, level)], "stream", "thick", arrow=False)
    picture.box(12, level - 22, 92, 44, "embedding", "writer")
    picture.box(690, level - 22, 58, 44, "head", "reader")
    for left, readers, core, writer, site in (
        (146, "q, k, v", "attention", "o", 0), (396, "gate, up", "MLP", "down", 1),
    ):  # fmt: skip
        picture.line([(left, level), (left, 122)])
        picture.box(left - 27, 94, 54, 28, "norm", "soft")
        picture.line([(left, 94), (left, 46), (left + 20, 46)])
        picture.box(left + 20, 22, 70, 48, readers, "reader")
        picture.text(left + 132, 51, core)
        picture.line([(left + 168, 46), (left + 180, 46)])
        picture.box(left + 180, 22, 52, 48, writer, "writer")
        picture.line([(left + 206, 70), (left + 206, level - 11)], "writer")
        picture.plus(left + 206, level)
        picture.dot(left, level)
        picture.text(left, level + 32, f"site {site}", "soft")
    picture.dot(644, level)
    picture.text(644, level + 32, "site 2", "soft")
    picture.line([(644, level), (644, 122)])
    picture.box(617, 94, 54, 28, "norm", "soft")
    picture.line([(671, 108), (719, 108), (719, level - 22)])
    return picture


def slicing() -> Picture:
    picture = Picture(760, 212, "What slicing deletes of every matrix")
    top = 60
    for left, width, height, kept_w, kept_h, name, shape, colour in (
        (30, 96, 130, 68, 130, "embedding", "V × k", "writer"),
        (175, 96, 84, 68, 84, "reader", "out × k", "reader"),
        (330, 84, 96, 84, 68, "writer", "k × in", "writer"),
        (475, 96, 96, 68, 68, "shortcut", "k′ × k", "extra"),
        (630, 96, 130, 96, 130, "head", "V × D", "reader"),
    ):  # fmt: skip
        picture.box(left, top, kept_w, kept_h, "", colour)
        if kept_w < width:
            picture.hatched(left + kept_w, top, width - kept_w, height)
        if kept_h < height:
            picture.hatched(left, top + kept_h, kept_w, height - kept_h)
        picture.text(left + width / 2, 34, name, "strong", colour=colour)
        picture.text(left + kept_w / 2, top + kept_h / 2 + 5, shape)
    return picture


def rotations() -> Picture:
    picture = Picture(760, 330, "A rotation for every block, and one that all share")
    for top, shared in ((0, False), (165, True)):
        level = top + 106
        picture.text(20, top + 28, f'rotation="{"shared" if shared else "per_block"}"', "strong big", "start")
        colours = ["stream"] * 4 if shared else ["reader", "extra", "other", "stream"]
        names = ["Q"] * 4 if shared else ["Q₀", "Q₁", "Q₂", "Q₃"]
        for index in range(3):
            start, stop = 112 + 180 * index, 292 + 180 * index
            before, after = colours[index : index + 2]
            turn = stop if shared else start + 128
            picture.line([(start, level), (min(turn, start + 52), level)], before, "thick", arrow=False)
            if not shared:
                picture.box(start + 52, level - 16, 76, 32, f"{names[index]}ᵀ{names[index + 1]}", "extra")
            picture.line([(start + 52 if shared else turn, level), (stop, level)], after, "thick", arrow=False)
            picture.line([(start + 26, level), (start + 26, level - 42), (start + 42, level - 42)], before)
            picture.box(start + 42, level - 60, 84, 36, "block", "soft")
            picture.line([(start + 126, level - 42), (stop - 22, level - 42), (stop - 22, level - 11)], after)
            picture.plus(stop - 22, level, after)
            picture.dot(start + 26, level, before)
            picture.text(start + 26, level + 28, names[index], colour=before)
        picture.line([(652, level), (690, level)], colours[3], "thick", arrow=False)
        picture.dot(672, level, colours[3])
        picture.text(672, level + 28, names[3], colour=colours[3])
        picture.box(20, level - 20, 92, 40, "embedding", colours[0])
        picture.box(690, level - 20, 56, 40, "head", colours[3])
    return picture


def norms() -> Picture:
    picture = Picture(760, 232, "Norms fused into their neighbours")

    def chain(y, boxes):
        x = 130
        for position, (label, width, colour) in enumerate(boxes):
            if position:
                picture.line([(x, y + 20), (x + 14, y + 20)])
                x += 14
            picture.box(x, y, width, 40, label, colour)
            x += width

    centre, gain = ("− mean", 70, "soft"), ("× g + b", 76, "soft")
    writer, reader, root = ("W", 60, "writer"), ("U", 60, "reader"), ("÷ rms", 66, "stream")
    picture.text(20, 28, "LayerNorm between a writer W and a reader U:", "strong", "start")
    picture.text(20, 75, "before", "soft", "start")
    chain(50, [writer, ("+ stream", 82, "stream"), centre, root, gain, reader])
    picture.text(20, 135, "after", "soft", "start")
    chain(
        110,
        [("(I − 11ᵀ/D) W", 130, "writer"), ("+ stream", 82, "stream"), root, ("U diag(g), bias U b", 170, "reader")],
    )
    picture.text(20, 195, "rotated", "soft", "start")
    chain(
        170,
        [("c Qᵀ(I − 11ᵀ/D) W", 162, "writer"), ("+ stream", 82, "stream"), root,
         ("U diag(g) Q / c, bias U b", 200, "reader")],
    )  # fmt: skip
    return picture


def refit() -> Picture:
    picture = Picture(760, 300, "A refit, with two streams side by side")
    dense, sliced = 70, 226
    picture.text(20, dense + 5, "dense", "strong", "start", "stream")
    picture.text(20, sliced + 5, "sliced", "strong", "start", "extra")
    picture.line([(110, dense), (668, dense)], "stream", "thick", arrow=False)
    picture.line([(110, sliced), (668, sliced)], "extra", "thick", arrow=False)
    for x, one, two in ((110, "x", "z"), (680, "x′", "z′")):
        picture.dot(x, dense, "stream")
        picture.dot(x, sliced, "extra")
        picture.text(x, dense - 16, one, "strong")
        picture.text(x, sliced + 28, two, "strong")
    picture.line([(150, dense), (150, 36), (300, 36)], "stream")
    picture.box(300, 20, 150, 32, "the dense block", "stream")
    picture.line([(450, 36), (624, 36), (624, dense - 10)], "stream")
    picture.plus(624, dense)
    picture.line([(150, sliced), (150, sliced + 44), (206, sliced + 44)], "extra")
    picture.box(206, sliced + 26, 90, 36, "readers", "reader")
    picture.line([(296, sliced + 44), (310, sliced + 44)], arrow=False)
    picture.text(372, sliced + 49, "attention or MLP")
    picture.line([(434, sliced + 44), (448, sliced + 44)])
    picture.box(448, sliced + 26, 90, 36, "writers", "writer")
    picture.line([(538, sliced + 44), (624, sliced + 44), (624, sliced + 10)], "extra")
    picture.plus(624, sliced, "extra")
    picture.line([(180, dense), (180, 148), (251, 148), (251, sliced + 26)], "reader", "dashed")
    picture.text(192, 122, "1  fitted to find in norm(z)", anchor="start", colour="reader")
    picture.text(208, 140, "what the dense ones found in norm(x)", anchor="start", colour="reader")
    picture.line([(680, dense + 8), (680, 188), (493, 188), (493, sliced + 26)], "writer", "dashed")
    picture.text(498, 162, "2  fitted so that z′", anchor="start", colour="writer")
    picture.text(514, 180, "follows x′", anchor="start", colour="writer")
    return picture


def spectrum() -> Picture:
    """Draws the energy that is lost against the width that is kept, on a logarithmic scale."""
    found = json.loads(SPECTRUM.read_text())
    picture = Picture(760, 380, "Energy that is lost, against the width that is kept")
    size, step = found["hidden_size"], found["step"]
    left, right, top, bottom, decades = 76, 560, 30, 320, 4

    def place(width, share):
        height = min(max(-math.log10(max(share, 1e-9)) / decades, 0), 1)
        return round(left + (right - left) * width / size, 1), round(top + (bottom - top) * height, 1)

    for power in range(decades + 1):
        y = place(0, 10**-power)[1]
        picture.line([(left, y), (right, y)], "faint", arrow=False)
        picture.text(left - 10, y + 5, f"{100 * 10**-power:g} %", "soft", "end")
    for width in range(0, size + 1, 96):
        picture.text(place(width, 1)[0], bottom + 22, width, "soft")
    picture.text((left + right) / 2, bottom + 48, "width k that is kept", "soft")
    cut = place(432, 1)[0]
    picture.line([(cut, top), (cut, bottom)], "ink", "dashed", arrow=False)
    picture.text(cut - 8, top + 16, "sparsity 0.25", "soft", "end")
    names = {site: f"site {site}, own axes" for site in found["lost_by_site"]}
    curves = [*found["lost_by_site"].items(), ("shared", found["lost_shared"])]
    for (site, lost), colour in zip(curves, ("reader", "extra", "other", "writer"), strict=True):
        points = [place(index * step, share) for index, share in enumerate(lost) if share > 10**-decades]
        picture.line(points, colour, arrow=False)
        y = 120 + 30 * curves.index((site, lost))
        picture.line([(right + 14, y - 5), (right + 34, y - 5)], colour, "thick", arrow=False)
        picture.text(right + 42, y, names.get(site, "all sites, shared axes"), anchor="start")
    picture.text(right + 14, 90, "energy lost at", "soft", "start")
    return picture


PICTURES = {
    "stream": stream, "slicing": slicing, "rotations": rotations, "norms": norms, "refit": refit, "spectrum": spectrum,
}  # fmt: skip


def generate() -> dict[Path, str]:
    """Returns the text of every picture."""
    return {FOLDER / f"{name}.svg": draw().svg() for name, draw in PICTURES.items()}


if __name__ == "__main__":
    for path, text in generate().items():
        path.write_text(text, encoding="utf-8")
