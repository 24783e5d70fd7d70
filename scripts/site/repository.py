"""Which files of the repository are in the site, and as what: pages, folders, code, downloads.

What documents link to is in the site, folders with all that is in them: a link leads where a forge leads it.
Knows nothing of MkDocs.
"""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MOVED = {"README.md": "index.md", "docs/README.md": "documents.md"}
CODE = {
    "": "text",
    ".cff": "yaml",
    ".py": "python",
    ".sh": "bash",
    ".toml": "toml",
    ".yaml": "yaml",
    ".yml": "yaml",
}
FENCED = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")


def page_of(path: Path, repo: Path) -> str:
    """Where the site's sources have a file or folder of the repository."""
    name = path.relative_to(repo).as_posix()
    if path.is_dir():
        return f"{name}/README.md"
    if name in MOVED:
        return MOVED[name]
    if path.suffix in CODE:
        return f"{name}.md"
    return name.removeprefix("docs/")


def link(source: str, target: str) -> str:
    """The relative link from one of the site's sources to another."""
    return os.path.relpath(target, PurePosixPath(source).parent.as_posix())


def linked(document: Path) -> Iterator[Path]:
    """What a document links to that is there; folders as well as files."""
    text = FENCED.sub("", document.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        place = (document.parent / target).resolve()
        if ":" not in target and place.exists():
            yield place


def reached(starts: list[Path]) -> set[Path]:
    """All that can be reached from documents by links and through folders."""
    found: set[Path] = set()
    waiting = list(starts)
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        if path.is_dir():
            waiting.extend([*entries(path), *path.glob("README.md")])
        elif path.suffix == ".md":
            waiting.extend(linked(path))
    return found


def entries(folder: Path) -> list[Path]:
    """What a folder shows, folders first."""
    shown = [path for path in folder.iterdir() if path.name[0] not in "._" and path.name != "README.md"]
    return sorted(shown, key=lambda path: (path.is_file(), path.name))


def folder_text(folder: Path, repo: Path) -> str:
    """A page for a folder: its README, then what is in it."""
    readme = folder / "README.md"
    head = readme.read_text(encoding="utf-8") + "\n## Files\n" if readme.exists() else _title(folder, repo)
    lines = [
        f"* [{path.name}{'/' if path.is_dir() else ''}]({path.name}){_about(path)}"
        for path in entries(folder)
    ]
    return "\n".join([head, *lines]) + "\n"


def code_text(path: Path, repo: Path) -> str:
    """A page that shows a file."""
    return f"{_title(path, repo)}\n~~~~{CODE[path.suffix]}\n{path.read_text(encoding='utf-8')}\n~~~~\n"


def _about(path: Path) -> str:
    """What a Python file says of itself in its first line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path.suffix == ".py" else ""
    return f": {docstring.splitlines()[0]}" if docstring else ""


def _title(path: Path, repo: Path) -> str:
    return f"# {path.relative_to(repo).as_posix()}\n"
