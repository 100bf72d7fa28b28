"""The seam: what a backbone provides, how plugins announce one, and how it is found and loaded."""
