"""A study of loss landscapes: its labs, lines, surfaces and spectra."""
