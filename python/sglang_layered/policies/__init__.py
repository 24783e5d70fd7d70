"""Policies from the literature, each one small class: what a paper's mechanism is where prompts go by layers.

All decide step times as `auto` does, whose model of them they inherit. Pure: no torch, no SGLang.
"""
