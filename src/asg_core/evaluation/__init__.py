"""Held-out evaluation: records that every evaluation returns, and paired comparison of two of them."""
