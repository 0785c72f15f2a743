"""Model files, one module a format: each reads into an export.Source, writes one, or both."""
