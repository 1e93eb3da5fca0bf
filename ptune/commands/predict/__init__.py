"""`ptune predict`: answers to many files of questions, shard by shard, by one model or many."""
