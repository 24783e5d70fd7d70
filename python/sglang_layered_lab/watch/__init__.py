"""`sglang-layered top`: a running server in a terminal, from its `/metrics` alone.

Scrape text becomes a Sample, two Samples become a View, a View becomes a page.
Only `source` knows the network.
"""
