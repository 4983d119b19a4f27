"""The content of a report: on a dense model and what slicing would make of it, or on how a sliced model was made."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..modeling.families import family_of
from ..planning.sizes import PARTS
from ..record import public_name
from .figures import (
    SHARES,
    draw_cost,
    draw_energy_by_sparsity,
    draw_energy_curves,
    draw_losses,
    draw_neurons,
    draw_parameters,
    draw_spectrum,
    draw_widths,
    group_by_method,
    group_by_rotation,
)
from .page import Page, Picture, Section, Table
from .text import (
    flatten_record,
    format_change,
    format_loss,
    format_millions,
    format_percent,
    format_range,
    inspection_rows,
    list_settings,
    loss_rows,
    stream_sizes,
)


if TYPE_CHECKING:
    from ..planning.inspection import Inspection, Spectrum


ON_ENERGY = (
    "Energy is the mean square of the stream along a direction, here as a share of the site's. Every token is divided "
    "by its root mean square first, as the norms do, so that all tokens count the same."
)
ON_COST = (
    "A matrix that two layers share counts once. FLOPs are of products with matrices, attention scores left out. "
    "per_block gives every site axes of its own, which takes a shortcut around every block; shared takes none. "
    "Embeddings that stay tied to the head keep their size."
)


def dense_report(name: str, model_config, found: Inspection, spectrum: Spectrum | None = None) -> Page:
    """
    Writes a report on a dense model.

    Args:
        name (`str`): of the model, or its path, whose last part is shown.
        model_config (`PreTrainedConfig`): of the dense model.
        found ([`Inspection`]): what slicing would make of the model; with `spectrum`, as [`add_energy`] returns it.
        spectrum ([`Spectrum`], *optional*): the measured energy of the stream.
    """
    facts = {
        "parameters": format_millions(found.dense.parameters),
        "hidden size": f"{found.hidden_size:,}",
        "neurons per MLP": f"{found.neurons:,}" if found.neurons else "experts",
        "GFLOPs per token": f"{found.dense.flops_per_token / 1e9:,.3f}",
    }
    text = f"A {found.model_type} model, and what slicing its residual stream would make of it."
    sections = []
    if spectrum:
        facts |= {"measured on": spectrum.source, "tokens": f"{spectrum.tokens:,}"}
        sections = spectrum_sections(model_config, found, spectrum)
    else:
        text += " Computed from its configuration alone; with --dataset, the energy of the stream is measured, too."
    alt = "Parameters and GFLOPs per token against hidden dimensions deleted"
    cost = Section(
        "Cost",
        "How many parameters every method leaves, and how many operations a token takes.",
        ON_COST,
        Picture("cost", alt, partial(draw_cost, found)) if group_by_method(found) else None,
        [Table(inspection_rows(found))],
    )
    return Page(public_name(name), text, facts, [*sections, cost])


def spectrum_sections(model_config, found: Inspection, spectrum: Spectrum) -> list[Section]:
    """Writes the sections on where the energy is, and on the share of it that every sparsity keeps."""
    columns = [map(str, spectrum.widths_for(share)) for share in SHARES]
    rows = zip(*site_columns(model_config, len(spectrum.energy["per_block"])), *columns, strict=True)
    by_site = [("site", "where", *(f"{100 * share:g} %" for share in SHARES)), *rows]
    by_sparsity = Section(
        "Energy kept at every sparsity",
        "How much energy every site keeps at the widths that slicing chooses.",
        "Computed for the stream of the dense model. In a run, the errors of earlier blocks change it a little.",
        Picture("energy_by_sparsity", "Energy kept at every site", partial(draw_energy_by_sparsity, found)),
        [Table(energy_rows(found))],
    )
    return [
        Section(
            "Energy of every dimension",
            "Each row is a site, each column one of its principal axes, the most energetic first. Dark dimensions "
            "cost little to delete. The lines show the widths that keep a share of the energy.",
            f"{ON_ENERGY} {describe_sites(model_config)}",
            Picture("spectrum", "Energy by site and dimension", partial(draw_spectrum, spectrum)),
            [Table(by_site, summary="Width that keeps a share of the energy, site by site")],
        ),
        Section(
            "Energy kept against width",
            "How much of a site's energy a width keeps, along axes of its own or along axes that all sites share.",
            "The vertical axis is logarithmic in what is lost.",
            Picture(
                "energy_by_width", "Energy kept against width, at some sites", partial(draw_energy_curves, spectrum)
            ),
        ),
        *([by_sparsity] if group_by_method(found) else []),
    ]


def energy_rows(found: Inspection) -> list[tuple[str, ...]]:
    """Lists the energy kept by sparsity and rotation: the mean over sites, and the least."""
    rows = [("sparsity", "axes", "width", "energy kept", "least", "at site")]
    for rotation, outcomes in group_by_rotation(found).items():
        for each in outcomes:
            least = min(each.energy_kept)
            mean = sum(each.energy_kept) / len(each.energy_kept)
            row = (f"{each.sparsity}", rotation, str(min(each.widths)), format_percent(mean), format_percent(least))
            rows.append((*row, str(each.energy_kept.index(least))))
    return rows


def sliced_report(name: str, model_config) -> Page:
    """
    Writes a report on a sliced model from its configuration. A fact that is not known is not mentioned.

    Args:
        name (`str`): of the model, or its path, whose last part is shown.
        model_config (`PreTrainedConfig`): of the sliced model.
    """
    record = model_config.slicegpt or {}
    base = public_name(record.get("base_model") or "") or "A language model"
    sections = [loss_section(record), parts_section(record), neurons_section(model_config, record)]
    sections.append(stream_section(model_config, record))
    rows = list(list_settings(model_config, record).items())
    sections.append(Section("How it was made", "Settings and calibration data.", tables=[Table(rows, titled=False)]))
    if record.get("seconds"):
        rows = [(phase, f"{seconds:,.1f} s") for phase, seconds in record["seconds"].items()]
        sections.append(Section("Time", "How long slicing took, phase by phase.", tables=[Table(rows, titled=False)]))
    if record.get("recovery"):
        rows = flatten_record(record["recovery"])
        sections.append(Section("Recovery", "How it was trained afterwards.", tables=[Table(rows, titled=False)]))
    sections = [section for section in sections if section]
    return Page(
        public_name(name), f"{base}, made smaller with SliceGPT.", sliced_facts(model_config, record), sections
    )


def sliced_facts(model_config, record: dict[str, Any]) -> dict[str, str]:
    """Lists the figures that come first."""
    before, after, energy = (record.get(key) for key in ("parameters_before", "parameters_after", "energy_kept"))
    perplexity, lost = record.get("perplexity") or {}, (record.get("check") or {}).get("loss")
    facts = {}
    if before and after:
        facts |= {"parameters": format_millions(after), "change": format_change(before, after)}
    hidden_size, widths = stream_sizes(model_config)
    facts["width"] = f"{format_range(widths)} of {hidden_size:,}"
    if record.get("neurons"):
        facts["neurons per MLP"] = format_range(list_neurons(model_config, record))
    if lost is not None:
        facts["loss, nats per token"] = format_loss(lost)
    if energy:
        facts["energy kept"] = format_percent(sum(energy) / len(energy))
    if {"before", "after"} <= perplexity.keys():
        on = " on ".join(filter(None, ("perplexity", perplexity.get("dataset"))))
        facts[on] = f"{perplexity['before']:.2f} → {perplexity['after']:.2f}"
    return facts


def list_neurons(model_config, record: dict[str, Any]) -> list[int]:
    """Lists the neurons that the MLP of every layer keeps."""
    return getattr(model_config, "intermediate_sizes", None) or [record["neurons"]] * model_config.num_hidden_layers


def loss_section(record: dict[str, Any]) -> Section | None:
    check = record.get("check") or {}
    texts, answers = check.get("texts"), check.get("answers") or {}
    if not texts:
        return None
    said = [(f"{prompt} ({model})", answer) for prompt, both in answers.items() for model, answer in both.items()]
    return Section(
        "What it lost",
        "The loss on text that the run did not see, before and after, and what both models answer.",
        "Standard errors are of the difference, paired by sequence.",
        Picture("losses", "Loss of the dense and of the sliced model by kind of text", partial(draw_losses, texts)),
        [Table(loss_rows(texts)), *([Table(said, titled=False)] if said else [])],
    )


def neurons_section(model_config, record: dict[str, Any]) -> Section | None:
    if not (record.get("neurons") and record.get("all_neurons")):
        return None
    draw = partial(draw_neurons, record["all_neurons"], list_neurons(model_config, record))
    text = "How many neurons the MLP of every layer has left."
    return Section("Neurons", text, picture=Picture("neurons", "Neurons kept in every layer", draw))


def parts_section(record: dict[str, Any]) -> Section | None:
    parts = record.get("parameters_by_part")
    return parts and Section(
        "Parameters",
        "Where slicing took parameters away, and where it added some.",
        "A matrix that the head shares with the embeddings counts as embeddings; the projection from the stream back "
        "to that matrix counts as head.",
        Picture("parameters", "Parameters before and after, by part", partial(draw_parameters, **parts)),
        [Table(part_rows(**parts))],
    )


def stream_section(model_config, record: dict[str, Any]) -> Section:
    (hidden_size, widths), energy = stream_sizes(model_config), record.get("energy_kept")
    header, columns, picture = ["site", "where", "width"], [*site_columns(model_config, len(widths))], None
    columns.append(map(str, widths))
    if energy:
        header.append("energy kept")
        columns.append(map(format_percent, energy))
        draw = partial(draw_widths, hidden_size, widths, energy)
        picture = Picture("slicegpt", "Width and energy kept at every site", draw)
    return Section(
        "Width and energy of the stream",
        "How many dimensions the residual stream has left at every site, and how much of its energy they held.",
        f"A site that keeps all dimensions has no point. {describe_sites(model_config)}",
        picture,
        [Table([tuple(header), *zip(*columns, strict=True)], summary="Site by site")],
    )


def part_rows(before: dict[str, int], after: dict[str, int]) -> list[tuple[str, ...]]:
    """Lists the parameters by part, and those of the whole model."""
    rows = [("part", "before", "after", "change")]
    counts = [(part, before[part], after[part]) for part in PARTS if before[part] or after[part]]
    for part, old, new in [*counts, ("all", sum(before.values()), sum(after.values()))]:
        rows.append((part, f"{old:,}", f"{new:,}", format_change(old, new) if old else "new"))
    return rows


def site_columns(model_config, sites: int) -> tuple[list[str], list[str]]:
    """Lists the numbers of the sites, and where they are."""
    family = family_of(model_config)
    return [str(site) for site in range(sites)], [family.site_name(site, model_config) for site in range(sites)]


def describe_sites(model_config) -> str:
    kinds = {"attn": "the attention", "mlp": "the MLP", "parallel": "the blocks"}
    where = " and ".join(kinds[block.kind] for block in family_of(model_config).blocks)
    return f"Sites are where a norm reads the stream: before {where} of every layer, and before the head."
