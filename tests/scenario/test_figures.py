"""save_fig: the format of its name, pyplot's list of open figures, and whose word is whose."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from ml_dash import Experiment, FileResult
from ml_dash.errors import Code
from tests.harness import DaemonProcess
from tests.scenario.conftest import path_in_store
from tests.scenario.test_files import refused

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

pytestmark = pytest.mark.slow


class Page:
    """A figure of plotly's as far as it goes."""

    def to_html(self, full_html: bool = True) -> str:
        return "<html>größe</html>" if full_html else "<div>größe</div>"

    def write_html(self, file: Any) -> None:
        raise AssertionError


@pytest.fixture(autouse=True)
def no_figures() -> Iterator[None]:
    plt.close("all")
    yield
    plt.close("all")


def drawn() -> Figure:
    figure, axes = plt.subplots(figsize=(4, 3), facecolor="red")
    axes.plot([1, 3, 2])
    return figure


def content(service: DaemonProcess, result: FileResult) -> bytes:
    return path_in_store(service, result.wait(30)).read_bytes()


def test_a_name_says_the_format(service: DaemonProcess, exp: Experiment) -> None:
    starts = {
        "png": b"\x89PNG", "pdf": b"%PDF-1", "svg": b"<?xml", "svgz": b"\x1f\x8b", "eps": b"%!PS-Ad",
        "jpg": b"\xff\xd8", "tif": b"II*", "webp": b"RIFF", "PNG": b"\x89PNG",
    }  # fmt: skip
    for suffix, start in starts.items():
        assert content(service, exp.files("plots").save_fig(drawn(), to=f"loss.{suffix}")).startswith(start)
    assert {record["contentType"] for record in exp.files("plots").list("*.pdf")} == {"application/pdf"}


def test_the_figure_is_what_is_seen(service: DaemonProcess, exp: Experiment) -> None:
    """Its own savefig's words go there."""
    result = exp.files("plots").save_fig(drawn(), to="loss.png", dpi=50, pil_kwargs={"compress_level": 1}).wait(30)
    with Image.open(path_in_store(service, result)) as image:
        assert image.size == (200, 150)
        assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    transparent = exp.files("plots").save_fig(drawn(), to="loss.png", transparent=True).wait(30)
    with Image.open(path_in_store(service, transparent)) as image:
        assert image.getpixel((0, 0))[3] == 0  # type: ignore[index]


def test_a_figure_that_was_handed_over_is_closed(exp: Experiment) -> None:
    kept, figure = drawn(), drawn()
    exp.files.save_fig(figure, to="a.png")
    assert plt.get_fignums() == [kept.number]  # type: ignore[attr-defined]
    exp.files.save_fig(to="b.png")
    assert plt.get_fignums() == []


def test_a_figure_whose_saving_failed_stays_open(exp: Experiment) -> None:
    figure = drawn()
    for options in ({"to": "a.xyz"}, {"to": "../a.png"}, {"to": "a.png", "metadata": {"a": {1}}}):
        with pytest.raises((ValueError, TypeError)):
            exp.files.save_fig(**options)
        assert plt.gcf() is figure
    assert exp.files().list() == []
    exp.files.save_fig(to="a.png")
    assert plt.get_fignums() == []


def test_the_current_figure(service: DaemonProcess, exp: Experiment) -> None:
    refused(lambda: exp.files.save_fig(to="a.png"), Code.INVALID_ARGUMENT, ValueError, "no current figure")
    assert plt.get_fignums() == []  # none is made by asking
    drawn()
    plt.figure(figsize=(2, 1))
    with Image.open(path_in_store(service, exp.files.save_fig(to="a.png", dpi=10).wait(30))) as image:
        assert image.size == (20, 10)


def test_a_figure_that_pyplot_does_not_know(service: DaemonProcess, exp: Experiment) -> None:
    figure = Figure()
    figure.subplots().plot([1, 2])
    assert content(service, exp.files.save_fig(figure, to="a.svg")).count(b"<svg") == 1


def test_words_that_are_ours(exp: Experiment) -> None:
    said: dict[str, Any] = {"description": "a", "tags": ["b"], "bindrs": ["c"], "metadata": {"epoch": 1}}
    result = exp.files.save_fig(drawn(), to="a.png", durability="disk", priority=5, **said)
    assert {name: result[name] for name in said} == said


def test_never_a_second_way_to_say_the_same(exp: Experiment) -> None:
    for word in ({"format": "png"}, {"fname": "b.png"}):
        with pytest.raises(TypeError, match=next(iter(word))):
            exp.files.save_fig(drawn(), to="a.png", **word)
    with pytest.raises(TypeError, match="descripton"):
        exp.files.save_fig(drawn(), to="a.png", descripton="typo")
    assert exp.files().list() == []


def test_names_of_no_figure(exp: Experiment) -> None:
    for to in ("a.xyz", "a", "a.html"):
        refused(
            lambda to=to: exp.files.save_fig(drawn(), to=to), Code.INVALID_ARGUMENT, ValueError, to, ".pdf, ", ".svg"
        )


def test_what_is_no_figure(exp: Experiment) -> None:
    for given in (np.zeros((2, 2)), "a.png", drawn().axes[0]):
        refused(
            lambda given=given: exp.files.save_fig(given, to="a.png"),
            Code.UNSUPPORTED_TYPE, ValueError, type(given).__name__, "ax.figure",
        )  # fmt: skip


def test_a_page(service: DaemonProcess, exp: Experiment) -> None:
    result = exp.files.save_fig(Page(), to="a.html")
    assert content(service, result).decode() == "<html>größe</html>"
    assert result["contentType"] == "text/html"
    assert content(service, exp.files.save_fig(Page(), to="a.html", full_html=False)).decode() == "<div>größe</div>"
    refused(lambda: exp.files.save_fig(Page(), to="a.png"), Code.INVALID_ARGUMENT, ValueError, ".html", "to_image")


def test_an_open_file_of_many_pages_is_whole(service: DaemonProcess, exp: Experiment, tmp_path: Path) -> None:
    """More than travels in a message: it goes through a slot, and PDF's table of offsets fits it."""
    figure, axes = plt.subplots()
    axes.scatter(np.arange(20_000), np.random.default_rng(0).random(20_000), c=np.arange(20_000))
    pdf = content(service, exp.files.save_fig(figure, to="a.pdf", dpi=300))
    assert len(pdf) > 1 << 16
    (start,) = re.findall(rb"startxref\n(\d+)\n%%EOF", pdf)
    assert pdf[int(start) :].startswith(b"xref")
