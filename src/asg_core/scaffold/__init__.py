"""Writes the skeleton of a backbone plugin (``asg new adapter``)."""
