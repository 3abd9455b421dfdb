"""The encoder-decoder transformer over tokens of all modalities."""
