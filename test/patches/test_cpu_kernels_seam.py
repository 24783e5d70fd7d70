"""Guard of 0001: the reference kernels are offered before anything of SGLang can import `sgl_kernel`."""

import ast

from seam_trees import index_of

SEAM = "_layered_seams.offer_cpu_kernels()"


def test_kernels_are_offered_before_the_first_import_of_sglang(seam_file):
    body = seam_file("__init__.py").patched.body
    at = index_of(body, SEAM)
    earlier = [node.module or "" for node in body[:at] if isinstance(node, ast.ImportFrom)]
    earlier += [alias.name for node in body[:at] if isinstance(node, ast.Import) for alias in node.names]
    assert not [name for name in earlier if name.startswith("sglang")]


def test_kernels_are_offered_right_before_the_transformers_patches(seam_file):
    body = seam_file("__init__.py").patched.body
    following = body[index_of(body, SEAM) + 1]
    assert isinstance(following, ast.ImportFrom)
    assert following.module == "sglang.srt.utils.hf_transformers_patches"


def test_nothing_else_changes(seam_file):
    assert seam_file("__init__.py").adds_only_seams
