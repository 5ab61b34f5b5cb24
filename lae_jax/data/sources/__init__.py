"""Readers of raw data sets: each makes a table of images."""
