"""The report on a ladder of models: its claims, figures and page."""
