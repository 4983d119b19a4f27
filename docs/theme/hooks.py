"""Hooks of mkdocs: files outside docs/ that pages link to become part of the site."""

import re
from pathlib import Path

from mkdocs.structure.files import File


OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)")
"""A link that leaves docs/. In the repository such a link works as it is."""


def on_files(files, config):
    root = Path(config.config_file_path).parent
    for page in files.documentation_pages():
        for name in OUTSIDE.findall(page.content_string):
            if files.get_file_from_path(name) is None and (root / name).is_file():
                files.append(File.generated(config, name, abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown, **kwargs):
    return OUTSIDE.sub(r"](\1", markdown)
