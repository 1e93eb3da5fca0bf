"""Files that are there in full or not at all, and the folder of what can be made again."""
