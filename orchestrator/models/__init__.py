"""What a model is: readers of model files, and the names that a person may use for them."""
