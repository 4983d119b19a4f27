"""A report as one HTML file that needs no other file, and its pictures as PNG files."""

from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..progress import track
from .figures import DPI, WIDTH_INCHES, render_png


try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
except ImportError as error:
    raise ImportError('Reports need jinja2: pip install "optimum-slicegpt[report]"') from error


@dataclass(frozen=True)
class Picture:
    """
    A picture that is drawn when the page is written.

    Args:
        name (`str`): of its file, without the ending.
        alt (`str`): description for readers who cannot see it.
        draw (callable): returns the figure; it is called with the keyword argument `colors`.
    """

    name: str
    alt: str
    draw: Callable


@dataclass(frozen=True)
class Table:
    """
    A table of texts.

    Args:
        rows (`list[tuple[str, ...]]`): if `titled`, the first holds the titles of the columns.
        titled (`bool`): whether columns have titles.
        summary (`str`, *optional*): the table is folded, and this line is shown instead.
    """

    rows: list[tuple[str, ...]]
    titled: bool = True
    summary: str | None = None


@dataclass(frozen=True)
class Section:
    """
    A section of a report.

    Args:
        title (`str`): of the section.
        text (`str`): what the section shows, in a sentence.
        note (`str`): how the figures were found, or what its words mean.
        picture ([`Picture`], *optional*): stands below the text.
        tables (`list[Table]`): stand at the end.
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
        text (`str`): what the report is about, in a sentence or two.
        facts (`dict[str, str]`): the figures that come first, by name.
        sections (`list[Section]`): follow in this order.
    """

    title: str
    text: str
    facts: dict[str, str]
    sections: list[Section]

    def html(self) -> str:
        """Returns the whole page, with styles and pictures for light and for dark. A browser loads nothing else."""
        templates = Environment(
            loader=PackageLoader("optimum_slicegpt.reports"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
        )
        drawn = {
            picture.name: [_data_url(render_png(picture.draw, dark=dark)) for dark in (False, True)]
            for picture in self.pictures()
        }
        return templates.get_template("report.html").render(page=self, drawn=drawn, width=round(WIDTH_INCHES * DPI))

    def save_pictures(self, folder: Path) -> None:
        """Writes the pictures as PNG files, for light paper."""
        folder.mkdir(parents=True)
        for picture in self.pictures():
            (folder / f"{picture.name}.png").write_bytes(render_png(picture.draw))

    def pictures(self) -> Iterator[Picture]:
        """Yields all pictures, and shows how many are drawn."""
        pictures = [section.picture for section in self.sections if section.picture]
        yield from track(pictures, "Drawing", "picture")


def _data_url(image: bytes) -> str:
    return "data:image/png;base64," + b64encode(image).decode()
