"""The pages that are read beside the code: every link leads somewhere, every page stands in the contents, every public name in the reference."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import site_pages  # noqa: E402

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "data" / "README.md"]
KEPT = sorted((ROOT / "docs" / "studies").glob("*/*.ipynb"))  # executed analyses
BOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts) + KEPT
LINK = re.compile(r"(?<!\\)!?\[[^\]\n]*\]\(([^()\s]+(?:\([^()\s]*\))?)\)")


def prose(path, inline=False):
    "The text of a page, or of a notebook's Markdown cells, without code (`inline`: what stands in a line stays)."
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    text = re.sub(r"(?ms)^```.*?^```", "", text)
    return text if inline else re.sub(r"\$[^$\n]*\$|`[^`\n]*`(?!\])", "", text)


def anchors(path):
    "The names of a page's headings, as they are linked to."
    found = re.findall(r"(?m)^#+ +(.+)$", prose(path))
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in found}


def broken(path):
    "The links of a page that lead nowhere."
    out = []
    for target in LINK.findall(prose(path)):
        if re.match(r"(https?|mailto):", target):
            continue
        name, _, anchor = target.partition("#")
        place = (path.parent / name).resolve() if name else path
        inside = place.is_relative_to(ROOT)
        if not inside or not place.exists():
            out.append(target)
        elif anchor and place.suffix in (".md", ".ipynb") and anchor.lower() not in anchors(place):
            out.append(target)
    return out


@pytest.mark.parametrize("path", [*PAGES, *BOOKS], ids=lambda p: p.stem)
def test_every_link_leads_somewhere(path):
    assert broken(path) == []


def test_a_broken_link_is_found(tmp_path):
    page = ROOT / "docs" / "resume.md"
    assert LINK.findall("[a](b.md) and ![c](d.png#e), not `[x](y)`".replace("`[x](y)`", "")) == [
        "b.md",
        "d.png#e",
    ]
    assert "go-on-after-a-stop" in anchors(page)


def test_every_page_stands_in_the_contents():
    listed = [name for part in site_pages.PARTS for name in site_pages.pages(part)]
    assert len(listed) == len(set(listed))
    assert {f"docs/{p.stem}" for p in (ROOT / "docs").glob("*.md")} == set(listed)


def test_the_glossary_has_ten_words():
    rows = re.findall(r"(?m)^\| (?!word|---)(\w+) \|", (ROOT / "docs" / "glossary.md").read_text())
    assert len(rows) == 10


def test_the_reference_has_every_public_name_with_its_docments():
    import sizes

    text = {}
    for path in sorted((ROOT / "lib").glob("*/*.py")):
        if path.stem != "__init__":
            text[f"{path.parent.name}.{path.stem}"] = "\n".join(site_pages.module_page(path))
    for name, (module, *_) in sizes.public_names().items():
        assert f"\n### {name}\n" in text[module], f"{module}.{name}"
    rules = text["maskers.rules"]
    assert (
        "The mask that keeps the k best" in rules
        and "units to keep, or their share (rounded), of each kind" in rules
    )


def test_the_site_holds_every_page_that_it_links_to(tmp_path, monkeypatch):
    monkeypatch.setattr(site_pages, "SITE", tmp_path)
    site_pages.main()
    for page in [*tmp_path.rglob("*.md"), *tmp_path.rglob("*.ipynb")]:
        named = {t.partition("#")[0] for t in LINK.findall(prose(page)) if not re.match(r"\w+:", t)}
        missing = [t for t in named if t and not (page.parent / t).exists()]
        assert missing == [], f"{page.relative_to(tmp_path)} links to what the site does not hold"


def test_a_kept_analysis_keeps_its_links_and_pictures_and_no_place_of_a_machine():
    import keep_study

    source = ROOT / "nbs" / "analyses" / "overlap.ipynb"
    target = ROOT / "docs" / "studies" / "some-sweep" / "overlap.ipynb"
    words = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "[m](../study/3_matrices.ipynb)"}
    kept = keep_study._cell(words, source, target)["source"]
    assert kept == "[m](../../../nbs/study/3_matrices.ipynb)"
    shown = {
        "output_type": "display_data",
        "metadata": {"a": 1},
        "data": {"image/svg+xml": "<svg/>", "text/plain": f"{ROOT}/x"},
    }
    code = {"cell_type": "code", "id": "b", "metadata": {"papermill": 1}, "source": "x", "outputs": [shown]}
    [output] = keep_study._cell(code, source, target)["outputs"]
    assert output["data"] == {"text/plain": ["x"]} and output["metadata"] == {}


def test_the_site_loads_nothing_from_elsewhere():
    settings = (ROOT / "docs" / "conf.py").read_text()
    assert 'nb_execution_mode = "off"' in settings and 'html_math_renderer = "mathml"' in settings
    assert "http" not in settings
    lock = (ROOT / "requirements.lock").read_text().lower()
    assert "\nsphinx==" not in lock  # the site has an environment of its own
    lines = (ROOT / "docs" / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"#.*|[\w-]+==[\d.]+", line) for line in lines if line)


def test_a_notebook_named_in_prose_is_there():
    texts = {p: p.read_text() for p in [*PAGES, *ROOT.glob("nbs/sweeps/**/*.yaml")]}
    texts |= {p: prose(p, inline=True) for p in BOOKS}
    rooms = "|".join(p.name for p in (ROOT / "nbs").iterdir() if p.is_dir() and p.name != "sweeps")
    lost = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, text in texts.items()
        for name in re.findall(rf"`(?:nbs/)?((?:{rooms})/[0-9a-z_]+)(?:\.ipynb)?`", text)
        if not (ROOT / "nbs" / f"{name}.ipynb").is_file() and not (ROOT / "lib" / f"{name}.py").is_file()
    ]
    assert lost == []
