"""The rewards of the three roles: pure functions of votes and scores, nothing learned, nothing external."""
