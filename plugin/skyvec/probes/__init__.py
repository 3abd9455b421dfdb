"""Small models on the vectors of an extension, bound to the model that made them."""
