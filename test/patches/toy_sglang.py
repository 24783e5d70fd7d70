"""A toy SGLang with three files, a toy series for it, and the texts it must give, written out by hand."""

from dataclasses import dataclass
from pathlib import Path

from sglang_layered.patching import Site
from sglang_layered.patching.site import at_package

HEADER = """Why: a toy.
Seam: a toy place,
  on two lines.
Off-path: nothing.
Upstream: never.
Drop-when: never.
Guard: test/guard.py

"""

TOY_VERSION = "1.0.0"
TOY_PRISTINE = {
    "__init__.py": "import one\nimport two\n",
    "srt/a.py": "import three\n\n\ndef run(x):\n    y = x\n    return y\n",
    "srt/b.py": "class Box:\n    def open(self):\n        self.lid = 0\n        return self\n",
}
TOY_PATCHED = {
    "__init__.py": "import one\nimport ours\nimport two\n",
    "srt/a.py": (
        "import three\nimport ours\n\n\n"
        "def run(x):\n    ours.first(x)\n    y = x\n    ours.last(y)\n    return y\n"
    ),
    "srt/b.py": (
        "import ours\nclass Box:\n    def open(self):\n        ours.b()\n\n"
        "        self.lid = 0\n        return self\n"
    ),
}
TOY_SERIES = {
    "0001-init.patch": """--- a/sglang/__init__.py
+++ b/sglang/__init__.py
@@ -1,0 +2,1 @@
+import ours
""",
    "0002-run.patch": """--- a/sglang/srt/a.py
+++ b/sglang/srt/a.py
@@ -1,0 +2,1 @@
+import ours
@@ -5,0 +7,1 @@
+    ours.last(y)
""",
    "0003-both.patch": """--- a/sglang/srt/a.py
+++ b/sglang/srt/a.py
@@ -5,0 +6,1 @@
+    ours.first(x)
--- a/sglang/srt/b.py
+++ b/sglang/srt/b.py
@@ -0,0 +1,1 @@
+import ours
@@ -2,0 +4,2 @@
+        ours.b()
+
""",
}


@dataclass(frozen=True)
class Toy:
    """A fake SGLang with three pristine files, and a patch set for it."""

    site_packages: Path
    root: Path

    @property
    def package(self) -> Path:
        return self.site_packages / "sglang"

    @property
    def site(self) -> Site:
        return at_package(self.package)

    @property
    def folder(self) -> Path:
        return self.root / TOY_VERSION

    def texts(self) -> dict[str, str]:
        return {path: (self.package / path).read_text() for path in TOY_PRISTINE}

    def all_files(self) -> set[str]:
        return {str(path.relative_to(self.package)) for path in self.package.rglob("*") if path.is_file()}

    def set_version(self, version: str) -> None:
        (self.package / "_version.py").write_text(f"__version__ = version = '{version}'\n")
