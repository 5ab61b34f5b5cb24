"""Audits of prepared data sets: leaks between splits, double images, labels that cannot be."""
