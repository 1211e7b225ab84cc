"""From characters to rows of tokens. No model code, no torch outside batch.py."""
