"""Property: for any text and any insertions, apply equals a slow oracle and revert is its exact inverse."""

import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_layered.patching import Site, apply, revert
from sglang_layered.patching.site import sha256
from toy_sglang import HEADER

VERSION = "1.0.0"
LINE = st.one_of(
    st.sampled_from(
        [b"", b"same", b"-- x", b"++ b/sglang/f.py", b"@@ -1,0 +2,1 @@", b"-- a/sglang/f.py", b"\r"]
    ),
    st.binary(max_size=6).map(lambda line: line.replace(b"\n", b"")),
)
INSERTED = st.lists(LINE, min_size=1, max_size=3)


def interleave(lines, insertions):
    """Oracle: walk over the old lines and put the new ones in front of them."""
    result = []
    for place, line in enumerate(lines):
        result += insertions.get(place, [])
        result.append(line)
    return result


def render(insertions):
    """The zero-context diff, from line numbers alone."""
    diff = [b"--- a/sglang/f.py", b"+++ b/sglang/f.py"]
    num_inserted = 0
    for place, lines in sorted(insertions.items()):
        diff.append(b"@@ -%d,0 +%d,%d @@" % (place, place + 1 + num_inserted, len(lines)))
        diff += [b"+" + line for line in lines]
        num_inserted += len(lines)
    return HEADER.encode() + b"\n".join(diff) + b"\n"


@st.composite
def series(draw):
    """An old file as lines (the last one, often empty, lacks its newline) and what each patch inserts."""
    lines = draw(st.lists(LINE, min_size=1, max_size=8))
    states, patches = [lines], []
    for _ in range(draw(st.integers(1, 3))):
        places = st.integers(0, len(states[-1]) - 1)
        patches.append(draw(st.dictionaries(places, INSERTED, min_size=1, max_size=4)))
        states.append(interleave(states[-1], patches[-1]))
    return b"\n".join(states[0]), patches, b"\n".join(states[-1])


def write_set(folder, before, patches, after):
    folder.mkdir(parents=True)
    names = [f"{number:04}-p.patch" for number in range(len(patches))]
    for name, insertions in zip(names, patches, strict=True):
        (folder / name).write_bytes(render(insertions))
    (folder / "series").write_text("\n".join(names))
    hashes = {"before": sha256(before), "after": sha256(after)}
    manifest = {"sglang": VERSION, "files": {"f.py": hashes}, "patches": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@settings(deadline=None, max_examples=150)
@given(series())
def test_apply_equals_the_oracle_and_revert_is_the_identity(example):
    before, patches, after = example
    with tempfile.TemporaryDirectory() as scratch:
        root, package = Path(scratch, "patches"), Path(scratch, "sglang")
        write_set(root / VERSION, before, patches, after)
        package.mkdir()
        (package / "f.py").write_bytes(before)
        site = Site(package, VERSION)
        apply(site, root)
        assert (package / "f.py").read_bytes() == after
        revert(site, root)
        assert (package / "f.py").read_bytes() == before
