"""What the folder of a base model says: where it is, its generation, its figures, its weights."""
