"""`make docs`: the site builds without a warning, has all public names, and asks nothing of other hosts."""

import re
import subprocess
import sys

import pytest
from paths import ROOT
from sharing import make_once

import optimum_slicegpt


pytest.importorskip("mkdocs")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings_handlers.python")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return make_once(tmp_path_factory, "site", build_site)


def build_site(folder):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_in_the_reference(site):
    page = (site / "api.html").read_text(encoding="utf-8")
    for name in optimum_slicegpt.__all__:
        assert f'id="optimum_slicegpt.{name}"' in page, name


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|img|iframe|source)[^>]*\ssrc="?([^"\s>]+)', text)
        fetched += [tag for tag in re.findall(r"<link[^>]+>", text) if "stylesheet" in tag or "icon" in tag]
        assert fetched
        assert [each for each in fetched if re.search(r"(^|[\"'=])(https?:)?//", each)] == [], page.name
    styles = "".join(file.read_text(encoding="utf-8") for file in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import\s*)[\"']?(?:https?:)?//[^)\"']+", styles) == []


def test_the_search_works_from_the_disk(site):
    """The index is a script, which pages may read from files, and a worker is replaced where browsers allow none."""
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    assert index.startswith("var __index = {") and '"location":"settings.html' in index
    for page in site.glob("*.html"):
        assert 'src="theme/iframe-worker.js"' in page.read_text(encoding="utf-8") or page.name == "404.html"
    assert 'location.protocol === "file:"' in (site / "theme" / "iframe-worker.js").read_text(encoding="utf-8")


def test_every_page_has_its_next_one(site):
    pages = {page.name: page.read_text(encoding="utf-8") for page in site.glob("*.html")}
    last = [name for name, text in pages.items() if "md-footer__link--next" not in text]
    assert sorted(last) == ["404.html", "troubleshooting.html"]


def test_what_pages_link_to_is_there(site):
    """The site includes examples, tests and pictures from outside docs/."""
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r'(?:href|src)="?([^"#?\s>]+)', text):
            if "//" not in target and not target.startswith(("mailto:", "data:", "/", "{")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
