"""Models for SGLang whose dummy weights route as real text does: SGLANG_EXTERNAL_MODEL_PACKAGE names this.

SGLang imports every module here and takes its `EntryClass` instead of its own model of that name; with and
without layered prefill, patched or not.
"""
