"""Verbs and options that asg-core hands over to this package."""
