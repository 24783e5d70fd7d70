"""Listeners: who hears a server's step events, and those that ship. It knows no request, tensor or sglang."""
