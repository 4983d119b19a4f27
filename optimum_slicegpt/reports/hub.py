"""`push_to_hub` of sliced models: weights, code, tokenizer and card in one commit."""

import re
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelCardData,
    hf_hub_download,
)
from huggingface_hub.utils import httpx
from transformers import AutoTokenizer, PreTrainedModel

from ..modeling.checks import check_sliced
from ..storage.tokenizers import save_tokenizer
from .model_card import CARD_MARK, TAGS, UNSLICED_REMEDY, model_card, save_picture


PLACEHOLDER = (
    "This is the model card of a 🤗 transformers model that has been pushed on the Hub. "
    "This model card has been automatically generated."
)
"""The text that transformers puts into huggingface_hub's empty form when a repository has no card."""
WEIGHT_FILE = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def push_to_hub(
    self: PreTrainedModel,
    repo_id: str,
    *,
    tokenizer: Any = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str | None = "50GB",
    tags: list[str] | None = None,
) -> CommitInfo:
    """
    Publishes this model, its tokenizer and its model card in one commit. This is the `push_to_hub` of sliced models.

    Weight files of an earlier push are replaced or deleted. A model card that someone wrote by hand stays, with the
    tags added.

    Args:
        repo_id (`str`): `name` or `namespace/name`. The repository is created if it is not there.
        tokenizer (`str` or tokenizer, *optional*): published with the model.
        commit_message (`str`, *optional*): "Upload sliced model" by default.
        commit_description (`str`, *optional*): of the commit.
        private (`bool`, *optional*): whether a new repository is private. By default the namespace decides.
        token (`bool` or `str`, *optional*): by default the token that `hf auth login` stored.
        revision (`str`, *optional*): branch to commit to, created if it is not there. `main` by default.
        create_pr (`bool`, defaults to `False`): open a pull request instead of committing.
        max_shard_size (`int` or `str`, defaults to `"50GB"`): largest size of one weight file.
        tags (`list[str]`, *optional*): more tags for the card.

    Returns:
        `huggingface_hub.CommitInfo`: of the commit, with `commit_url` and `oid`.

    Raises:
        OSError: the Hub refused (`HfHubHTTPError`), or the connection broke (`ConnectionError`). The files of the
            repository are then as before, unless the Hub's answer to the commit itself was lost. A repository or
            branch that this call created stays, without this model.
        ValueError: the model is not sliced; `tokenizer` cannot be saved.
    """
    check_sliced(self, UNSLICED_REMEDY)
    if isinstance(tokenizer, str):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer, token=token)
    if tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise ValueError(
            f"tokenizer={tokenizer!r} cannot be saved; give a tokenizer, the name or path of one, or None for the "
            "model alone."
        )
    tags = [*TAGS, *(self.model_tags or []), *([tags] if isinstance(tags, str) else tags or [])]
    api = HfApi(token=token)
    readme = None
    with _one_kind_of_failure(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        published = set(api.list_repo_files(repo_id, revision=revision))
        if "README.md" in published:
            # The download is forced: if the connection breaks, the cache would return an older card.
            readme = hf_hub_download(repo_id, "README.md", revision=revision, token=token, force_download=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        self.save_pretrained(folder, max_shard_size=max_shard_size)
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder)
        card = model_card(self, repo_id=repo_id, picture=save_picture(self.config, folder), token=token)
        if readme is not None:
            card = _replacement(readme, card)
        if card is not None:
            card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *tags]))
            card.save(folder / "README.md")

        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        # Shards of an earlier push, of which there were more or fewer, would be loaded instead of these weights.
        stale = sorted(name for name in published - files.keys() if WEIGHT_FILE.fullmatch(name))
        deletions = [CommitOperationDelete(name) for name in stale]
        additions = [CommitOperationAdd(name, path) for name, path in sorted(files.items())]
        with _one_kind_of_failure(repo_id):
            # upload_folder would make several commits of a large folder where hf_xet is installed.
            return api.create_commit(
                repo_id,
                deletions + additions,
                commit_message=commit_message or "Upload sliced model",
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            )


def check_access(repo_id: str) -> None:
    """
    Checks before the work that a model can be published after it.

    Args:
        repo_id (`str`): where it will be published.

    Raises:
        ConnectionError: the Hub does not answer, or there is no token, or one that may only read.
    """
    try:
        token = HfApi().whoami().get("auth", {}).get("accessToken", {})
        reason = "the token may only read" if token.get("role") == "read" else None
    except (OSError, httpx.TransportError) as error:
        reason = str(error).rstrip(".")
    if reason:
        raise ConnectionError(
            f"Cannot publish in {repo_id!r}: {reason}. Log in with a token that may write (hf auth login); or leave "
            "--push-to-hub out, and publish the folder later (hf upload)."
        )


@contextmanager
def _one_kind_of_failure(repo_id: str):
    """Raises an upload or a connection that breaks as an `OSError`. A refusal of the Hub is one already."""
    try:
        yield
    except (RuntimeError, httpx.TransportError) as error:  # A RuntimeError names one file; its cause says why.
        raise ConnectionError(
            f"Publishing in {repo_id!r} was cut off. {error} {error.__cause__ or ''}\n"
            "All of it is one commit, so no file was replaced without the others. Push again; large files that have "
            "arrived are not sent twice."
        ) from error


def _replacement(readme: str, ours: ModelCard) -> ModelCard | None:
    """
    Decides which card follows a published one.

    Args:
        readme (`str`): path of the published card.
        ours (`huggingface_hub.ModelCard`): the card of the model that is pushed.

    Returns:
        `huggingface_hub.ModelCard`: `ours` if nobody wrote the published card by hand, otherwise the published card.
        `None` if it was written by hand and cannot be parsed.
    """
    text = Path(readme).read_text(encoding="utf-8-sig")
    form = ModelCard.from_template(ModelCardData(), model_description=PLACEHOLDER).text
    if CARD_MARK in text or text.rstrip().endswith(form.strip()):
        return ours
    try:
        return ModelCard.load(readme)
    except (ValueError, yaml.YAMLError):
        return None
