"""What the documentation names exists: files, headings, commands, messages; the API reference."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file())
LIBRARY = ROOT / "LiverFibrosisStaging"
FENCED = re.compile(r"^```.*?^```", re.M | re.S)
LINK = re.compile(r"\]\(([^()\s]+)\)")
# A command of ours, in a block or inline: its module or script, then the rest.
COMMAND = re.compile(
    r"(?:python3?|PythonSlicer(?:\.exe\")?|nproc-per-node 4) "
    r"(?:-m (LiverFibrosisStagingLib[.\w]*)|((?:\w+/)*\w+\.py))([^\n`#]*)"
)


def tracked(pattern: str) -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "--", pattern], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("this is not a git checkout")
    return [ROOT / name for name in done.stdout.splitlines()]


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def anchors(path: Path) -> set[str]:
    """Anchors of a Markdown file's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text_of(path)), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    found = []
    for link in LINK.findall(FENCED.sub("", text_of(page))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        inside = target.exists() and target.is_relative_to(ROOT)
        if not inside or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            found.append(link)
    return found


def test_links_pictures_and_anchors_exist():
    pages = tracked("*.md")
    assert {"README.md", "architecture.md"} <= {page.name for page in pages}
    assert {str(page.relative_to(ROOT)): found for page in pages if (found := broken(page))} == {}


def test_a_broken_link_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# One, two\n[a](#one-two) [b](#three) [c](gone.png) [d](page.md#one-two) [e](https://x.y)\n"
        "```\n[f](code.md)\n```\n",
        encoding="utf-8",
    )
    assert broken(page) == ["#three", "gone.png"]


@cache
def messages() -> str:
    """All strings of the module and the library, each on a line; "..." for what is filled in."""
    lines = []
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(text_of(path))):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "..." for p in node.values)
                lines.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                lines.append(node.value)
    return "\n".join(lines)


def test_quoted_messages_are_those_of_the_software():
    table = text_of(ROOT / "docs" / "slicer.md").partition("## Troubleshooting")[2]
    quoted = re.findall(r"^\| \*(.+?)\* \|", table, re.M)
    assert len(quoted) >= 5
    for message in quoted:
        # A placeholder stands for what is filled in, with the quotation marks around it.
        parts = [re.escape(part.strip()) for part in message.split("...")]
        assert re.search(r"['\" ]*\.\.\.['\" ]*".join(parts), messages()), message


def test_documented_commands_and_options_exist():
    folders = (LIBRARY, ROOT / "Training")
    sources = "\n".join(text_of(path) for folder in folders for path in folder.rglob("*.py"))
    commands = [
        (page, *found) for page in tracked("*.md") for found in COMMAND.findall(text_of(page))
    ]
    assert len(commands) > 20
    for page, module, script, rest in commands:
        where = (str(page.relative_to(ROOT)), module or script, rest)
        path = LIBRARY / module.replace(".", "/") / "__main__.py" if module else ROOT / script
        assert path.is_file(), where
        source = text_of(path) + sources
        words = rest.split()
        assert not module or not words or f'"{words[0]}"' in text_of(path), where
        for option in re.findall(r"(?<!\S)--([a-z][a-z-]*)", rest):
            # Some options are made from a dataclass's fields.
            field = option.removeprefix("no-").replace("-", "_")
            assert f'"--{option}"' in source or re.search(rf"\b{field}:", source), (*where, option)


def test_the_api_reference_builds_without_warnings(tmp_path):
    pytest.importorskip("pdoc")
    pytest.importorskip("onnx", reason="imported by the module that prepares models")
    command = [sys.executable, str(ROOT / "docs" / "build_api.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.html")}
    package = "LiverFibrosisStagingLib"
    expected = ("staging", "imaging/reading", "gradcam_onnx/make_explainable", "report/overview")
    assert {"index.html", *(f"{package}/{name}.html" for name in expected)} <= pages
    assert not [page for page in pages if "/scene" in page]
