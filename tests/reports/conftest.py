"""Fixtures of several tests of reports: sliced models, and a Hub to publish them on."""

import pytest
import torch
from hub_client import HubClient
from hub_server import HubServer
from model_cards import publishable_model
from tiny import build, calibration, paper


@pytest.fixture
def sliced(tmp_path):
    """Returns a sliced checkpoint that is its configuration alone."""
    model = build("llama", torch.float32).compress(paper(sparsity=1 / 3, dataset=calibration(), slice_head=False))
    model.config.slicegpt["perplexity"] = {"dataset": "some|<b>text</b>", "before": 12.345, "after": 23.456}
    model.config.save_pretrained(tmp_path / "sliced")
    return tmp_path / "sliced"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    """Saves `dense`, `sliced`, `bigger` and `stock`; the sliced models name `org/base` on the Hub as their base."""
    folder = tmp_path_factory.mktemp("hub")
    build("llama", torch.float32, vocab_size=98).save_pretrained(folder / "dense")
    tiny_tokenizer.save_pretrained(folder / "dense")
    settings = {"sliced": {"widths": [24, 24, 24, 24, 24]}, "bigger": {"widths": [40, 40, 32, 32, 32]}}
    settings["stock"] = {"rotation": "shared"}
    for name, given in settings.items():
        model = publishable_model(**given)
        model.config.slicegpt["base_model"] = "org/base"
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def server():
    server = HubServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def run_client(server, folder):
    client = HubClient(server.endpoint, folder)
    yield client.run
    client.close()


@pytest.fixture
def push(run_client):
    """Pushes the model in a folder, and expects that it works."""

    def push(repo, name="sliced", **arguments):
        script = f"print(AutoModelForCausalLM.from_pretrained({name!r}).push_to_hub({repo!r}, **{arguments!r}).oid)"
        code, output = run_client(script)
        assert code == 0, output
        return output.splitlines()[-1]

    return push
