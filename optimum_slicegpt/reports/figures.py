"""Pictures of an [`Inspection`], of a [`Spectrum`] and of a sliced model's record. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from ..planning.sizes import PARTS
from .text import format_range


if TYPE_CHECKING:
    from ..planning.inspection import Inspection, Outcome, Spectrum


try:
    from matplotlib import colormaps, patheffects, rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter
except ImportError as error:
    raise ImportError('Pictures need matplotlib: pip install "optimum-slicegpt[report]"') from error


WIDTH_INCHES, DPI = 5.6, 200
STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "font.size": 10,
    "grid.linewidth": 0.6,
    "image.cmap": "viridis",
    "legend.fontsize": "small",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "savefig.dpi": DPI,
    "xtick.labelsize": "small",
    "ytick.labelsize": "small",
}
LIGHT = {"paper": "#ffffff", "ink": "#1f2328", "rule": "#d8dee4", "pale": "#b6bec9"}
DARK = {"paper": "#0d1117", "ink": "#e6edf3", "rule": "#2d343d", "pale": "#59636e"}
"""Colours of the page, which `templates/report.html` has too."""

# These are colours of Okabe and Ito's palette, which colour-blind readers can tell apart.
LIGHT |= {"shared": "#0072b2", "per_block": "#d55e00"}
DARK |= {"shared": "#56b4e9", "per_block": "#e69f00"}

SHARES = (0.9, 0.99, 0.999)
"""The heat map and the tables show the widths that keep these shares of the energy."""


def render_png(draw: Callable[..., Figure], *, dark: bool = False) -> bytes:
    """
    Renders a picture as a PNG file, [`WIDTH_INCHES`] times [`DPI`] pixels wide.

    Args:
        draw (callable): returns the figure; it is called with the keyword argument `colors`.
        dark (`bool`): whether the picture is for a dark page.
    """
    colors = DARK if dark else LIGHT
    paint = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"))
    style = STYLE | dict.fromkeys(paint, colors["ink"]) | {"grid.color": colors["rule"]}
    style |= dict.fromkeys(("axes.facecolor", "figure.facecolor", "savefig.facecolor"), colors["paper"])
    file = BytesIO()
    with rc_context(style):
        draw(colors=colors).savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _figure(height: float, rows: int = 1, columns: int = 1, **kwargs) -> tuple[Figure, Sequence[Axes] | Axes]:
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **kwargs)


def _set_kept_scale(axis: Axes, kept: Sequence[float]) -> None:
    """Makes an axis of shares near 1 logarithmic in the share that is lost, so that their differences show."""
    lost = [1 - share for share in kept if share < 1] or [0.01]
    bottom, top = min(1.0, 1.5 * max(lost)), min(lost) / 1.5

    def place_marks(*digits):
        shares = (digit * 10**-power for power in range(13) for digit in digits)
        return [share for share in shares if top <= share <= bottom]

    marks = place_marks(5, 2, 1)
    axis.set_yscale("log")
    axis.set_ylim(bottom, top)
    axis.yaxis.set_major_locator(FixedLocator(marks if len(marks) <= 7 else place_marks(1)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda lost, _: f"{100 * (1 - lost):.10g} %"))


def _lost_shares(kept: Sequence[float]) -> list[float]:
    """Returns the shares that are lost. A share of 0 has no place on a logarithmic axis and becomes NaN."""
    return [1 - share if share < 1 else float("nan") for share in kept]


def _shades(colors: dict, count: int) -> list:
    """Returns colours for ordered curves that are readable on this paper."""
    low, high = (0.25, 1.0) if colors is DARK else (0.0, 0.85)
    return [colormaps["viridis"](low + (high - low) * step / max(count - 1, 1)) for step in range(count)]


# Pictures of a dense model


def draw_spectrum(spectrum: Spectrum, colors: dict) -> Figure:
    """Draws the energy of every dimension at every site, and the widths that keep [`SHARES`] of it."""
    energy = spectrum.energy["per_block"]
    sites, size = energy.shape
    figure, axis = _figure(4.4)
    low, high = 0.01 / size, 10 / size  # A dimension holds 1 / size on average.
    image = axis.imshow(
        energy.clamp_min(low).numpy(),
        norm="log",
        vmin=low,
        vmax=high,
        extent=(0.5, size + 0.5, sites - 0.5, -0.5),
        aspect="auto",
        interpolation="nearest",
    )
    edges = [site - 0.5 for site in range(sites + 1)]
    outline = [patheffects.withStroke(linewidth=2.4, foreground="black")]
    for share in SHARES:
        widths = spectrum.widths_for(share)
        line = {"color": "white", "linewidth": 1.2, "path_effects": outline}
        axis.stairs(widths, edges, orientation="horizontal", baseline=None, **line)
        axis.annotate(f"{100 * share:g} %", (widths[0], -0.5), (0, 3), textcoords="offset points", ha="center")
    axis.grid(False)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="dimension, along the site's own axes", ylabel="site")
    bar = figure.colorbar(image, ax=axis, label="share of the site's energy", pad=0.02, extend="both")
    bar.outline.set_visible(False)
    return figure


def draw_energy_curves(spectrum: Spectrum, colors: dict) -> Figure:
    """Draws energy kept against width at five sites, along the site's own axes and along shared axes."""
    sites, size = spectrum.energy["per_block"].shape
    figure, axis = _figure(3.6)
    shown = sorted({round(part * (sites - 1) / 4) for part in range(5)})
    lines = {
        "per_block": {"linestyle": "-", "linewidth": 1.6},
        "shared": {"linestyle": (0, (2, 1.5)), "linewidth": 1.1},
    }
    least = 1.0
    for site, shade in zip(shown, _shades(colors, len(shown)), strict=True):
        for rotation, line in lines.items():
            kept = spectrum.energy[rotation][site].cumsum(0)[:-1].tolist()
            axis.plot(range(1, size), _lost_shares(kept), color=shade, **line)
            least = min(least, *kept)
        axis.plot([], [], color=shade, label=f"site {site}")
    axis.plot([], [], color=colors["ink"], label="own axes", **lines["per_block"])
    axis.plot([], [], color=colors["ink"], label="shared axes", **lines["shared"])
    _set_kept_scale(axis, [least, 1 - 1e-5])
    axis.set(xlabel="width, dimensions", ylabel="energy kept", xlim=(0, size))
    axis.legend(loc="upper left", ncols=2)
    return figure


