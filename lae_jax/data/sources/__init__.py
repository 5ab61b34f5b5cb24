"""Readers: from what a user has to a table of images."""
