# SPDX-License-Identifier: GPL-3.0-or-later
"""What the documentation says exists: links, commands, testbed keys, functions, and the snippets marked ``python run``.

Run as a program, with the sources on PYTHONPATH, this file writes anew what is generated: the tables of testbed keys in
docs/user_guide.md, and the output and the picture of the demo in README.md::

    PYTHONPATH=$(scripts/source-path) .venv/bin/python tests/test_docs.py
"""

import importlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
GUIDE = ROOT / "docs" / "user_guide.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
DEMO = re.compile(r"(The demo printed here.*?```text\n)(.*?)(```)", re.DOTALL)
SCHEMA = json.loads((ROOT / "python" / "dmimo" / "testbed.schema.json").read_text(encoding="utf-8"))
TABLES = re.compile(r"(<!-- testbed keys: begin -->\n).*?(<!-- testbed keys: end -->)", re.DOTALL)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def fences(page: Path, info: str) -> list[str]:
    """Return the code blocks of a page whose first line is three backticks and `info`."""
    return re.findall(rf"^```{info}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# -- tables of testbed keys -------------------------------------------------------------------------------------------


def _allowed(key: dict) -> str:
    """Return what a key's value may be, in words."""
    if "enum" in key:
        return ", ".join(f"`{choice}`" for choice in key["enum"])
    if "const" in key:
        return f"`{key['const']}`"
    kinds = key.get("type", "object")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    text = " or ".join({"object": "mapping", "array": "list", "string": "text"}.get(kind, kind) for kind in kinds)
    bounds = [("exclusiveMinimum", "above {}"), ("minimum", "from {}"), ("maximum", "to {}")]
    limits = " ".join(words.format(f"{key[name]:.20g}") for name, words in bounds if name in key)
    return f"{text} {limits}".strip()


def _row(name: str, key: dict, required: bool) -> str:
    """Return the table row of one key; its unit stands in brackets at the end of a clause of the description."""
    found = re.search(r" \[([A-Za-z/]+)\](?=[.;:])", key["description"])
    unit = found[1] if found else ""
    purpose = key["description"].replace(f" [{unit}]", "", 1) if unit else key["description"]
    entry = key.get("items", {}).get("$ref", "").rsplit("/", 1)[-1]
    purpose += f" Entries: see [{entry}](#{entry})." if entry else ""
    default = "required" if required else f"`{json.dumps(key['default'])}`" if "default" in key else ""
    return f"| `{name}` | {purpose} | {unit} | {default} | {_allowed(key)} |".replace("|t| and |r|", r"\|t\| and \|r\|")


def _table(title: str, schema: dict, prefix: str = "") -> list[str]:
    """Return the table of one mapping of the schema; mappings inside it follow as dotted keys."""
    lines = [f"#### {title}", "", schema["description"], ""] if title else []
    lines += ["| key | purpose | unit | default | allowed |", "|---|---|---|---|---|"] if title else []
    for name, key in schema["properties"].items():
        if "$ref" in key:
            reference = key["$ref"].rsplit("/", 1)[1]
            key = {"description": f"See [{reference}](#{reference})."} | {
                field: SCHEMA["$defs"][reference][field] for field in ("type", "default") if field in
                SCHEMA["$defs"][reference]}
        lines.append(_row(prefix + name, key, name in schema.get("required", ())))
        if "properties" in key and name != "node_defaults":
            lines += _table("", key, f"{prefix}{name}.")
    return lines if not title else [*lines, ""]


def tables() -> str:
    """Return the Markdown tables of all keys of a testbed file."""
    lines = _table("testbed", SCHEMA)
    for name, schema in SCHEMA["$defs"].items():
        lines += _table(name, schema)
    return "\n".join(lines) + "\n"


def test_the_tables_of_testbed_keys_are_those_of_the_schema():
    found = TABLES.search(GUIDE.read_text(encoding="utf-8"))
    assert found, "docs/user_guide.md has lost its markers"
    inside = found[0].removeprefix(found[1]).removesuffix(found[2])
    assert inside == tables(), "the schema has changed: run this file, see its head"


def test_every_key_of_the_schema_is_in_the_tables():
    def keys(schema):
        for name, key in schema.get("properties", {}).items():
            yield name
            yield from keys(key)

    text = tables()
    names = {*keys(SCHEMA), *(name for schema in SCHEMA["$defs"].values() for name in keys(schema))}
    assert len(names) > 50
    assert {name for name in names if not re.search(rf"^\| `([\w.]+\.)?{name}` \|", text, re.MULTILINE)} == set()


# -- the demo ---------------------------------------------------------------------------------------------------------


def demo(folder: Path) -> str:
    """Return the tables that `dmimo calibrate` prints of the demo's testbed."""
    command = ["/usr/bin/python3", ROOT / "apps" / "dmimo", "calibrate", ROOT / "examples" / "three_panels.yml"]
    result = subprocess.run([*command, "--output", folder], check=True, capture_output=True, text=True, timeout=100)
    text = result.stdout.partition("results in")[0]
    return "".join(line.rstrip() + "\n" for line in text.splitlines())


def split_numbers(text: str) -> tuple[list[str], list[float]]:
    """Return the words of a text, column widths left out, and its numbers."""
    number = r"(?<![\w.])-?\d+\.?\d*(?:e[+-]\d+)?\b"
    words = re.findall(r"[^\s─━-╿]+", re.sub(number, "", text))
    return words, [float(value) for value in re.findall(number, text)]


def test_the_readme_shows_what_the_demo_prints(tmp_path):
    found = DEMO.search(README.read_text(encoding="utf-8"))
    assert found, "README.md has lost the output of the demo"
    (words, numbers), (seen_words, seen_numbers) = split_numbers(demo(tmp_path)), split_numbers(found[2])
    assert seen_words == words, "run this file, see its head, to write the output anew"
    assert seen_numbers == pytest.approx(numbers, rel=0.005, abs=0.001)


# -- links, commands, names -------------------------------------------------------------------------------------------


@pages
def test_every_relative_link_and_image_exists(page):
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for target in [target for target in found if not re.match(r"[a-z]+:", target)]:
        path, _, anchor = target.partition("#")
        where = (page.parent / path).resolve() if path else page
        assert where.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(where), f"{page.name}: {target} has no such heading"


@pages
def test_images_are_small_enough_for_a_repository(page):
    for target in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", prose(page)):
        assert (page.parent / target).stat().st_size < 200_000, target


@pages
def test_every_file_named_in_code_style_exists(page):
    """Names with a directory of the repository; patterns and results of a run are not checked."""
    for name in re.findall(r"`((?:apps|docs|examples|grc|python|scripts|tests)/[\w./]+)`", prose(page)):
        assert (ROOT / name).exists(), f"{page.name}: {name}"


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """Return every subcommand of the command line and its options."""

    def help_of(*words):
        command = ["/usr/bin/python3", str(ROOT / "apps" / "dmimo"), *words, "--help"]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    names = re.findall(r"^  (\w+)  ", help_of().split("Commands:")[1], re.MULTILINE)
    return {name: set(re.findall(r"--[\w-]+", help_of(name))) for name in names}


@pages
def test_every_command_and_option_mentioned_exists(page, options):
    text = page.read_text(encoding="utf-8")
    code = re.findall(r"`([^`\n]+)`", prose(page)) + [line for block in re.findall(
        r"^```(?:sh|console)?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE) for line in block.splitlines()]
    calls = [re.search(r"(?:^|[ /])dmimo ([a-z]+\b(?!\.|/|:).*)", line) for line in code]
    for call in filter(None, calls):
        name, *words = call[1].split("#")[0].split()
        assert name in options, f"{page.name}: dmimo {name}"
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in options[name], f"{page.name}: dmimo {name} {word}"


def test_the_readme_mentions_every_subcommand(options):
    assert options
    for name in options:
        assert f"dmimo {name}" in (README).read_text(encoding="utf-8")


@pages
def test_every_name_in_code_style_that_looks_like_one_of_the_package_imports(page):
    """`core.module.name`, `experiments.name` and so on, a call's arguments left out."""
    packages = "core|simulation|protocols|experiments|blocks|testbed|records|plotting|assembly|flowgraphs"
    names = re.findall(rf"`(?:gnuradio\.dmimo\.)?((?:{packages})(?:\.\w+)+)[`(]", prose(page))
    for name in names:
        if name.endswith((".py", ".yml", ".json")):
            continue
        module, *rest = name.split(".")
        value = importlib.import_module(f"gnuradio.dmimo.{module}")
        for part in rest:
            if not hasattr(value, part):
                value = importlib.import_module(f"{value.__name__}.{part}")
            else:
                value = getattr(value, part)


def test_the_method_table_names_functions_blocks_and_examples():
    rows = [line for line in prose(README).splitlines() if line.startswith("| ")]
    blocks = {path.name[len("dmimo_") : -len(".block.yml")] for path in (ROOT / "grc").glob("*.block.yml")}
    header = next(k for k, row in enumerate(rows) if row.startswith("| method"))
    methods = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[header + 1 :]]
    methods = [row for row in methods if len(row) == 5]
    assert len(methods) > 5
    for name, _, function, block, _ in methods:
        assert re.search(r"`(core|simulation|protocols|experiments)\.[\w.]+", function), name
        for found in re.findall(r"`(\w+)`", block):
            assert found in blocks, f"{name}: {found}"


# -- snippets ---------------------------------------------------------------------------------------------------------

SNIPPETS = [(page, number) for page in PAGES for number in range(len(fences(page, "python run")))]


@pytest.mark.parametrize(("page", "number"), SNIPPETS, ids=lambda value: getattr(value, "name", value))
def test_a_snippet_runs_and_prints_what_the_page_says(page, number):
    """A ``text`` block that follows a snippet is its output."""
    code = fences(page, "python run")[number]
    pattern = re.escape(f"```python run\n{code}```") + r"\n+```text\n(.*?)```"
    expected = re.search(pattern, page.read_text(encoding="utf-8"), re.DOTALL)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    if expected:
        assert result.stdout == expected[1]


def test_the_readme_has_a_snippet_that_runs():
    assert any(page.name == "README.md" for page, _ in SNIPPETS)


if __name__ == "__main__":
    GUIDE.write_text(TABLES.sub(lambda found: found[1] + tables() + found[2], GUIDE.read_text(encoding="utf-8")),
                     encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        output = demo(Path(folder))
        shutil.copy(Path(folder) / "gains.png", ROOT / "docs" / "images" / "coherent_gain.png")
    README.write_text(DEMO.sub(lambda found: found[1] + output + found[3], README.read_text(encoding="utf-8")),
                      encoding="utf-8")