def draw_energy_by_sparsity(found: Inspection, colors: dict) -> Figure:
    """Draws the energy kept at every site, a curve for each share of hidden dimensions deleted."""
    titles = {"per_block": "axes of every site's own", "shared": "axes shared by all sites"}
    series, everything = group_by_rotation(found), []
    figure, (panels,) = _figure(3.2, 1, len(series), sharex=True, sharey=True, squeeze=False)
    for panel, (rotation, outcomes) in zip(panels, series.items(), strict=True):
        for each, shade in zip(outcomes, _shades(colors, len(outcomes)), strict=True):
            panel.plot(
                _lost_shares(each.energy_kept), color=shade, label=f"{100 * each.sparsity:g} % deleted", linewidth=1.2
            )
            everything += each.energy_kept
        panel.set(title=titles[rotation], xlabel="site")
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _set_kept_scale(panels[0], everything)
    panels[0].set(ylabel="energy kept")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def draw_cost(found: Inspection, colors: dict) -> Figure:
    """Draws parameters and work of every method against the share of hidden dimensions deleted."""
    figure, panels = _figure(3.2, 1, 2, sharex=True)
    figures = {
        "parameters, millions": lambda cost: cost.parameters / 1e6,
        "GFLOPs per token": lambda cost: cost.flops_per_token / 1e9,
    }
    for panel, (title, figure_of) in zip(panels, figures.items(), strict=True):
        panel.axhline(figure_of(found.dense), color=colors["ink"], linestyle=":", linewidth=1.2, label="dense")
        for (rotation, embeddings), outcomes in group_by_method(found).items():
            panel.plot(
                [each.sparsity for each in outcomes],
                [figure_of(each.cost) for each in outcomes],
                color=colors.get(rotation, colors["ink"]),
                linestyle="-" if embeddings == "tied" else "--",
                marker="o",
                label=f"{rotation}, {embeddings}",
            )
        panel.set(title=title, xlabel="hidden dimensions deleted")
        panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def group_by_method(found: Inspection) -> dict[tuple[str, str], list[Outcome]]:
    """Groups the outcomes of sparsities by rotation and embeddings, the widest first."""
    series = {}
    outcomes = [each for each in found.sliced if each.cost and each.sparsity is not None]
    for each in sorted(outcomes, key=lambda each: each.sparsity):
        series.setdefault((each.rotation, each.embeddings), []).append(each)
    return series


