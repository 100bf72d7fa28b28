"""Unlabeled images: which files, in what order, decoded and checked."""
