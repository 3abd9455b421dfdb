"""Codecs: observations of one modality <-> token ids."""
