"""Weights and what is done with them: loading, attention, loss, sampling."""
