"""Fixtures of several tests of commands."""

import pytest


@pytest.fixture
def arguments(cli_files, tmp_path):
    """Returns the arguments of a quick run of `compress`."""
    return [
        *("compress", "--model", cli_files / "dense", "--output", tmp_path / "sliced"),
        *("--dataset", cli_files / "train.txt", "--nsamples", 8, "--seqlen", 16),
    ]
