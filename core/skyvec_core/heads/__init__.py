"""Small heads on frozen context vectors that bring images, spectra and words into one space."""
