"""Questions in words, or across modalities, through the aligned heads of the training room."""
