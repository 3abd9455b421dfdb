"""How codecs are trained and fitted, and how well they give back what they were given."""
