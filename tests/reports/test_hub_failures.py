"""Publishing that fails: a repository holds a whole push or nothing of it."""

import re

import pytest


UPLOAD = "ConnectionError: Publishing in 'me/.*' was cut off. Error while uploading 'model-0000.*Push again"


@pytest.mark.parametrize(
    "kind, at, how, error",
    [
        ("create", 1, 500, "HfHubHTTPError.*500"),
        ("tree", 1, 500, "HfHubHTTPError.*500"),
        ("resolve", 1, 500, "500"),
        ("preupload", 1, 500, "HfHubHTTPError.*500"),
        ("batch", 1, "drop", "ConnectionError: Publishing in .* was cut off"),
        ("upload", 2, 500, UPLOAD),
        ("upload", 2, "drop", UPLOAD),
        ("verify", 1, 403, UPLOAD),
        ("commit", 1, 500, "HfHubHTTPError.*500"),
        ("commit", 1, "drop", "ConnectionError: Publishing in .* was cut off.*Push again"),
    ],
)
def test_a_push_that_fails_changes_nothing_and_says_so(server, push, run_client, kind, at, how, error):
    repo = f"me/fails-{kind}-{how}"
    server.put(repo, {"README.md": b"---\nlicense: mit\n---\n# Mine\n", "config.json": b"{}"})
    history = server.commits(repo)[:]
    script = f"""
        AutoModelForCausalLM.from_pretrained("bigger").push_to_hub({repo!r}, max_shard_size="20KB")
        print("done")
    """
    server.objects.clear()
    with server.failing(kind, at=at, how=how):
        code, output = run_client(script)
    assert code == 1
    assert re.search(error, output, re.DOTALL), output
    assert output.splitlines()[-1] != "done"
    assert server.commits(repo) == history


def test_a_new_repository_stays_empty_when_its_first_push_fails(server, run_client):
    server.objects.clear()
    with server.failing("upload"):
        code, _ = run_client("AutoModelForCausalLM.from_pretrained('sliced').push_to_hub('me/new')")
    assert code == 1
    assert server.files("me/new") == {}
    code, output = run_client("AutoModelForCausalLM.from_pretrained('sliced').push_to_hub('me/new')")
    assert code == 0, output
    assert "model.safetensors" in server.files("me/new")


def test_an_upload_that_fails_once_is_tried_again(server, push):
    server.objects.clear()
    with server.failing("upload", how="drop", times=1):
        push("me/again")
    assert "model.safetensors" in server.files("me/again")
