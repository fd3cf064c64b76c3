"""One module per format that messages come in; each yields the items of `sources.base`."""
