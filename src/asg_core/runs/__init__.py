"""What a run leaves on disk and shows of itself: folder, configuration, samples, console, model card, report."""
