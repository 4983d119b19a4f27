"""Publishing over HTTP: what a repository holds after a push, and that its card says what is known and no more."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from model_cards import OTHER, licence_of, recorded_model
from transformers import AutoModelForCausalLM
from transformers.utils.hub import PushToHubMixin

from optimum_slicegpt.reports.hub import push_to_hub
from optimum_slicegpt.reports.model_card import CARD_MARK, TAGS


def readme(server, repo):
    return ModelCard(server.files(repo)["README.md"].decode())


def test_a_tokenizer_that_is_none():
    with pytest.raises(ValueError, match="tokenizer=3 cannot be saved; give a tokenizer, the name or path of one"):
        push_to_hub(recorded_model(), "me/small", tokenizer=3)


def test_arguments_are_those_of_transformers_and_a_tokenizer():
    def arguments(function):
        return {name: (value.kind, value.default) for name, value in inspect.signature(function).parameters.items()}

    ours = arguments(push_to_hub)
    assert ours.pop("tokenizer") == (inspect.Parameter.KEYWORD_ONLY, None)
    assert ours == arguments(PushToHubMixin.push_to_hub)


# Over HTTP


def test_push_and_load_by_name(server, run_client, folder):
    server.put("org/base", {"README.md": OTHER.format(link="LICENSE").join(["---\n", "\n---\n"]).encode()})
    code, output = run_client(
        """
        model = AutoModelForCausalLM.from_pretrained("sliced")
        model.add_model_tags("trl")
        info = model.push_to_hub("both", tokenizer=AutoTokenizer.from_pretrained("dense"), tags=["mine"])
        print(info.commit_url, info.oid)
        """
    )
    assert code == 0, output
    (_, commit) = server.commits("me/both")
    assert output.splitlines()[-1] == f"{server.endpoint}/me/both/commit/{commit.oid} {commit.oid}"
    assert commit.message == "Upload sliced model"
    files = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert files | {"README.md", "slicegpt.png"} <= commit.files.keys()
    assert "(slicegpt.png)" in commit.files["README.md"].decode()
    assert server.endpoint.encode() not in b"".join(commit.files.values())
    assert str(folder).encode() not in b"".join(commit.files.values())

    card = readme(server, "me/both")
    assert card.data.tags == [*TAGS, "trl", "mine"]
    assert licence_of(card)["license_link"] == "https://huggingface.co/org/base/blob/main/LICENSE"

    _, alone, with_package = card.text.split("```python\n")
    assert "trust_remote_code=True" in alone.split("```")[0]
    code, output = run_client(
        with_package.split("```")[0]
        + """
