"""SGLang's insides: every private name that we touch and every body that we follow.

The rest of the runtime asks this room. Each function names what it follows, so that a port begins here.
What differs between releases of SGLang is in a package of each release, which `releases.py` chooses.
"""
