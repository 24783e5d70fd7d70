"""SGLang's insides: every private name that we touch and every body that we follow, for 0.5.17.

The rest of the runtime asks this room. Each function names what it follows, so that a port begins here.
"""
