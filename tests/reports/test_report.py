"""`optimum-cli slicegpt inspect --report`: one file, nothing loaded, and the figures of the JSON."""

import io
import json
import re
from base64 import b64decode
from html.parser import HTMLParser

import pytest
import torch
from command_line import measuring, run
from matplotlib.image import imread
from tiny import build, calibration

from optimum_slicegpt import SliceGPTConfig
from optimum_slicegpt.planning.sizes import PARTS
from optimum_slicegpt.reports.figures import DPI, WIDTH_INCHES


LOADING = {"src", "srcset", "data", "poster", "background"}
"""Attributes of HTML whose addresses a browser loads by itself; and `href` of links to styles."""


class Page(HTMLParser):
    """Reads a report: its tags, headings and tables, and the addresses that a browser loads."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.addresses, self.headings, self.text = [], [], [], [], text
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.addresses += [value for key, value in attrs if key in LOADING or (key == "href" and tag == "link")]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_data(self, data):
        tag = self.tags[-1][0] if self.tags else None
        if tag in ("td", "th") and data.strip():
            self.tables[-1][-1][-1] += data
        if tag in ("h1", "h2") and data.strip():
            self.headings.append(data)

    def pictures(self):
        """Returns all embedded pictures, decoded: light ones and dark ones."""
        data = [address.removeprefix("data:image/png;base64,") for address in self.addresses]
        return [imread(io.BytesIO(b64decode(each, validate=True)), format="png") for each in data]

    def table(self, first):
        """Returns the rows, without the header, of the table that has this first cell."""
        return next(rows[1:] for rows in self.tables if rows[0][0] == first)


def inspected(capsys, tmp_path, *arguments):
    """Returns the report of one command, as a page, and its JSON."""
    run("inspect", *arguments, "--report", tmp_path / "report.html", "--json")
    return Page((tmp_path / "report.html").read_text()), json.loads(capsys.readouterr().out)


def test_a_page_of_a_dense_model_needs_nothing_else(cli_files, tmp_path, capsys):
    page, _ = inspected(capsys, tmp_path, *measuring(cli_files))
    assert page.headings == [
        "dense",
        *("Energy of every dimension", "Energy kept against width", "Energy kept at every sparsity", "Cost"),
    ]
    assert_loads_nothing(page)
    pictures = page.pictures()
    assert len(pictures) == 2 * 4
    assert {picture.shape[1] for picture in pictures} == {round(WIDTH_INCHES * DPI)}
    # The dark one of each is dark, the light one light.
    assert [picture[0, 0, 0] < 0.5 for picture in pictures] == [True, False] * 4


def assert_loads_nothing(page):
    assert page.addresses and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert "@import" not in page.text and "url(" not in page.text
    anchors = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    ids = {f"#{attrs['id']}" for _, attrs in page.tags if "id" in attrs}
    assert {anchor for anchor in anchors if anchor.startswith("#")} == ids
    assert all(attrs["alt"] for tag, attrs in page.tags if tag == "img")


def test_tables_of_a_dense_model_are_those_of_the_json(cli_files, tmp_path, capsys):
    more = ("--sparsity", 0.5, 0.25, "--parameter-reduction", 0.3, 0.999)
    page, found = inspected(capsys, tmp_path, *measuring(cli_files), *more)
    assert found["spectrum"]["source"] == "train.txt" and found["spectrum"]["tokens"] == 8 * 16
    assert all(f"<dd>{value}</dd>" in page.text for value in ("train.txt", "128", f"{found['dense']['parameters']:,}"))

    places = [f"layer {layer}, before its {kind} block" for layer in (0, 1) for kind in ("attn", "mlp")]
    places.append("before the head")
    energy = {rotation: torch.tensor(rows).double() for rotation, rows in found["spectrum"]["energy"].items()}
    for site, (number, where, *widths) in enumerate(page.table("site")):
        assert int(number) == site
        assert where == places[site]
        kept = energy["per_block"][site].cumsum(0)
        assert [int(width) for width in widths] == [1 + int((kept < share).sum()) for share in (0.9, 0.99, 0.999)]

    dense, *rows = page.table("rotation")
    assert int(dense[5].replace(",", "")) == found["dense"]["parameters"]
    assert len(rows) == len(found["sliced"]) == 2 * 4
    for row, each in zip(rows, found["sliced"], strict=True):
        assert row[:2] == [each["rotation"], each["embeddings"]]
        if each["error"]:
            assert row[3:] == ["-"] * 8
            continue
        energies = [energy[each["rotation"]][site, :width].sum().item() for site, width in enumerate(each["widths"])]
        assert each["energy_kept"] == pytest.approx(energies, abs=1e-6)
        cost = each["cost"]
        assert row[5:7] == [f"{cost['parameters']:,}", f"{each['change']:+.1%}"]
        assert row[8] == f"{cost['flops_per_token'] / 1e9:,.3f}"
        assert row[9:] == [f"{sum(each['energy_kept']) / 5:.2%}", f"{min(each['energy_kept']):.2%}"]

    kept = {(each["sparsity"], each["rotation"]): each for each in found["sliced"] if each["sparsity"]}
    rows = page.table("sparsity")
    assert [(float(row[0]), row[1]) for row in rows] == [
        (sparsity, rotation) for rotation in ("per_block", "shared") for sparsity in (0.25, 0.5)
    ]
    for sparsity, rotation, width, mean, least, site in rows:
        each = kept[float(sparsity), rotation]
        assert int(width) == min(each["widths"])
        assert (mean, least) == (f"{sum(each['energy_kept']) / 5:.2%}", f"{min(each['energy_kept']):.2%}")
        assert each["energy_kept"][int(site)] == min(each["energy_kept"])


def test_without_data_there_is_the_cost(cli_files, tmp_path, capsys):
    page, found = inspected(capsys, tmp_path, "--model", cli_files / "dense")
    assert page.headings == ["dense", "Cost"] and len(page.pictures()) == 2
    assert "with --dataset, the energy of the stream is measured" in page.text
    assert "spectrum" not in found and found["sliced"][0]["energy_kept"] is None
    assert "energy kept" not in page.text
    assert_loads_nothing(page)


def test_without_sparsities_there_is_no_curve_over_them(cli_files, tmp_path, capsys):
    only = ("--sparsity", "--parameter-reduction", 0.2)
    page, found = inspected(capsys, tmp_path, *measuring(cli_files), *only)
    assert page.headings[1:] == ["Energy of every dimension", "Energy kept against width", "Cost"]
    assert len(page.pictures()) == 2 * 2 and len(found["sliced"]) == 2


def test_parallel_blocks_have_a_site_a_layer(tmp_path, capsys, cli_files, tiny_tokenizer):
    build("gpt_neox", torch.float32, vocab_size=98).save_pretrained(tmp_path / "dense")
    tiny_tokenizer.save_pretrained(tmp_path / "dense")
    page, found = inspected(capsys, tmp_path, *measuring(cli_files), "--model", tmp_path / "dense")
    assert len(page.table("site")) == 3 == len(found["spectrum"]["energy"]["per_block"])
    assert "before the blocks of every layer" in page.text
    assert len(page.pictures()) == 2 * 4


def test_a_page_of_a_sliced_model_is_what_its_configuration_says(sliced, tmp_path, capsys):
    page, found = inspected(capsys, tmp_path, "--model", sliced)
    record = found["slicegpt"]
    assert page.headings == ["sliced", "Parameters", "Width and energy of the stream", "How it was made", "Time"]
    assert_loads_nothing(page)
    assert len(page.pictures()) == 2 * 2
    for site, (number, _, width, energy) in enumerate(page.table("site")):
        assert (int(number), int(width)) == (site, found["widths"][site])
        assert energy == f"{record['energy_kept'][site]:.2%}"
    *parts, everything = page.table("part")
    before, after = record["parameters_by_part"]["before"], record["parameters_by_part"]["after"]
    assert [part for part, *_ in parts] == [part for part in PARTS if before[part] or after[part]]
    for part, old, new, change in parts:
        assert (old, new) == (f"{before[part]:,}", f"{after[part]:,}")
        assert change == (f"{after[part] / before[part] - 1:+.1%}" if before[part] else "new")
    assert everything[1:3] == [f"{record['parameters_before']:,}", f"{record['parameters_after']:,}"]
    rows = dict(row for table in page.tables for row in table if len(row) == 2)
    assert rows["Calibration tokens"] == f"{record['calibration']['tokens']:,}"
    assert rows["Axes"] == "of every block's own"
    assert all(rows[phase] == f"{seconds:,.1f} s" for phase, seconds in record["seconds"].items())
    assert "12.35 → 23.46" in page.text
    assert "some|&lt;b&gt;text&lt;/b&gt;" in page.text and "<b>text" not in page.text


CHECK = {
    "loss": 0.25,
    "texts": {
        "a$b$.txt": {"tokens": 4088, "dense": 2.5, "sliced": 2.75, "loss": 0.25, "stderr": 0.01},
        "self": {"tokens": 4088, "dense": 1.5, "sliced": None, "loss": None, "stderr": None},
    },
    "answers": {"Where?": {"dense": "Here.", "sliced": "There."}},
}


def test_a_page_of_a_stock_result(tmp_path, capsys):
    config = SliceGPTConfig(sparsity=1 / 3, mlp_sparsity=0.4, dataset=calibration())
    model = build("llama", torch.float32).compress(config)
    model.config.slicegpt["check"] = CHECK
    model.config.save_pretrained(tmp_path / "sliced")
    page, found = inspected(capsys, tmp_path, "--model", tmp_path / "sliced")
    first = ["sliced", "What it lost", "Parameters", "Neurons"]
    assert page.headings == [*first, "Width and energy of the stream", "How it was made", "Time"]
    assert_loads_nothing(page)
    assert len(page.pictures()) == 2 * 4
    assert page.table("loss, nats per token") == [
        ["a$b$.txt", "4,088", "2.5", "2.75", "+0.250 ± 0.010"],
        ["self", "4,088", "1.5", "not finite", "not finite"],
    ]
    assert (found["model_type"], found["original_hidden_size"], found["widths"]) == ("llama", 48, [32] * 5)
    assert not {"embedding_size", "shortcuts"} & found.keys()
    assert [row[2] for row in page.table("site")] == ["32"] * 5
    assert all(f"<dd>{value}</dd>" in page.text for value in ("32 of 48", "24"))
    rows = dict(row for table in page.tables for row in table if len(row) == 2)
    assert (rows["Architecture"], rows["Hidden size before"]) == ("stock", "48")
    assert (rows["Neurons kept in each MLP"], rows["Embeddings"]) == ("24", "sliced")
    assert (rows["Where? (dense)"], rows["Where? (sliced)"]) == ("Here.", "There.")
    run("inspect", "--model", tmp_path / "sliced", "--figures", tmp_path / "figures")
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert names == {"losses", "parameters", "neurons", "slicegpt"}


def test_a_page_of_a_recovered_model_says_how(tmp_path, capsys):
    model = build("llama", torch.float32).compress(SliceGPTConfig(sparsity=1 / 3, refine=0, dataset=calibration()))
    model.config.slicegpt["recovery"] = {
        "steps": 1200,
        "settings": {"lora_rank": 32, "targets": ["q_proj", "k_proj"]},
        "teacher": None,
    }
    model.config.save_pretrained(tmp_path / "recovered")
    page, _ = inspected(capsys, tmp_path, "--model", tmp_path / "recovered")
    assert page.headings[-1] == "Recovery"
    assert sorted(page.tables[-1]) == [
        ["settings, lora rank", "32"],
        ["settings, targets", "q_proj, k_proj"],
        ["steps", "1,200"],
    ]
    run("inspect", "--model", tmp_path / "recovered")
    printed = capsys.readouterr().out
    assert "recovery:\n  settings: lora_rank 32, targets q_proj, k_proj\n  steps: 1,200\nrefine: 0\n" in printed
    assert re.search(r"parameters by part:\n(  .*\n)*  after: attention [\d,]+, ", printed)


def test_what_is_not_known_is_not_mentioned(sliced, tmp_path, capsys):
    config = json.loads((sliced / "config.json").read_text())
    (sliced / "config.json").write_text(json.dumps(config | {"slicegpt": None}))
    page, _ = inspected(capsys, tmp_path, "--model", sliced)
    assert page.headings == ["sliced", "Width and energy of the stream", "How it was made"]
    assert page.addresses == [] and "None" not in page.text
    assert [row[2] for row in page.table("site")] == ["32"] * 4 + ["48"]