def group_by_rotation(found: Inspection) -> dict[str, list[Outcome]]:
    """Groups outcomes whose energy was measured by rotation: tied and sliced embeddings have the same widths."""
    groups = group_by_method(found).items()
    return {rotation: outcomes for (rotation, _), outcomes in groups if outcomes[0].energy_kept}


# Pictures of a sliced model


def draw_widths(hidden_size: int, widths: Sequence[int], energy_kept: Sequence[float], colors: dict) -> Figure:
    """Draws the width of the stream and the energy kept at every site: the picture of the model card."""
    figure, (above, below) = _figure(3.8, 2, 1, sharex=True, height_ratios=(1, 2))
    sites = range(len(widths))
    above.bar(sites, widths, width=1.0, color=colors["shared"], label="kept")
    deleted = [hidden_size - width for width in widths]
    above.bar(sites, deleted, bottom=widths, width=1.0, color=colors["pale"], label="deleted")
    title = f"{format_range(widths)} of {hidden_size:,} dimensions"
    above.set(title=title, ylabel="dimensions", ylim=(0, hidden_size), xlim=(-0.5, len(widths) - 0.5))
    above.grid(False)
    above.legend(loc="lower right", ncols=2, bbox_to_anchor=(1, 1), borderaxespad=0.2)
    below.plot(sites, _lost_shares(energy_kept), color=colors["shared"], marker="o", linewidth=0.8)
    _set_kept_scale(below, energy_kept)
    below.set(ylabel="energy kept", xlabel="site")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels()
    return figure


def draw_neurons(all_neurons: int, kept: Sequence[int], colors: dict) -> Figure:
    """Draws the neurons that every MLP keeps."""
    figure, axis = _figure(2.4)
    layers = range(len(kept))
    axis.bar(layers, kept, width=1.0, color=colors["shared"], label="kept")
    axis.bar(
        layers, [all_neurons - each for each in kept], bottom=kept, width=1.0, color=colors["pale"], label="deleted"
    )
    title = f"{format_range(kept)} of {all_neurons:,} neurons"
    axis.set(title=title, xlabel="layer", ylabel="neurons", ylim=(0, all_neurons), xlim=(-0.5, len(kept) - 0.5))
    axis.grid(False)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(loc="lower right", ncols=2, bbox_to_anchor=(1, 1), borderaxespad=0.2)
    return figure


def draw_losses(texts: dict[str, dict], colors: dict) -> Figure:
    """Draws the loss of the dense and of the sliced model on every kind of text."""
    figure, axis = _figure(1.2 + 0.6 * len(texts))
    for label, shift, color in (("dense", -0.2, "pale"), ("sliced", 0.2, "shared")):
        rows, losses = [row + shift for row in range(len(texts))], [text[label] or 0 for text in texts.values()]
        bars = axis.barh(rows, losses, height=0.38, color=colors[color], label=label)
        axis.bar_label(bars, [f"{loss:.3f}" if loss else "not finite" for loss in losses], padding=3, fontsize="small")
    axis.set_yticks(range(len(texts)), texts, parse_math=False)
    axis.invert_yaxis()
    axis.grid(False)
    axis.margins(x=0.1)
    axis.set(xlabel="loss, nats per token")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def draw_parameters(before: dict[str, int], after: dict[str, int], colors: dict) -> Figure:
    """Draws the parameters of the dense and of the sliced model, part by part."""
    figure, axis = _figure(3.0)
    parts = [part for part in PARTS if before[part] or after[part]]
    for label, counts, shift, color in (("before", before, -0.2, "pale"), ("after", after, 0.2, "shared")):
        rows = [row + shift for row in range(len(parts))]
        bars = axis.barh(rows, [counts[part] / 1e6 for part in parts], height=0.38, color=colors[color], label=label)
        axis.bar_label(bars, [f"{counts[part] / 1e6:.3g}" for part in parts], padding=3, fontsize="small")
    axis.set_yticks(range(len(parts)), parts)
    axis.invert_yaxis()
    axis.grid(False)
    axis.margins(x=0.1)
    axis.set(xlabel="parameters, millions")
    axis.legend(loc="lower right")
    return figure
