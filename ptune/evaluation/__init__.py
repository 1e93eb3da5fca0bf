"""From a development set to answers and their ROUGE and BLEU."""
