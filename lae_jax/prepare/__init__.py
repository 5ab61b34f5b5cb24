"""Prepared data sets: from photographs to aligned, checked, sharded faces."""
