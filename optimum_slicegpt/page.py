"""A report as one HTML file that needs nothing else, and its pictures as files of their own."""

from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers.utils import logging

from .figures import DPI, WIDTH_INCHES, png


@dataclass(frozen=True)
class Picture:
    """
    Args:
        name (`str`): of its file, without the ending.
        alt (`str`): what it shows, for those who do not see it.
        draw (callable): gives the figure, told the `colors`; see [`figures.png`].
    """

    name: str
    alt: str
    draw: Callable


@dataclass(frozen=True)
class Table:
    """
    Args:
        rows (`list[tuple[str, ...]]`): the first holds the titles of the columns, if `titled`.
        titled (`bool`): whether columns have titles.
        summary (`str`, *optional*): the table is folded, and this is what is seen of it.
    """

    rows: list[tuple[str, ...]]
    titled: bool = True
    summary: str | None = None


@dataclass(frozen=True)
class Section:
    """
    Args:
        title (`str`): of the section.
        text (`str`): what is to be seen, in a sentence.
        note (`str`): how it was found, or what its words mean.
        picture ([`Picture`], *optional*), tables (`list[Table]`): the rest.
    """

    title: str
    text: str
    note: str = ""
    picture: Picture | None = None
    tables: list[Table] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


@dataclass(frozen=True)
class Page:
    """
    A report.

    Args:
        title (`str`): the model's name.
        text (`str`): what this is about, in a sentence or two.
        facts (`dict[str, str]`): figures that come first.
        sections (`list[Section]`): the rest, in order.
    """

    title: str
    text: str
    facts: dict[str, str]
    sections: list[Section]

    def html(self) -> str:
        """The whole page: styles and pictures are in it, for light and dark, and it loads nothing."""
        templates = Environment(
            loader=PackageLoader("optimum_slicegpt"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        drawn = {
            picture.name: [_data_url(png(picture.draw, dark=dark)) for dark in (False, True)]
            for picture in self.pictures()
        }
        return templates.get_template("report.html").render(page=self, drawn=drawn, width=round(WIDTH_INCHES * DPI))

    def save_pictures(self, folder: Path) -> None:
        """The pictures as PNG files, for light paper."""
        folder.mkdir(parents=True)
        for picture in self.pictures():
            (folder / f"{picture.name}.png").write_bytes(png(picture.draw))

    def pictures(self) -> Iterator[Picture]:
        """All of them, with a progress bar on terminals."""
        pictures = [section.picture for section in self.sections if section.picture]
        yield from logging.tqdm(pictures, desc="Drawing", unit="picture", disable=None)


def _data_url(image: bytes) -> str:
    return "data:image/png;base64," + b64encode(image).decode()