torch.save((model.state_dict(), model(torch.arange(3, 20)[None]).logits.detach()), "loaded.pt")
torch.save(AutoTokenizer.from_pretrained("me/both")("w5 w7").input_ids, "ids.pt")
"""
    )
    assert code == 0, output
    model = AutoModelForCausalLM.from_pretrained(folder / "sliced")
    weights, logits = torch.load(folder / "loaded.pt")
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    torch.testing.assert_close(logits, model(torch.arange(3, 20)[None]).logits)
    assert torch.load(folder / "ids.pt") == [97, 5, 7]


WITHOUT_THE_PACKAGE = """
import sys, torch
sys.modules["optimum_slicegpt"] = None
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("me/stock")
torch.save(model.state_dict(), "stock.pt")
print(type(model).__name__)
"""


def test_a_stock_result_is_pushed_with_its_card_and_loads_without_code(server, run_client, folder):
    code, output = run_client(
        f"""
        import sys
        model = AutoModelForCausalLM.from_pretrained("stock")
        model.push_to_hub("stock", tokenizer=AutoTokenizer.from_pretrained("dense"))
        os.execl(sys.executable, sys.executable, "-c", {WITHOUT_THE_PACKAGE!r})
        """
    )
    assert code == 0, output
    assert output.splitlines()[-1] == "LlamaForCausalLM"
    weights = AutoModelForCausalLM.from_pretrained(folder / "stock").state_dict()
    loaded = torch.load(folder / "stock.pt")
    assert weights.keys() == loaded.keys() and all(torch.equal(loaded[key], weights[key]) for key in weights)
    files = server.files("me/stock")
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert names | {"README.md", "slicegpt.png"} <= files.keys()
    assert not any(name.endswith(".py") for name in files)
    card = readme(server, "me/stock")
    assert card.data.tags == list(TAGS) and card.data.base_model == "org/base"
    assert "It is a `LlamaForCausalLM` like any other" in card.text and "trust_remote_code" not in card.text


def test_a_model_that_is_not_sliced_is_pushed_as_by_transformers(server, run_client):
    code, output = run_client("print(AutoModelForCausalLM.from_pretrained('dense').push_to_hub('me/whole').oid)")
    assert code == 0, output
    assert "model.safetensors" in server.files("me/whole")
    assert CARD_MARK not in server.files("me/whole").get("README.md", b"").decode()
    assert server.commits("me/whole")[-1].message == "Upload LlamaForCausalLM"


def test_a_second_push_replaces_the_first(server, push):
    push("me/twice", "bigger", max_shard_size="20KB", commit_message="First")
    assert len([name for name in server.files("me/twice") if name.endswith(".safetensors")]) > 1
    push("me/twice", commit_message="Second")
    assert [commit.message for commit in server.commits("me/twice")] == ["initial commit", "First", "Second"]
    weights = [name for name in server.files("me/twice") if "safetensors" in name]
    assert weights == ["model.safetensors"]
    assert json.loads(server.files("me/twice")["config.json"])["hidden_size"] == 24
    assert "24 (5 sites)" in readme(server, "me/twice").text

    newest = push("me/twice")
    assert newest == server.commits("me/twice")[-1].oid
    assert len(server.commits("me/twice")) == 3  # nothing was new


def test_files_that_are_not_ours_stay(server, push):
    server.put("me/more", {"notes.txt": b"mine", "onnx/model.safetensors": b"1", "adapter_model.safetensors": b"2"})
    there = server.files("me/more")
    push("me/more")
    assert there.items() <= server.files("me/more").items()


@pytest.mark.parametrize("published", ["---\nlicense: mit\ntags:\n- mine\n---\n# Mine\n", "# No metadata\n"])
def test_a_card_that_someone_wrote_is_kept_and_tagged(server, push, published):
    server.repos.pop("me/theirs", None)
    server.put("me/theirs", {"README.md": published.encode()})
    for _ in range(2):
        push("me/theirs", tags="new")
        card = readme(server, "me/theirs")
        assert card.text.strip() == ModelCard(published).text.strip()
        assert card.data.license == ModelCard(published).data.license
        assert set(card.data.tags) == {*(ModelCard(published).data.tags or []), *TAGS, "new"}


def test_a_card_without_readable_metadata_is_kept_as_it_is(server, push):
    published = b"---\nlicense: [\n---\n# Mine\n"
    server.put("me/broken", {"README.md": published})
    push("me/broken")
    assert server.files("me/broken")["README.md"] == published
    assert "model.safetensors" in server.files("me/broken")


def test_an_empty_form_is_replaced(server, push, run_client):
    code, output = run_client("AutoTokenizer.from_pretrained('dense').push_to_hub('me/form')")
    assert code == 0, output
    assert "automatically generated" in readme(server, "me/form").text
    push("me/form")
    assert CARD_MARK in readme(server, "me/form").text


def test_branches_pull_requests_and_private_repositories(server, push):
    push("me/branches", revision="small", private=True)
    assert server.repos["me/branches"].private
    assert server.files("me/branches") == {}
    assert "model.safetensors" in server.files("me/branches", "small")
    push("me/branches", create_pr=True)
    assert server.files("me/branches") == {}
    assert "model.safetensors" in server.files("me/branches", "refs/pr/1")


# The command line, and what becomes of local paths


COMPRESS = """
from optimum.commands.base import RootOptimumCLICommand
from optimum.commands.register import register_slicegpt

root = RootOptimumCLICommand("optimum-cli", usage="optimum-cli")
register_slicegpt.SliceGPTCommand(root.subparsers)
arguments = ["--model", {model!r}, "--output", {output!r}, "--push-to-hub", {repo!r}, *{more!r}]
arguments += ["--dataset", "python-docs", "--nsamples", "4", "--seqlen", "16", "--sparsity", "0.5"]
args = root.parser.parse_args(["slicegpt", "compress", *arguments])
args.func(args).run()
"""


def test_the_command_line_publishes_in_one_commit(server, run_client, folder):
    measure = ["--eval-dataset", "python-docs", "--eval-nsamples", "2", "--eval-seqlen", "16"]
    script = COMPRESS.format(model=str(folder / "dense"), output="out", repo="me/cli", more=measure)
    code, output = run_client(script)
    assert code == 0, output
    assert len(server.commits("me/cli")) == 2
    files = server.files("me/cli")
    assert {"model.safetensors", "tokenizer.json", "README.md"} <= files.keys()
    assert "dense, made smaller with" in readme(server, "me/cli").text
    assert "Perplexity on python-docs: " in readme(server, "me/cli").text
    assert json.loads(files["config.json"])["slicegpt"]["base_model"] == "dense"
    assert str(folder).encode() not in b"".join(files.values())


def test_the_command_line_fails_when_publishing_does(server, run_client, folder):
    server.objects.clear()
    script = COMPRESS.format(model=str(folder / "dense"), output="kept", repo="me/cli-fails", more=[])
    with server.failing("commit", how="drop"):
        code, output = run_client(script)
    assert code == 1
    assert output.splitlines()[-1].startswith("error: Publishing in 'me/cli-fails' was cut off.")
    assert server.files("me/cli-fails") == {}
    assert Path(folder / "kept" / "model.safetensors").is_file()  # the work is not lost
