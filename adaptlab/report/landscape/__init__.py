"""The report on loss landscapes: its numbers, words, claims, figures and page."""
