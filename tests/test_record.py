"""What the record of a model gives away."""

import re

import pytest
from model_cards import recorded_model

from optimum_slicegpt.record import public_name
from optimum_slicegpt.reports.model_card import model_card


@pytest.mark.parametrize(
    "name, public",
    [
        ("", ""),
        ("gpt2", "gpt2"),
        ("org/base", "org/base"),
        ("/home/someone/models/base", "base"),
        ("/home/someone/models/base/", "base"),
        ("../someone/base", "base"),
        ("someone/models/base", "base"),
        (r"C:\Users\someone\base", "base"),
        ("/home/someone/hub/models--org--base/snapshots/0123abcd", "org/base"),
        ("there/base", "base"),
        ("models----home--someone--base/snapshots/0123abcd", "0123abcd"),  # names no model on the Hub
        ("models--..--base/snapshots/0123abcd", "0123abcd"),
    ],
)
def test_a_path_gives_its_last_component_away_and_no_more(name, public, tmp_path, monkeypatch):
    (tmp_path / "there" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name(name) == public
    assert public_name(public) == public
    card = model_card(recorded_model(base_model=name))
    assert card.data.base_model == (public if "/" in public else None)
    assert "someone" not in str(card)
    assert ("huggingface.co/" in str(card)) == ("/" in public)


def test_what_others_have_written_is_text_on_a_card():
    text = "a\n# Free\n\n<img src=x onerror=y>\n[models](https://a.b) | c"
    model = recorded_model(base_model=text)
    model.config.slicegpt |= {"metric": text, "perplexity": {"dataset": text, "before": 1.0, "after": 2.0}}
    model.config.slicegpt["calibration"] = {"source": text, "tokens": 8}
    card = str(model_card(model))
    assert "# Free" in card.replace("\\", "") and "\n# Free" not in card
    assert not re.search(r"(?<!\\)(<img|\[models\]|\| c)", card)
