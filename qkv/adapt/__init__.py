"""Changing a model from outside: it never learns of it."""
