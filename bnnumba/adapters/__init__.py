"""Batch normalization as other libraries' own parts, each a module that is imported by itself."""
