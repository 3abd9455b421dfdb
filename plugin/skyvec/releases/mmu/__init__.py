"""The HDF5 files of the Multimodal Universe, read and written."""
