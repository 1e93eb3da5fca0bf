"""Evaluation: predictions for a development set, ROUGE and BLEU."""
