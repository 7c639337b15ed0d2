"""The detector: networks and rules that score images, votes over views, fusion over models, verdicts."""
