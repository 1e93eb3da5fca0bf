"""From a data file to `input_ids` and `labels`: records, prompt formats, tokenizers, batches."""
