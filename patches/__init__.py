"""The patch sets, one folder per SGLang version; data only."""
