import io
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from rich.console import Console, RenderableType

from reports.figures import png_bytes, sample_grid
from reports.records import Record
from reports.render import RENDERERS, Report, render_csv, render_html, render_markdown, render_rich
from reports.tables import compute_table, quality_table

RecordMaker = Callable[..., Record]
Records = tuple[Record, ...]
VOID = {"meta", "img", "wbr", "link", "br"}


def _printed(renderable: RenderableType, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.fixture
def grids() -> dict[str, bytes]:
    png = png_bytes(sample_grid(np.zeros((4, 8, 8, 3), dtype=np.uint8), 2, 1))
    return {"adm-g": png, "memorizer": png, "training images": png}


@pytest.fixture
def report(demo: Records, grids: dict[str, bytes]) -> Report:
    return Report(title="Digits", subtitle="A made-up run", records=demo, grids=grids)


class _Page(HTMLParser):
    """Collects what a page says, and checks that its tags close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def test_there_is_a_renderer_for_each_form(report: Report) -> None:
    assert list(RENDERERS) == ["csv", "html", "md", "rich"]
    assert all(isinstance(RENDERERS[name](report), str) for name in ("csv", "html", "md"))


def test_every_form_says_the_same_numbers(report: Report) -> None:
    terminal = "\n".join(_printed(render_rich(report), 80))
    for text in (render_markdown(report), _Page(render_html(report)).text, terminal):
        squeezed = " ".join(text.split())
        assert "adm-g has the best FID of the generators that do not copy: 1.87" in squeezed
        for number in ("312.45", "9.78", "0.843", "100 %", "52.2 G", "1.15 M", "1,212", "3fa9c1d23fa9"):
            assert number in squeezed, number


def test_csv_is_the_table(report: Report, demo: Records) -> None:
    read = pd.read_csv(io.StringIO(render_csv(report)), index_col="generator", dtype=str)
    for table in (quality_table(demo), compute_table(demo)):
        assert list(read.index) == list(table.index)
        assert read[table.columns].astype(float).equals(table)
    assert read.loc["adm", "protocol"] == "digits"
    assert read.loc["adm", "features_sha256"] == "3fa9c1d2" * 8
    assert list(read["num_images"]) == ["1797"] * 6
    assert list(read["seed"]) == ["0"] * 6
    assert list(read["arithmetic"]) == ["fp32"] * 6
    assert list(read.index[read["copies_training_images"] == "True"]) == ["memorizer"]


def test_csv_keeps_protocols_apart_and_rows_without_quality(make_record: RecordMaker) -> None:
    records = (
        make_record("a", value=1.0),
        make_record("a", value=9.0, protocol="adm", num_images=50000),
        make_record("a", "sampling_images_per_sec", 2.0, device="cuda"),
        make_record("a", "recall", 0.5, protocol="adm", num_images=50000, precision="fp16"),
        make_record("b", "parameters", 7.0),
    )
    read = pd.read_csv(io.StringIO(render_csv(Report(title="t", records=records))))
    assert list(read["generator"]) == ["a", "a", "b"]
    assert list(read["FID"])[:2] == [1.0, 9.0]
    assert list(read["num_images"])[:2] == [1797, 50000]
    assert list(read["arithmetic"]) == ["fp32", "fp32; Recall: fp16", "fp32"]
    assert list(read["device"]) == ["cpu; cuda", "cpu; cuda", "cpu"]
    assert read.loc[2, "parameters"] == 7.0


def test_markdown_marks_the_best_and_the_copier(report: Report) -> None:
    lines = render_markdown(report).splitlines()
    heading = next(line for line in lines if line.startswith("| generator | FID"))
    assert heading == (
        "| generator | FID ↓ | sFID ↓ | IS ↑ | Precision ↑ | Recall ↑ | Copied ↓ | images/sec ↑ | FLOPs/image ↓ |"
    )
    assert "| adm-g | **1.87** | **3.55** | **9.78** | **0.843** | 0.601 | 0.3 % | 1.12 | 91.4 G |" in lines
    assert "| memorizer † | 0.07 | 0.16 | 9.83 | 1.000 | 0.981 | 100 % | 88.1 k | 0 |" in lines
    assert any(line.startswith("† copies training images") for line in lines)


def test_markdown_tables_survive_odd_names(make_record: RecordMaker) -> None:
    text = render_markdown(Report(title="a|b", records=(make_record("x|y\n<z>"),)))
    row = next(line for line in text.splitlines() if line.startswith("| x"))
    assert row == "| x\\|y \\<z> | **1.50** |"


def test_the_page_is_one_file_that_fetches_nothing(report: Report) -> None:
    page = _Page(render_html(report))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base", "form"}
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "poster", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith(("data:image/png;base64,", "data:", "#")), tag
    text = re.sub(r'xmlns(:xlink)?="[^"]*"', "", render_html(report))
    assert not re.search(r"https?:|//[a-z]|@import|@font-face", re.sub(r"base64,[^\"]*", "", text))


def test_the_page_shows_each_grid_with_what_it_is(report: Report) -> None:
    page = _Page(render_html(report))
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [picture["alt"] for picture in pictures] == [
        "Samples of adm-g", "Samples of memorizer", "Samples of training images"
    ]  # fmt: skip
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", render_html(report), flags=re.DOTALL)
    said = [" ".join(_Page(caption).text.split()) for caption in captions]
    assert said == [
        "adm-g FID 1.87 preset digits · sampler ddpm · sampling steps 250 · guidance scale 1",
        "memorizer FID 0.07 copies training images",
        "training images",
    ]


def test_the_page_emphasises_the_best_and_explains_the_columns(report: Report) -> None:
    html = render_html(report)
    assert re.findall(r'<strong class="best"[^>]*>([^<]*)</strong>', html)[:7] == [
        "0.662", "1.87", "3.55", "9.78", "0.843", "11.3", "9.14 G"
    ]  # fmt: skip
    page = _Page(html)
    explained = [attributes["title"] for tag, attributes in page.tags if tag == "abbr"]
    assert len(explained) == 8 + 8
    assert all(explained)
    assert sum(tag == "svg" for tag, _ in page.tags) == 1
    assert "How these numbers were measured" in page.text
    assert "0123456789ab with uncommitted changes" in page.text


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "a & b"])
def test_names_cannot_break_out_of_the_page(make_record: RecordMaker, grids: dict[str, bytes], name: str) -> None:
    records = (
        make_record(name, settings={name: name}, device=name, provenance={name: name}),
        make_record(name, "network_evaluations_per_image", 3.0),
        make_record(name, name, 3.0),
    )
    html = render_html(Report(title=name, subtitle=name, records=records, grids={name: grids["adm-g"]}))
    page = _Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert sum(tag == "img" for tag, _ in page.tags) == 1
    assert page.text.count(name) >= 6


def test_each_protocol_has_its_own_section(report: Report) -> None:
    other = tuple(replace(record, protocol="adm") for record in report.records if record.protocol)
    html = render_html(replace(report, records=report.records + other))
    assert html.count("<h2>Quality <span") == 2
    assert html.count('<svg class="quality-cost"') == 2
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert [name for name in ids if ids.count(name) > 1 and not name.startswith("p")] == []


COLUMNS = ["FID", "sFID", "IS", "Prec.", "Recall", "Copied", "images/sec", "FLOPs/image"]


def test_the_terminal_table_fits_eighty_columns(report: Report) -> None:
    lines = _printed(render_rich(report, 80), 80)
    assert max(map(len, lines)) <= 80
    heading = next(line for line in lines if "sFID" in line and "FLOPs/image" in line)
    assert heading.split() == COLUMNS
    rows = {line.split()[0]: line for line in lines[lines.index(heading) :][8:1:-1]}
    assert rows["adm-g-ddim25"].split()[1:] == [
        "2.21", "4.12", "9.70", "0.822", "0.583", "0.2", "%", "11.3*", "9.14", "G*"
    ]  # fmt: skip
    assert rows["memorizer"].split()[1:6] == ["†", "0.07", "0.16", "9.83", "1.000"]
    assert "1.87*" in rows["adm-g"]
    assert "parameters" not in heading
    compute = next(line for line in lines if "params" in line)
    assert lines.index(compute) > lines.index(heading)


def test_every_number_of_the_terminal_survives_a_narrow_one(report: Report) -> None:
    named = replace(report, records=tuple(replace(r, generator=f"{r.generator}-longer") for r in report.records))
    lines = _printed(render_rich(named, 80), 80)
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("adm-g-ddim25-longer") and line.endswith("9.14 G*") for line in lines)
    assert "…" not in "".join(lines)


def test_markup_in_names_is_not_obeyed(make_record: RecordMaker) -> None:
    report = Report(title="[bold]t[/bold]", records=(make_record("[red]a[/red]"),))
    text = "\n".join(_printed(render_rich(report), 80))
    assert "[bold]t[/bold]" in text
    assert "[red]a[/red]" in text


@pytest.mark.parametrize("form", sorted(RENDERERS))
def test_odd_reports_render(make_record: RecordMaker, form: str) -> None:
    for records in (
        (),
        (make_record(value=None),),
        (make_record("a", "parameters", 1.0),),
        (make_record("a", "new", 1),),
    ):
        rendered = RENDERERS[form](Report(title="t", records=records))
        assert _printed(rendered, 80)


def test_rendering_is_repeatable(report: Report) -> None:
    for form in ("csv", "html", "md"):
        assert RENDERERS[form](report) == RENDERERS[form](report)


def test_a_grid_that_is_no_png_is_refused() -> None:
    with pytest.raises(ValueError, match="grid of 'adm' starts with b'GIF89a', expected the bytes of a PNG"):
        Report(title="t", records=(), grids={"adm": b"GIF89a"})


def test_numbers_of_other_features_have_other_columns_everywhere(make_record: RecordMaker) -> None:
    records = [
        make_record(generator, name, value, protocol=features, features=features)
        for features, values in (("inception", (2.5, 0.01)), ("dinov2", (210.0, 0.3)))
        for generator, factor in (("a", 1.0), ("b", 2.0))
        for name, value in zip(("fid", "kid"), (factor * each for each in values), strict=True)
    ]
    costs = [make_record(generator, "network_evaluations_per_image", 9.0) for generator in "ab"]
    grids = {"a": b"\x89PNG\r\n\x1a\n"}
    report = Report(title="t", records=(*records, *costs), grids=grids)
    markdown, page = render_markdown(report), render_html(report)
    heads = [line for line in markdown.splitlines() if line.startswith("| generator |") and "↓" in line][:2]
    assert ["FID ↓ | KID ↓" in head for head in heads] == [True, False]
    assert ["FD-DINOv2 ↓ | KD-DINOv2 ↓" in head for head in heads] == [False, True]
    assert "a has the best FID: 2.50" in markdown
    assert "a has the best FD-DINOv2: 210.00" in markdown
    for label in ("FID", "FD-DINOv2"):
        assert f"**{label} ↓**: Fréchet distance" in markdown
        assert f"{label}, lower is better" in page
        assert f"<title>{label} against" in page
    assert "FD-DINOv2 210.00 (protocol dinov2" in page
    read = pd.read_csv(io.StringIO(render_csv(report)))
    assert read["FID"].dropna().tolist() == [2.5, 5.0]
    assert read["FD-DINOv2"].dropna().tolist() == [210.0, 420.0]
    assert (read["FID"].isna() != read["FD-DINOv2"].isna()).all()
